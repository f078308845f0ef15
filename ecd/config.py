"""Settings of both daemons: one YAML file each, flags over it, unknown keys are errors.

Owns names, units (in the names), defaults and ranges. README.md and docs/ARCHITECTURE.md explain them.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, assert_never

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from ecd.addresses import is_loopback, split_address
from ecd.config_problems import problems
from ecd.engine.vllm_args import refusal
from ecd.errors import ConfigError
from ecd.logs import Format
from ecd.trust.dangers import cloud_dangers, edge_dangers, open_file, open_handover, refuse
from ecd.trust.settings import CloudTls, Connections, EdgeTls, Limits


def default_socket(role: str) -> Path:
    """Where a daemon's control socket lies unless it is told otherwise: the user's runtime folder.

    Raises ConfigError when others made the folder that stands in for a missing one, or could change it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "ecd" / f"{role}.sock"
    folder = Path(f"/tmp/ecd-{os.getuid()}")
    with contextlib.suppress(FileNotFoundError):
        # A link to a folder of this user's could point elsewhere a moment later.
        facts = folder.lstat()
        if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o022:
            raise ConfigError(
                f"{folder} belongs to somebody else, or others can change it; set XDG_RUNTIME_DIR, or name a "
                "--socket"
            )
    return folder / f"{role}.sock"


def _address(value: str) -> str:
    split_address(value)
    return value


Address = Annotated[str, AfterValidator(_address)]
# What an HTTP header can carry.
ApiKey = Annotated[str, Field(pattern=r"^[!-~]+$")]
Weight = Annotated[float, Field(gt=0, le=1000)]
# A name or an address as the Host header has it, but for the port.
HostName = Annotated[str, Field(pattern=r"^([\w.-]+|\[[0-9A-Fa-f:.]+\])$")]


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_no_boolean)]
PatienceMs = Annotated[Number, Field(ge=0, le=4_000_000)]
# A confidence from which on the edge commits by itself, the agreement that one is found for, and a share.
Threshold = Annotated[Annotated[float, Field(ge=0, le=1)] | Literal["adaptive"], BeforeValidator(_no_boolean)]
Agreement = Annotated[Number, Field(ge=0.5, le=0.999)]
Share = Annotated[Number, Field(ge=0, le=1)]
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


class KvDisk(BaseModel):
    """A folder for saved states that are to survive a restart, of `max_bytes` at most."""

    model_config = ConfigDict(extra="forbid")

    path: Path
    max_bytes: int = Field(default=4 << 30, ge=1 << 20)


class KvCache(BaseModel):
    """What is kept of texts that are over, so that one that begins alike need not be read again.

    The newest stay in the engine's cells. Besides them `max_bytes` of saved states are kept in memory, and
    more on a `disk`, where one is named.
    """

    model_config = ConfigDict(extra="forbid")

    max_bytes: int = Field(default=256 << 20, ge=0)
    disk: KvDisk | None = None


def _none_if_false(given: Any) -> Any:
    return None if given is False else given


