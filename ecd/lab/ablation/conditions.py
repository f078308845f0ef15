"""Conditions of an ablation: settings of both daemons and of the requests, each with what it changes.

Owns the built-in ones, the file with further ones, how overrides go over settings, and what is refused. Pure
but for reading that file. Starts nothing.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ecd.config import CloudConfig, EdgeConfig
from ecd.config_problems import problems
from ecd.edge.run_args import AnswerSettings, RunArgs
from ecd.errors import ConfigError
from ecd.sampling import Rule

# So far ahead of the committed text drafts a system that goes by no confidence.
WINDOW = 8
# What the laboratory sets itself for each pair of daemons, or has no use for.
OURS: dict[str, tuple[str, ...]] = {
    "cloud": ("listen", "socket", "tls", "tokens", "metrics"),
    "edge": ("cloud", "clouds", "socket", "tls", "token", "handover", "http", "otlp"),
    "request": ("prompt",),
}
# Settings of the edge that stand in for what a request does not say.
BEATEN = AnswerSettings.model_fields.keys() & RunArgs.model_fields.keys()
KINDS: dict[str, type[BaseModel]] = {"cloud": CloudConfig, "edge": EdgeConfig, "request": RunArgs}
Section = Literal["cloud", "edge", "request"]
Settings = dict[str, Any]


class Ablation(BaseModel):
    """A condition of the settings file: the baseline's settings with `config_overrides` over them.

    Their keys are paths with dots, as `edge.confidence.strategy`, or maps within maps, or both.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
    description: str = ""
    config_overrides: dict[str, Any] = Field(default_factory=dict)


class Experiments(BaseModel):
    """Conditions beside the built-in ones."""

    model_config = ConfigDict(extra="forbid")

    ablations: list[Ablation] = Field(default_factory=list)


