"""The file of conversations, and the ones that come with ecd."""

import json
from pathlib import Path
from typing import Any

import pytest

from ecd.errors import BadRequest
from ecd.lab.ablation.conversations import Check, Conversation, Turn, digest, load_conversations
from ecd.lab.shipped import find_file


def loaded(folder: Path, *lines: Any) -> tuple[Conversation, ...]:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return load_conversations(file)


def test_prompts_and_messages_are_conversations(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        '"just a text"',
        "",
        {"class": "maths", "prompt": "1 + 1?", "check": {"number": "2"}},
        {
            "class": "chat",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Name a number.", "check": {"number": "7"}},
                {"content": "Why?"},
            ],
        },
    )
    assert found == (
        Conversation("", (Turn("just a text"),)),
        Conversation("maths", (Turn("1 + 1?", Check(number="2")),)),
        Conversation("chat", (Turn("Name a number.", Check(number="7")), Turn("Why?")), "Be brief."),
    )
    assert found[2].opening == [{"role": "system", "content": "Be brief."}]
    assert digest(found) != digest(found[:2])
    assert digest(found) == digest(loaded(tmp_path, *(tmp_path / "prompts.jsonl").read_text().split("\n")))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("5", "line 2: "),
        ({"class": "x"}, "give either prompt or messages"),
        ({"prompt": ""}, "prompt: "),
        ({"prompt": "x", "messages": [{"content": "y"}]}, "give either prompt or messages"),
        ({"prompt": "x", "check": {}}, "check: give either number or python"),
        ({"prompt": "x", "check": {"number": "seven"}}, r"check\.number"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, r"messages\.0\.role"),
        ({"messages": [{"role": "system", "content": "y"}]}, "must be the user's"),
        (
            {"messages": [{"content": "y"}, {"role": "system", "content": "y"}, {"content": "z"}]},
            "only the first",
        ),
        ({"messages": [{"content": "y"}], "check": {"number": "1"}}, "check goes to the message"),
        ({"prompt": "x", "chek": {}}, "chek is no setting"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, line: Any, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        loaded(tmp_path, '"good"', line)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has no prompts"):
        loaded(tmp_path, "", " ")
    with pytest.raises(BadRequest, match="cannot read"):
        load_conversations(tmp_path / "none")


def test_the_shipped_tasks_have_what_they_are_for() -> None:
    tasks = load_conversations(find_file("prompts", "tasks"))
    checks = [turn.check for task in tasks for turn in task.turns if turn.check]
    assert sum(check.python is not None for check in checks) == 8
    assert sum(check.number is not None for check in checks) == 20
    assert sum(len(task.turns) > 1 for task in tasks) == 6
