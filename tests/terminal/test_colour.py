"""Text as a terminal may show it."""

import io
import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.control_characters import CONTROL_IN_TEXT
from ecd.terminal.colour import (
    STYLES,
    coloured,
    harmless,
    json_line,
    key,
    legend,
    wants_colour,
)
from ecd.wire.messages import Origin

GREEN, RESET = "\x1b[32m", "\x1b[0m"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_origin_has_a_look_of_its_own() -> None:
    assert set(STYLES) == {origin.label for origin in Origin}
    looks = [click.style("x", **style) for style in STYLES.values()]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "0"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    stream: io.StringIO, environment: dict[str, str], wanted: bool
) -> None:
    assert wants_colour(stream, environment) is wanted


def test_each_token_has_the_colour_of_its_origin_and_neighbours_share_it() -> None:
    event = {
        "origins": ["draft-accepted", "draft-accepted", "target"],
        "pieces": ["def", " f", "():\n"],
    }
    assert coloured(event) == f"{GREEN}def f{RESET}():\n{RESET}"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(STYLES)),
            st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=5),
        )
    )
)
def test_without_the_colours_it_is_the_text(parts: list[tuple[str, str]]) -> None:
    event = {"origins": [origin for origin, _ in parts], "pieces": [text for _, text in parts]}
    assert click.unstyle(coloured(event)) == "".join(text for _, text in parts)


@given(st.text())
def test_nothing_that_a_terminal_would_obey_is_left(text: str) -> None:
    shown = harmless(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        obeyed = (before < " " and before not in "\t\n") or "\x7f" <= before <= "\x9f"
        assert after == ("\N{REPLACEMENT CHARACTER}" if obeyed else before)


def test_an_answer_cannot_bring_its_own_colours() -> None:
    event = {"origins": ["target"], "pieces": ["\x1b[32mgreen\x1b]52;c;eA==\x07"]}
    assert GREEN not in coloured(event)
    assert "\x07" not in coloured(event)


def test_the_legend_counts_what_is_there() -> None:
    line = legend(["target", "draft-accepted", "draft-accepted", "draft-accepted"])
    assert click.unstyle(line) == "target 1 (25%)  draft-accepted 3 (75%)"
    assert legend([]) == ""
    assert click.unstyle(key()) == "target  draft-accepted  edge-confident  edge-offline"


@given(st.text())
def test_json_moves_no_cursor_and_says_the_same(text: str) -> None:
    line = json_line({"text": text})
    assert not CONTROL_IN_TEXT.search(line)
    assert json.loads(line) == {"text": text}


def test_json_keeps_what_can_be_read() -> None:
    assert json_line("人 \x9b2J\x1b\x7f") == '"人 \\u009b2J\\u001b\\u007f"'
