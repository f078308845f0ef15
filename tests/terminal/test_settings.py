"""`/mode`: the options of `run` in short."""

from typing import Any

import click
import pytest

from ecd.errors import BadRequest
from ecd.options import run_arguments
from ecd.sampling import Sampling
from ecd.terminal.commands import chat
from ecd.terminal.settings import changed, mode, told


@pytest.fixture
def start() -> dict[str, Any]:
    """What `ecdctl chat` begins with when nothing is given."""
    context = chat.make_context("chat", [])
    return {name: value for name, value in context.params.items() if name != "color"}


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("temperature=0.8 seed=7", {"temperature": 0.8, "seed": 7}),
        ("max-tokens=12", {"max_tokens": 12}),
        ("objective=cost", {"objective": "cost"}),
        ("cost", {"objective": "cost"}),
        ("greedy latency", {"mode": "greedy", "objective": "latency"}),
        ("confident threshold=0.8", {"mode": "confident", "threshold": 0.8}),
        ("threshold=adaptive target-agreement=0.97", {"threshold": "adaptive", "target_agreement": 0.97}),
        ("draft=off", {"draft": False}),
        ("no-draft", {"draft": False}),
        ("draft=on", {"draft": True}),
        ("rounds=4", {"rounds": 4}),
        ("stop='the end' stop=x", {"stop": ("the end", "x")}),
        ("--temperature 0.8 --no-draft", {"temperature": 0.8, "draft": False}),
        ("", {}),
    ],
)
def test_what_is_named_changes_and_nothing_else(
    start: dict[str, Any], line: str, after: dict[str, Any]
) -> None:
    assert changed(start, line) == {**start, **after}


def test_later_changes_keep_earlier_ones(start: dict[str, Any]) -> None:
    settings = changed(changed(start, "temperature=0.8 no-draft"), "seed=3")
    assert settings == {**start, "temperature": 0.8, "draft": False, "seed": 3}


def test_a_name_without_a_value_is_the_default_again(start: dict[str, Any]) -> None:
    settings = changed(
        changed(start, "temperature=0.8 seed=3 max-tokens=9 stop=x"), "temperature= seed= stop="
    )
    assert settings == {**start, "max_tokens": 9}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("speed=9", "No such option"),
        ("speed=", "no setting is called speed"),
        ("temperature=hot", "not a valid float"),
        ("objective=fast", "objective"),
        ("max-tokens=0", "not in the range"),
        ("temperature=9999", "not in the range"),
        ("temperature=nan", "is not a number"),
        ("threshold=nan", "is not a number"),
        ("top-p=0", "not in the range"),
        ("patience-ms=-1", "not in the range"),
        ("logit-bias=x", "is not ID=BIAS"),
        ("logit-bias=5=1001", "is not in the range"),
        ("logit-bias=-1=1", "is not in the range"),
        ("help", "No such option"),
        ("stop='x", "No closing quotation"),
        ("temperature 0.8", "temperature"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(start: dict[str, Any], line: str, said: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        changed(start, line)
    assert said in refused.value.format_message()


SAMPLING = [
    (name, option.type.min, option.type.max, option.type.min_open)
    for option in mode.params
    if (name := option.name) in Sampling.__dataclass_fields__
    and isinstance(option.type, click.FloatRange | click.IntRange)
]


def test_the_ranges_are_those_of_sampling(start: dict[str, Any]) -> None:
    """At their ends both take a value, beyond both refuse it."""
    assert len(SAMPLING) == 8
    for name, least, most, open_least in SAMPLING:
        for value in (least, most):
            if open_least and value == least:
                continue
            assert changed(start, f"{name.replace('_', '-')}={value}")[name] == value
            Sampling.from_map({"rule": "coupled", name: value})
        for value in (least if open_least else least - 1, most + 1):
            with pytest.raises(click.UsageError):
                changed(start, f"{name.replace('_', '-')}={value}")
            with pytest.raises(BadRequest):
                Sampling.from_map({"rule": "coupled", name: value})


def test_settings_are_told_as_mode_takes_them(start: dict[str, Any]) -> None:
    rows = dict(told(changed(start, "no-draft seed=7 stop=x")))
    assert rows["draft"] == "off"
    assert rows["max-tokens"] == "256"
    assert rows["objective"] == "default"
    assert rows["seed"] == "7"
    assert rows["stop"] == "'x'"
    assert rows["logit-bias"] == "none"


def test_rounds_are_what_the_edge_calls_so(start: dict[str, Any]) -> None:
    args = run_arguments(**changed(start, "rounds=4 logit-bias=5=-1.5"))
    assert args["patience_ms"] == "rounds"
    assert args["hint_tokens"] == args["ahead_tokens"] == 4
    assert args["logit_bias"] == [(5, -1.5)]
    assert "rounds" not in args