class AblationFile(BaseModel):
    """The settings file: both daemons' settings, arguments of `run` for all requests, and experiments."""

    model_config = ConfigDict(extra="forbid")

    cloud: Settings
    edge: Settings
    request: Settings = Field(default_factory=dict)
    experiments: Experiments = Experiments()


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to run the system. `given`: the settings as daemons and requests get them, by section.

    `resolved`: all settings with their defaults. `changes`: those that are not the baseline's, each by its
    path with both values.
    """

    name: str
    description: str
    given: Mapping[str, Settings]
    resolved: Mapping[str, Settings]
    changes: Mapping[str, tuple[Any, Any]]


def read_file(file: Path) -> AblationFile:
    """The settings file. Raises ConfigError that names what is wrong with it."""
    try:
        loaded = yaml.safe_load(file.read_text())
    except OSError as e:
        raise ConfigError(f"cannot read {file}: {e.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file} is not YAML: {e}") from None
    try:
        return AblationFile.model_validate(loaded)
    except ValidationError as e:
        raise ConfigError(f"bad settings in {file}: {problems(e, AblationFile)}") from None


def built_in(engine: str, thresholds: Sequence[float]) -> list[Ablation]:
    """The six that every run has, and mode `confident` at each of the thresholds.

    engine: the cloud's; that of vLLM has a cache of its own, which requests without the edge's do not use.
    """
    cloud_cache = {"cloud.kv_cache": None} if engine == "llama" else {}
    conditions: list[tuple[str, str, dict[str, Any]]] = [
        ("baseline", "the settings as they are", {}),
        (
            "no_confidence",
            f"drafts {WINDOW} tokens ahead whatever the draft's confidence, without the pacing controller",
            {"edge.confidence.strategy": "none", "edge.ahead_tokens": WINDOW, "edge.hint_tokens": 1},
        ),
        (
            "no_draft_verify",
            "the cloud verifies no hints",
            {"cloud.max_verify": 0},
        ),
        (
            "no_kv_cache",
            "nothing is kept of earlier texts, at the edge or at the cloud",
            {"edge.kv_cache": None, **cloud_cache},
        ),
        ("edge_only", "the draft model alone; nothing crosses the link", {"edge.mode": "edge-only"}),
        (
            "cloud_only",
            "plain streaming; the edge does not draft",
            {"edge.mode": "cloud-only"},
        ),
    ]
    conditions += [
        (
            f"confident_{threshold:g}",
            f"the edge commits tokens from confidence {threshold:g} on, the target the rest",
            {"edge.mode": "confident", "edge.threshold": threshold},
        )
        for threshold in thresholds
    ]
    return [
        Ablation(name=name, description=description, config_overrides=overrides)
        for name, description, overrides in conditions
    ]


def conditions_of(
    base: Mapping[str, Settings],
    ours: Sequence[Ablation],
    further: Sequence[Ablation] = (),
    where: str = "",
) -> list[Condition]:
    """The conditions, built-in ones first, and of them the baseline; `where` says of which file the rest is.

    Raises ConfigError that names the ablation and the path of what is wrong.
    """
    found: list[Condition] = []
    names = [ablation.name for ablation in further]
    for name in names:
        if name in {ablation.name for ablation in ours}:
            raise ConfigError(f"the ablation {name!r}{where} has the name of a built-in one; give it another")
        if names.count(name) > 1:
            raise ConfigError(f"there are two ablations called {name!r}{where}; give one another name")
    # What is the laboratory's own may stand in a file that daemons use too.
    base = {section: _without(base.get(section, {}), OURS[section]) for section in KINDS}
    for ablation in (*ours, *further):
        of = f"ablation {ablation.name!r}{where}"
        given = _overridden(base, ablation.config_overrides, of)
        resolved = {section: _resolved(section, given[section], of) for section in KINDS}
        changes = dict(_changes(found[0].resolved if found else resolved, resolved))
        found.append(Condition(ablation.name, ablation.description, given, resolved, changes))
    return found


def _overridden(base: Mapping[str, Settings], overrides: Settings, of: str) -> dict[str, Settings]:
    """The settings with overrides over them; what is a map on both sides is merged."""
    given = copy.deepcopy(dict(base))
    taken: set[str] = set()
    for path, value in _leaves(overrides, of):
        section, *keys = path.split(".")
        if section not in KINDS:
            raise ConfigError(f"{of}: {path} is no setting; paths begin with {', '.join(KINDS)}")
        if not keys:
            raise ConfigError(f"{of}: {path} is a section of settings and not a setting; name what changes")
        if keys[0] in OURS[section]:
            raise ConfigError(f"{of}: {section}.{keys[0]} is set by the ablation itself; leave it out")
        if clash := next((other for other in taken if f"{other}.".startswith(f"{path}.")), None):
            raise ConfigError(f"{of}: {path} and {clash} are both given; leave one out")
        taken.add(path)
        place = given[section]
        for key in keys[:-1]:
            inner = place.get(key)
            place[key] = place = inner if isinstance(inner, dict) else {}
        place[keys[-1]] = value
    _check_beaten(given["request"], taken, of)
    return given


def _check_beaten(request: Settings, overridden: set[str], of: str) -> None:
    """Raises ConfigError where a request says what the edge's setting was to say: that would change nothing.

    But a sampling rule, for which requests have no other place, gives way to an overridden mode.
    """
    names = {path.split(".")[1] for path in overridden if path.startswith("edge.")}
    if "mode" in names and "request.mode" not in overridden and request.get("mode") in list(Rule):
        del request["mode"]
    if beaten := next((name for name in sorted(names & BEATEN) if request.get(name) is not None), None):
        raise ConfigError(
            f"{of}: edge.{beaten} would change nothing, since request.{beaten} comes before it; leave "
            f"request.{beaten} out, and set edge.{beaten} for all conditions that do not override it"
        )


def _leaves(overrides: Any, of: str, under: str = "") -> Iterator[tuple[str, Any]]:
    """Paths with dots and their values; an empty map is a value."""
    for key, value in overrides.items():
        if not isinstance(key, str) or "" in key.split("."):
            raise ConfigError(f"{of}: {under}{key!r} is no path like edge.confidence.strategy")
        path = under + key
        if isinstance(value, dict) and value:
            yield from _leaves(value, of, path + ".")
        else:
            yield path, value


def _resolved(section: str, given: Settings, of: str) -> Settings:
    kind = KINDS[section]
    try:
        model = kind.model_validate({"prompt": "x"} | given if section == "request" else given)
    except ValidationError as e:
        raise ConfigError(f"{of}: {problems(e, kind, f'{section}.')}") from None
    return _without(model.model_dump(mode="json"), OURS[section])


def _without(settings: Settings, names: Sequence[str]) -> Settings:
    return {name: value for name, value in settings.items() if name not in names}


def _changes(
    before: Mapping[str, Any], after: Mapping[str, Any], under: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Paths with both values, where they differ."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{under}{name}.")
        elif old != new:
            yield under + name, (old, new)
