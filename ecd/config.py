"""Settings of both daemons: one YAML file each, flags over it, unknown keys are errors.

Owns names, units (in the names), defaults and ranges. README.md and docs/ARCHITECTURE.md explain them.
"""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, assert_never, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ecd.engine.vllm_args import refusal
from ecd.errors import ConfigError


def default_socket(role: str) -> Path:
    """Where a daemon's control socket lies unless it is told otherwise: the user's runtime folder.

    Raises ConfigError when somebody else made the folder that stands in for a missing one.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "ecd" / f"{role}.sock"
    folder = Path(f"/tmp/ecd-{os.getuid()}")
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder} belongs to somebody else; set XDG_RUNTIME_DIR, or name a --socket")
    return folder / f"{role}.sock"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:7040")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(value: str) -> str:
    split_address(value)
    return value


Address = Annotated[str, AfterValidator(_address)]
# What an HTTP header can carry.
ApiKey = Annotated[str, Field(pattern=r"^[!-~]+$")]
# A name or an address as the Host header has it, but for the port.
HostName = Annotated[str, Field(pattern=r"^([\w.-]+|\[[0-9A-Fa-f:.]+\])$")]
PatienceMs = Annotated[float, Field(ge=0, le=4_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86400)]


class Keepalive(BaseModel):
    """How the link is watched: RTT is measured every `ping_interval_s`; silence means a dead peer."""

    model_config = ConfigDict(extra="forbid")

    ping_interval_s: Seconds = 2.0
    silence_s: Seconds = 6.0
    handshake_s: Seconds = 5.0

    @model_validator(mode="after")
    def _check(self) -> "Keepalive":
        if self.silence_s <= self.ping_interval_s:
            raise ValueError("silence_s must be longer than ping_interval_s")
        return self


class Reconnect(BaseModel):
    """Waits between connection attempts: from `first_s`, doubled up to `longest_s`, with jitter."""

    model_config = ConfigDict(extra="forbid")

    first_s: Seconds = 0.1
    longest_s: Seconds = 5.0

    @model_validator(mode="after")
    def _check(self) -> "Reconnect":
        if self.longest_s < self.first_s:
            raise ValueError("longest_s must not be shorter than first_s")
        return self


class Daemon(BaseModel):
    """What both daemons have. `insecure` allows plain TCP off loopback."""

    model_config = ConfigDict(extra="forbid")

    model: str
    threads: int = Field(default=1, ge=1, le=1024)
    token: str | None = Field(default=None, min_length=1)
    insecure: bool = False
    keepalive: Keepalive = Keepalive()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def _check_secure(host: str, setting: str, insecure: bool) -> None:
    if not insecure and not is_loopback(host):
        raise ValueError(
            f"{setting} {host} is not this machine and the link is not encrypted; "
            "go through a tunnel on loopback, or set `insecure: true` if the network is trusted"
        )


class CloudConfig(Daemon):
    """Settings of `ecd cloud`.

    `context_tokens` is per session. Hints may lie `max_ahead` tokens ahead; a forward verifies at most
    `max_verify` of them, fewer where more would not pay. `engine_args` are vLLM's, by name.
    """

    listen: Address = "127.0.0.1:7040"
    socket: Path = Field(default_factory=lambda: default_socket("cloud"))
    sessions: int = Field(default=8, ge=1, le=256)
    queue: int = Field(default=64, ge=0)
    context_tokens: int = Field(default=4096, ge=64, le=1 << 20)
    max_verify: int = Field(default=16, ge=0, le=62)
    max_ahead: int = Field(default=64, ge=1, le=1024)
    max_streams: int = Field(default=256, ge=1)
    stable: bool = False
    engine: Literal["llama", "vllm"] = "llama"
    engine_args: dict[str, Any] = Field(default_factory=dict)
    drain_s: Seconds = 60.0

    @model_validator(mode="after")
    def _check(self) -> "CloudConfig":
        _check_secure(split_address(self.listen)[0], "listen", self.insecure)
        match self.engine:
            case "llama":
                if self.engine_args:
                    raise ValueError("engine_args are for `engine: vllm`; set that, or leave them out")
            case "vllm":
                for name in ("threads", "stable"):
                    if name in self.model_fields_set:
                        raise ValueError(
                            f"{name} is for `engine: llama` and means nothing to vLLM; leave it out"
                        )
                if reason := refusal(self.engine_args):
                    raise ValueError(reason)
            case other:
                assert_never(other)
        return self


class Http(BaseModel):
    """The edge's HTTP API: where it listens, over TCP and at a Unix socket, and who may use it.

    With `api_keys` a program must show one of them. Pages of `cors_origins` may use it from a browser. Where
    only this machine can reach `listen`, requests must name a loopback host or one of `allowed_hosts`.
    """

    model_config = ConfigDict(extra="forbid")

    listen: Address | None = "127.0.0.1:8082"
    socket: Path | None = None
    api_keys: list[ApiKey] = Field(default_factory=list)
    cors_origins: list[str] = Field(default_factory=list)
    allowed_hosts: list[HostName] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> "Http":
        if self.listen is None and self.socket is None:
            raise ValueError("listen and socket are both null; name one, or set `http: null`")
        if self.listen and not self.api_keys and not is_loopback(split_address(self.listen)[0]):
            raise ValueError(
                f"listen {self.listen} can be reached from other machines; set `api_keys`, "
                "or listen on 127.0.0.1"
            )
        return self


class EdgeConfig(Daemon):
    """Settings of `ecd edge`.

    `context_tokens` is per session. `ahead_tokens`, `patience_ms` and `hint_tokens` fix what the pacing
    controller decides otherwise. `lookup`: whether text is copied from prompt and answer, besides the model's
    guesses. `http`: null or false for none.
    """

    cloud: Address = "127.0.0.1:7040"
    socket: Path = Field(default_factory=lambda: default_socket("edge"))
    sessions: int = Field(default=8, ge=1, le=256)
    context_tokens: int = Field(default=4096, ge=64, le=1 << 20)
    objective: Literal["latency", "balanced", "cost"] = "balanced"
    ahead_tokens: int | None = Field(default=None, ge=0, le=1024)
    patience_ms: PatienceMs | Literal["rounds"] | None = None
    hint_tokens: int | None = Field(default=None, ge=1, le=64)
    lookup: bool = True
    link_wait_s: Seconds = 60.0
    http: Annotated[Http | None, BeforeValidator(lambda given: None if given is False else given)] = Http()
    reconnect: Reconnect = Reconnect()
    drain_s: Seconds = 60.0

    @model_validator(mode="after")
    def _check(self) -> "EdgeConfig":
        host, port = split_address(self.cloud)
        if not port:
            raise ValueError("cloud: port 0 is no address to connect to")
        _check_secure(host, "cloud", self.insecure)
        return self


C = TypeVar("C", CloudConfig, EdgeConfig)


def load_config(kind: type[C], file: Path | None, flags: dict[str, Any]) -> C:
    """Settings from a YAML file with flags (those not None) over it; `http__listen` is `listen` of `http`.

    Raises ConfigError that names the file and the path of each key that is wrong.
    """
    settings: Any = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text())
        except OSError as e:
            raise ConfigError(f"cannot read {file}: {e.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ConfigError(f"{file} is not YAML: {e}") from None
        settings = {} if loaded is None else loaded
        if not isinstance(settings, dict):
            raise ConfigError(f"{file} must hold settings by name, not a {type(settings).__name__}")
    given = {name: value for name, value in flags.items() if value is not None}
    for name in [name for name in given if "__" in name]:
        (section, key), value = name.split("__"), given.pop(name)
        there = settings.get(section) or {}
        if isinstance(there, dict):
            settings = settings | {section: there | {key: value}}
    settings = settings | given
    try:
        return kind.model_validate(settings)
    except ValidationError as e:
        where = f" in {file}" if file else ""
        problems = "; ".join(_problem(error, kind) for error in e.errors())
        raise ConfigError(f"bad settings{where}: {problems}") from None


def _problem(error: Any, kind: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            for name in error["loc"][:-1]:
                annotation = kind.model_fields[name].annotation
                kind = next(iter(get_args(annotation)), annotation)
            return f"{path} is no setting; known here: {', '.join(sorted(kind.model_fields))}"
        case "missing":
            return f"{path} is missing; set it in the file or with --{path.replace('_', '-')}"
        case _:
            message = str(error["msg"]).removeprefix("Value error, ")
            return f"{path}: {message}" if path else message