class Daemon(BaseModel):
    """What both daemons have.

    `insecure` allows links off loopback without TLS, and without a token. `kv_cache`: null or false for none.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    threads: int = Field(default=1, ge=1, le=1024)
    insecure: bool = False
    keepalive: Keepalive = Keepalive()
    kv_cache: Annotated[KvCache | None, BeforeValidator(_none_if_false)] = KvCache()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Format = "text"

    def dangers(self) -> list[str]:
        """What is open to other machines here; docs/SECURITY.md."""
        return []

    def warnings(self) -> list[str]:
        """What is told at each start: dangers that are allowed, and what is open on this machine."""
        return self.dangers()


class CloudConfig(Daemon):
    """Settings of `ecd cloud`.

    `tokens` is the file of those that let edges in; None: every edge is. `limits` are each tenant's.
    `context_tokens` is per session. Hints may lie `max_ahead` tokens ahead; a forward verifies at most
    `max_verify` of them, fewer where more would not pay. `engine_args` are vLLM's, by name. `assist`: a draft
    model that reads long prompts for the edges that draft with it. `metrics`: where Prometheus finds
    /metrics; None: nowhere.
    """

    listen: Address = "127.0.0.1:7040"
    tls: CloudTls | None = None
    tokens: Path | None = None
    limits: Limits = Limits()
    connections: Connections = Connections()
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
    assist: str | None = None
    metrics: Address | None = None
    drain_s: Seconds = 60.0

    @model_validator(mode="after")
    def _check(self) -> "CloudConfig":
        refuse(self.dangers(), self.insecure)
        match self.engine:
            case "llama":
                if self.engine_args:
                    raise ValueError("engine_args are for `engine: vllm`; set that, or leave them out")
            case "vllm":
                # The assist is llama.cpp's in any case.
                mine = {"threads"} if self.assist else set()
                for name in ("threads", "stable", "kv_cache"):
                    if name in self.model_fields_set - mine:
                        raise ValueError(
                            f"{name} is for `engine: llama` and means nothing to vLLM; leave it out"
                        )
                if reason := refusal(self.engine_args):
                    raise ValueError(reason)
            case other:
                assert_never(other)
        return self

    def dangers(self) -> list[str]:
        """As of `Daemon`."""
        return cloud_dangers(self.listen, self.tls, self.tokens, self.metrics)


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


class CloudAddress(BaseModel):
    """One of several clouds, which gets answers in proportion to `weight`; an address alone has weight 1.

    Where the host is a name, each of its addresses is a cloud.
    """

    model_config = ConfigDict(extra="forbid")

    address: Address
    weight: Weight = 1.0

    @model_validator(mode="before")
    @classmethod
    def _of(cls, given: Any) -> Any:
        return {"address": given} if isinstance(given, str) else given


PureStrategy = Literal["max_prob", "entropy", "temperature", "top_k_agg", "margin"]


class ConfidenceConfig(BaseModel):
    """How sure a guess of the draft model is said to be; docs/CONFIDENCE.md has the formulas.

    `temperature` is for the strategy of that name, `top_k` for `top_k_agg`, `weights` for `ensemble`.
    """

    model_config = ConfigDict(extra="forbid")

    strategy: Literal["max_prob", "entropy", "temperature", "top_k_agg", "margin", "ensemble", "none"] = (
        "max_prob"
    )
    temperature: float = Field(default=1.0, gt=0.01, le=100)
    top_k: int = Field(default=5, ge=1, le=1000)
    weights: dict[PureStrategy, Annotated[float, Field(ge=0, le=1000)]] = {
        "max_prob": 1.0,
        "entropy": 1.0,
        "margin": 1.0,
    }

    @model_validator(mode="after")
    def _check(self) -> "ConfidenceConfig":
        if not sum(self.weights.values()) > 0:
            raise ValueError("weights: one of them must be above 0")
        return self


class EdgeConfig(Daemon):
    """Settings of `ecd edge`.

    `cloud` is the one cloud, or there are `clouds`: a list, or a name whose addresses they have. `token` is
    what the edge shows them. Links are encrypted off loopback, and wherever `tls` is set.
    `context_tokens` is per session. `mode`, `threshold` (from which confidence on a token is the edge's to
    commit), `target_agreement` (what an adaptive one is found for) and `audit_share` (of the edge's tokens,
    how many the cloud compares with its own) hold for requests that do not say. `ahead_tokens`, `patience_ms`
    and `hint_tokens` fix what the pacing controller decides otherwise. `lookup`: whether text is copied from
    prompt and answer, besides the model's guesses. `assist`: how pages of a prompt travel that the cloud
    reads for this edge where that is faster; null: none do. `handover`: where other edges may hand answers
    over, besides the Unix socket for that. `otlp`: the URL of a collector of OpenTelemetry, for a span per
    answer. `link_loss`: what an answer does that no cloud takes: it fails after `link_wait_s`, goes on from
    the draft after `link_grace_s`, or fails at once. `http`: null or false for none.
    """

    cloud: Address = "127.0.0.1:7040"
    token: str | None = Field(default=None, min_length=1)
    tls: EdgeTls | None = None
    clouds: Annotated[
        list[CloudAddress],
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
        Field(min_length=1, max_length=64),
    ] = []
    socket: Path = Field(default_factory=lambda: default_socket("edge"))
    sessions: int = Field(default=8, ge=1, le=256)
    context_tokens: int = Field(default=4096, ge=64, le=1 << 20)
    mode: Literal["exact", "confident", "edge-only", "cloud-only"] = "exact"
    threshold: Threshold = "adaptive"
    target_agreement: Agreement = 0.95
    audit_share: Share = 0.2
    confidence: ConfidenceConfig = ConfidenceConfig()
    objective: Literal["latency", "balanced", "cost"] = "balanced"
    ahead_tokens: int | None = Field(default=None, ge=0, le=1024)
    patience_ms: PatienceMs | Literal["rounds"] | None = None
    hint_tokens: int | None = Field(default=None, ge=1, le=64)
    lookup: bool = True
    assist: Literal["q8_0", "f16"] | None = "q8_0"
    handover: Address | None = None
    link_loss: Literal["wait", "degrade", "fail"] = "wait"
    otlp: Annotated[str, Field(pattern=r"^https?://[^/]+")] | None = None
    link_wait_s: Seconds = 60.0
    link_grace_s: Seconds = 1.0
    http: Annotated[Http | None, BeforeValidator(_none_if_false)] = Http()
    reconnect: Reconnect = Reconnect()
    drain_s: Seconds = 60.0
    # Where the settings were read, and its mode.
    _file: tuple[Path, int] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> "EdgeConfig":
        if self.clouds and "cloud" in self.model_fields_set:
            raise ValueError("`cloud` and `clouds` are both set; name the one cloud or the several, not both")
        for setting, address in self._addresses():
            if not split_address(address)[1]:
                raise ValueError(f"{setting}: port 0 is no address to connect to")
        elsewhere = [a for _, a in self._addresses() if not is_loopback(split_address(a)[0])]
        if self.tls is None and not self.insecure and elsewhere:
            self.tls = EdgeTls()
        refuse(self.dangers(), self.insecure)
        return self

    def dangers(self) -> list[str]:
        """As of `Daemon`."""
        clouds = [address for _, address in self._addresses()]
        return edge_dangers(clouds, self.tls, self.token, self.handover)

    def warnings(self) -> list[str]:
        """As of `Daemon`."""
        found = self.dangers()
        if self.handover is not None:
            found += open_handover(self.handover, self.token)
        if self._file is not None:
            keys = self.http is not None and self.http.api_keys
            given = {"token": self.token, "http.api_keys": keys}
            found += open_file(*self._file, [name for name, secret in given.items() if secret])
        return found

    def _addresses(self) -> list[tuple[str, str]]:
        """Those of the clouds, each with the setting that names it."""
        return [("clouds", each.address) for each in self.clouds] or [("cloud", self.cloud)]


C = TypeVar("C", CloudConfig, EdgeConfig)


def load_config(kind: type[C], file: Path | None, flags: dict[str, Any]) -> C:
    """Settings from a YAML file with flags (those not None) over it; `http__listen` is `listen` of `http`.

    Raises ConfigError that names the file and the path of each key that is wrong.
    """
    settings: Any = {}
    if file is not None:
        try:
            with file.open() as opened:
                mode = os.fstat(opened.fileno()).st_mode
                loaded = yaml.safe_load(opened)
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
        config = kind.model_validate(settings)
    except ValidationError as e:
        where = f" in {file}" if file else ""
        raise ConfigError(f"bad settings{where}: {problems(e, kind)}") from None
    if file is not None and isinstance(config, EdgeConfig):
        config._file = (file, mode)
    return config
