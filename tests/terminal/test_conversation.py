"""What lines of a chat mean, and what is remembered of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.errors import BadRequest
from ecd.terminal.conversation import Broken, Command, Conversation, Say, Verb, understood

RESULT = {"text": "Hello."}
BROKEN = Broken("Ctrl-C", ("target", "draft-accepted"))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("", None),
        ("  \n", None),
        ("Hi there", Say("Hi there")),
        (" /stats", Say(" /stats")),
        ("//etc/hosts", Say("/etc/hosts")),
        ("/stats", Command(Verb.STATS, "")),
        ("/q", Command(Verb.QUIT, "")),
        ("/mode  temperature=0.8 cost ", Command(Verb.MODE, "temperature=0.8 cost")),
    ],
)
def test_lines(line: str, meant: Say | Command | None) -> None:
    assert understood(line) == meant


@pytest.mark.parametrize("line", ["/", "/ ", "/x", "/statss", "/etc/hosts"])
def test_what_is_no_command_is_told_and_not_sent(line: str) -> None:
    with pytest.raises(BadRequest, match="is no command"):
        understood(line)


@pytest.mark.parametrize("verb", Verb)
def test_no_verb_hides_another(verb: Verb) -> None:
    assert understood(f"/{verb}") == Command(verb, "")


def test_every_turn_sends_all_that_was_said() -> None:
    talk = Conversation().answered("Hi.", "Hello.", RESULT)
    assert talk.asking("And?") == [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
    ]
    assert talk.last is RESULT


def test_half_an_answer_stays_with_what_is_known_of_it() -> None:
    talk = Conversation().answered("Hi.", "Hello.", RESULT).answered("Count.", "1, 2", BROKEN)
    assert talk.messages[-1] == {"role": "assistant", "content": "1, 2"}
    assert talk.last is BROKEN


def test_an_answer_that_never_began_leaves_no_question() -> None:
    before = Conversation().answered("Hi.", "Hello.", RESULT)
    after = before.answered("Count.", "", BROKEN)
    assert (after.messages, after.last) == (before.messages, BROKEN)


@given(st.lists(st.tuples(st.text(min_size=1), st.text(), st.booleans())))
def test_questions_and_answers_always_take_turns(turns: list[tuple[str, str, bool]]) -> None:
    talk = Conversation()
    for question, answer, complete in turns:
        talk = talk.answered(question, answer, RESULT if complete else BROKEN)
    roles = [message["role"] for message in talk.asking("?")]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
