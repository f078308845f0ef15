"""Answers whose streams the cloud ends, as conversations: (code, tokens of the answer committed by then)."""

import pytest

from ecd.edge.reopening import MAX_ENGINE_LOSSES, Reopen, Reopening
from ecd.errors import Code


def talk(*resets: tuple[Code, int], elsewhere: bool = False) -> list[Reopen]:
    reopening = Reopening()
    return [reopening.after(code, committed, elsewhere) for code, committed in resets]


@pytest.mark.parametrize("committed", [0, 5])
def test_an_engine_that_fails_without_a_token_between_is_given_up_after_three(committed: int) -> None:
    lost = (Code.ENGINE_RESTARTED, committed)
    assert MAX_ENGINE_LOSSES == 3
    assert talk(*[lost] * 5) == [Reopen.NOW] * 3 + [Reopen.NEVER] * 2


def test_every_token_gives_the_engine_another_chance() -> None:
    resets = [(Code.ENGINE_RESTARTED, committed) for committed in (0, 0, 0, 1, 1, 1, 2, 2, 2, 2)]
    assert talk(*resets) == [Reopen.NOW] * 9 + [Reopen.NEVER]


def test_a_drain_between_does_not_make_the_engine_well() -> None:
    lost, drained = (Code.ENGINE_RESTARTED, 4), (Code.DRAINING, 4)
    assert talk(lost, drained, lost, lost, lost) == [
        Reopen.NOW,
        Reopen.LATER,
        Reopen.NOW,
        Reopen.NOW,
        Reopen.NEVER,
    ]


@pytest.mark.parametrize("committed", [0, 3])
def test_a_draining_cloud_is_not_asked_again_at_once(committed: int) -> None:
    assert talk((Code.DRAINING, committed)) == [Reopen.LATER]


def test_a_busy_cloud_is_asked_again_by_those_that_have_begun() -> None:
    assert talk((Code.BUSY, 0)) == [Reopen.NEVER]
    assert talk((Code.BUSY, 1)) == [Reopen.LATER]


@pytest.mark.parametrize("committed", [0, 3])
def test_a_prompt_that_is_not_known_is_sent_whole_and_once(committed: int) -> None:
    reopening = Reopening()
    assert not reopening.whole
    assert reopening.after(Code.UNKNOWN_PREFIX, committed, elsewhere=False) is Reopen.NOW
    assert reopening.whole
    assert reopening.after(Code.UNKNOWN_PREFIX, committed, elsewhere=False) is Reopen.NEVER


@pytest.mark.parametrize("code", [Code.BUSY, Code.DRAINING])
@pytest.mark.parametrize("committed", [0, 3])
def test_another_cloud_takes_it_at_once(code: Code, committed: int) -> None:
    assert talk((code, committed), elsewhere=True) == [Reopen.NOW]


def test_another_cloud_does_not_make_a_bad_request_good() -> None:
    assert talk((Code.BAD_REQUEST, 0), elsewhere=True) == [Reopen.NEVER]


REOPENED = {Code.ENGINE_RESTARTED, Code.DRAINING, Code.BUSY, Code.UNKNOWN_PREFIX}


@pytest.mark.parametrize("code", sorted(set(Code) - REOPENED), ids=lambda code: code.name)
def test_any_other_end_is_the_end(code: Code) -> None:
    assert talk((code, 7)) == [Reopen.NEVER]
