"""What conditions change, and what is refused before anything is started."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.errors import ConfigError
from ecd.lab.ablation.conditions import (
    WINDOW,
    Ablation,
    Condition,
    Experiments,
    built_in,
    conditions_of,
    read_file,
)

BASE: dict[str, Any] = {
    "cloud": {"model": "big", "sessions": 1},
    "edge": {"model": "small", "confidence": {"strategy": "margin", "top_k": 3}},
    "request": {"max_tokens": 32},
}


def made(overrides: dict[str, Any], base: dict[str, Any] = BASE) -> Condition:
    ablations = [Ablation(name="baseline"), Ablation(name="mine", config_overrides=overrides)]
    return conditions_of(base, ablations)[1]


def test_the_six_change_what_their_names_say() -> None:
    found = {c.name: dict(c.changes) for c in conditions_of(BASE, built_in("llama", (0.5,)))}
    assert list(found) == [
        "baseline", "no_confidence", "no_draft_verify", "no_kv_cache", "edge_only", "cloud_only",
        "confident_0.5",
    ]  # fmt: skip
    assert found["baseline"] == {}
    assert found["no_confidence"] == {
        "edge.ahead_tokens": (None, WINDOW),
        "edge.hint_tokens": (None, 1),
        "edge.confidence.strategy": ("margin", "none"),
    }
    assert found["no_draft_verify"] == {"cloud.max_verify": (16, 0)}
    assert found["no_kv_cache"] == {
        f"{section}.kv_cache": ({"max_bytes": 256 << 20, "disk": None}, None) for section in ("cloud", "edge")
    }
    assert found["edge_only"] == {"edge.mode": ("exact", "edge-only")}
    assert found["cloud_only"] == {"edge.mode": ("exact", "cloud-only")}
    assert found["confident_0.5"] == {
        "edge.mode": ("exact", "confident"),
        "edge.threshold": ("adaptive", 0.5),
    }


def test_the_cache_of_vllm_is_left_to_the_requests() -> None:
    base = BASE | {"cloud": {"model": "big", "engine": "vllm"}}
    found = {c.name: c for c in conditions_of(base, built_in("vllm", ()))}
    assert found["no_kv_cache"].resolved["edge"]["kv_cache"] is None


@pytest.mark.parametrize(
    "overrides",
    [
        {"edge.confidence.strategy": "entropy", "request.max_tokens": 8},
        {"edge": {"confidence": {"strategy": "entropy"}}, "request": {"max_tokens": 8}},
        {"edge": {"confidence.strategy": "entropy"}, "request.max_tokens": 8},
    ],
)
def test_paths_with_dots_and_maps_mean_the_same(overrides: dict[str, Any]) -> None:
    condition = made(overrides)
    assert condition.given["edge"]["confidence"] == {"strategy": "entropy", "top_k": 3}
    assert dict(condition.changes) == {
        "edge.confidence.strategy": ("margin", "entropy"),
        "request.max_tokens": (32, 8),
    }
    assert BASE["edge"]["confidence"]["strategy"] == "margin", "the baseline stays as it is"


def test_a_section_may_be_put_where_there_was_none_and_taken_away() -> None:
    base = BASE | {"edge": {"model": "small", "kv_cache": None}}
    condition = made({"edge.kv_cache.max_bytes": 5 << 20}, base)
    assert condition.resolved["edge"]["kv_cache"]["max_bytes"] == 5 << 20
    assert made({"edge.kv_cache": False}).resolved["edge"]["kv_cache"] is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"edge.confidence.strategy": "hope"}, r"ablation 'mine': edge\.confidence\.strategy: Input should"),
        ({"edge.confidense.strategy": "none"}, r"edge\.confidense is no setting; known here: .*confidence"),
        ({"edge": {"confidence": {"treshold": 1}}}, r"edge\.confidence\.treshold is no setting; known here"),
        ({"inference.use_kv_cache": False}, r"inference\.use_kv_cache is no setting; paths begin with cloud"),
        ({"cloud": "none"}, r"cloud is a section"),
        ({"cloud": {}}, r"cloud is a section"),
        ({"cloud.max_verify": 100}, r"cloud\.max_verify: .*less than or equal to 62"),
        ({"request.max_tokens": 0}, r"request\.max_tokens: .*greater than or equal to 1"),
        ({"request.prompt": "x"}, r"request\.prompt is set by the ablation itself"),
        ({"cloud.listen": "127.0.0.1:1"}, r"cloud\.listen is set by the ablation itself"),
        ({"edge.mode": "exact", "edge": {"mode": "exact"}}, r"edge\.mode and edge\.mode are both given"),
        ({"edge.kv_cache.max_bytes": 5, "edge.kv_cache": None}, r"edge\.kv_cache and edge\.kv_cache\.max"),
        ({"edge..mode": "exact"}, r"is no path like"),
        ({"edge": {5: "exact"}}, r"edge\.5 is no path like"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(overrides)


@pytest.mark.parametrize(
    ("request_", "overrides"),
    [
        ({"mode": "exact"}, {"edge.mode": "edge-only"}),
        ({"mode": "confident"}, {"edge": {"mode": "cloud-only"}}),
        ({"ahead_tokens": 4}, {"edge.ahead_tokens": 8}),
        ({"hint_tokens": 2}, {"edge.hint_tokens": 1}),
        ({"threshold": 0.5}, {"edge.mode": "confident", "edge.threshold": 0.9}),
        ({"kv_cache": True}, {"edge.kv_cache": None}),
        ({}, {"edge.mode": "edge-only", "request.mode": "rejection"}),
    ],
)
def test_what_requests_say_themselves_cannot_be_overridden_at_the_edge(
    request_: dict[str, Any], overrides: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=r"'mine': edge\.(\w+) would change nothing, since request\.\1 comes"
    ):
        made(overrides, BASE | {"request": request_})


@pytest.mark.parametrize("rule", ["greedy", "coupled", "rejection"])
def test_a_sampling_rule_gives_way_to_a_mode(rule: str) -> None:
    base = BASE | {"request": {"mode": rule, "temperature": 0.5}}
    conditions = conditions_of(base, built_in("llama", (0.5,)))
    with_rule = {c.name for c in conditions if c.given["request"].get("mode") == rule}
    assert with_rule == {"baseline", "no_confidence", "no_draft_verify", "no_kv_cache"}
    edge_only = next(c for c in conditions if c.name == "edge_only")
    assert dict(edge_only.changes) == {"edge.mode": ("exact", "edge-only"), "request.mode": (rule, None)}
    assert base["request"]["mode"] == rule


def test_names_are_there_once() -> None:
    ours = built_in("llama", (0.5,))
    for name in ("baseline", "confident_0.5"):
        with pytest.raises(ConfigError, match=rf"'{name}' in x\.yaml has the name of a built-in one"):
            conditions_of(BASE, ours, [Ablation(name=name)], " in x.yaml")
    with pytest.raises(ConfigError, match=r"two ablations called 'mine' in x\.yaml"):
        conditions_of(BASE, ours, [Ablation(name="mine"), Ablation(name="mine")], " in x.yaml")


def test_what_the_laboratory_sets_is_dropped_from_the_settings() -> None:
    base = BASE | {
        "edge": {"model": "small", "cloud": "10.0.0.1:7040", "token": "secret", "http": {"listen": None}}
    }
    (condition,) = conditions_of(base, [Ablation(name="baseline")])
    assert condition.given["edge"] == {"model": "small"}
    assert "secret" not in str(condition.resolved)


# A busy machine takes its time.
@settings(deadline=None)
@given(st.sampled_from([0, 5, 62]), st.sampled_from(["exact", "edge-only"]), st.integers(1, 64))
def test_the_order_of_overrides_does_not_matter(verify: int, mode: str, hints: int) -> None:
    overrides = {"cloud.max_verify": verify, "edge.mode": mode, "edge.hint_tokens": hints}
    backwards = dict(reversed(overrides.items()))
    assert made(overrides) == made(backwards)
    assert made(overrides).resolved["edge"]["hint_tokens"] == hints


def test_a_file_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    file = tmp_path / "ablation.yaml"
    file.write_text(
        "cloud: {model: big}\nedge: {model: small}\nrequest: {max_tokens: 8}\n"
        "experiments:\n  ablations:\n"
        "    - {name: deep, description: much, config_overrides: {cloud.max_verify: 62}}\n"
    )
    read = read_file(file)
    assert read.experiments == Experiments(
        ablations=[Ablation(name="deep", description="much", config_overrides={"cloud.max_verify": 62})]
    )
    file.write_text("cloud: {model: big}\nexperiments: {ablations: [{name: 'a b', extra: 1}]}\n")
    with pytest.raises(ConfigError) as told:
        read_file(file)
    for part in ("edge is missing", "experiments.ablations.0.name", "experiments.ablations.0.extra"):
        assert part in str(told.value)
    file.write_text("cloud: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_file(file)
    with pytest.raises(ConfigError, match="cannot read"):
        read_file(tmp_path / "none.yaml")
