"""What a session takes over from texts that are over: its answer is the same, number by number."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.cloud.llama_verifier import LlamaVerifier
from ecd.cloud.verifier import Work
from ecd.config import KvCache, KvDisk
from ecd.engine.llama import LlamaContext, LlamaModel
from ecd.errors import EngineError
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Hint, Sampling

TEXT = "The history of computing is longer than most people think: counting boards, gears, relays, valves. "
QUESTION = "\nAnd what came after that? Tell me in a few words, please, and name one machine."
ANSWER = 80
IN_MEMORY = KvCache()


def never() -> bool:
    return False


Told = tuple[list[int], list[TokenLogprobs]]
Make = Callable[..., LlamaVerifier]


@pytest.fixture(scope="module")
def first(target: LlamaModel) -> list[int]:
    """150 tokens: two whole chunks, the second of which the last piece replaces in part."""
    return target.tokenize(TEXT * 8, add_bos=True, parse_special=False)[:150]


@pytest.fixture(scope="module")
def another(target: LlamaModel) -> list[int]:
    return target.tokenize("Nothing of all this is said here. " * 30, add_bos=True, parse_special=False)[:140]


@pytest.fixture
def make(target: LlamaModel) -> Iterator[Make]:
    """Verifiers, closed at the end."""
    made: list[LlamaVerifier] = []

    def verifier(
        sessions: int = 2, *, stable: bool = False, cache: KvCache | None = IN_MEMORY
    ) -> LlamaVerifier:
        made.append(
            LlamaVerifier(
                target,
                sessions=sessions,
                context_tokens=512,
                max_verify=8,
                threads=1,
                stable=stable,
                kv_cache=cache,
            )
        )
        return made[-1]

    yield verifier
    for each in made:
        each.close()


class Sessions:
    """Asks a verifier, one session after another unless told otherwise."""

    def __init__(self, verifier: LlamaVerifier) -> None:
        self.verifier = verifier
        self.cached: int | None = None
        self._keys = 0

    def begin(self, tokens: list[int], prompt_len: int | None = None, **changes: Any) -> "Session":
        self._keys += 1
        return Session(self, self._keys, list(tokens), prompt_len or len(tokens), changes)

    def ask(self, prompt: list[int], count: int = 8, **changes: Any) -> Told:
        """So many tokens, and their logprobs; `cached` is what was held when it began."""
        session = self.begin(prompt, **changes)
        told = session.go(count)
        session.end()
        return told


class Session:
    def __init__(
        self, sessions: Sessions, key: int, tokens: list[int], prompt_len: int, changes: Any
    ) -> None:
        self._of, self._key, self.tokens = sessions, key, tokens
        self._prompt_len, self._changes = prompt_len, changes

    def go(self, count: int, hints: list[int] | None = None) -> Told:
        ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        while len(ids) < count:
            offered = [Hint(token) for token in (hints or [])[len(ids) : len(ids) + 5]]
            work = Work(self._key, self.tokens, self._prompt_len, Sampling(), offered, 3, **self._changes)
            judged = self._of.verifier.step([work]).judged.get(self._key)
            if judged is not None:
                assert judged.logprobs is not None
                self._of.cached = judged.cached
                ids += judged.verdict.tokens
                logprobs += judged.logprobs
                self.tokens += judged.verdict.tokens
        return ids[:count], logprobs[:count]

    def end(self) -> None:
        self._of.verifier.forget(self._key)


@pytest.fixture(params=[False, True], ids=["batched", "stable"])
def stable(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


def turns(target: LlamaModel, first: list[int], said: list[int]) -> list[int]:
    """The prompt of the second turn."""
    return [*first, *said, *target.tokenize(QUESTION, add_bos=False, parse_special=False)]


def test_a_second_turn_goes_on_from_the_cells_of_the_first(
    target: LlamaModel, make: Make, first: list[int], stable: bool
) -> None:
    alone, talk = Sessions(make(stable=stable, cache=None)), Sessions(make(stable=stable))
    said = talk.ask(first, ANSWER)
    assert talk.cached == 0
    assert said == alone.ask(first, ANSWER)
    second = turns(target, first, said[0])
    assert talk.ask(second) == alone.ask(second)
    assert (talk.cached, alone.cached) == (64, 0)
    stats = talk.verifier.stats()
    assert (stats["cached_tokens"], stats["prefill_tokens"]) == (64, len(first) + len(second) - 64)
    assert stats["hits"] == 1


def test_a_prompt_that_is_given_up_counts_as_far_as_it_was_read(make: Make, first: list[int]) -> None:
    verifier = make()
    verifier.step([Work(1, first, len(first), Sampling(), [])])
    verifier.forget(1)
    assert verifier.stats()["prefill_tokens"] == 64 < len(first)
    talk = Sessions(verifier)
    talk.begin(first, fresh=True).go(9)
    assert verifier.stats()["prefill_tokens"] == 64 + len(first)


def test_what_one_tenant_asked_saves_another_nothing(
    make: Make, first: list[int], another: list[int]
) -> None:
    """Whether the text is still in the cells of a session that runs, of one that is over, or in memory."""
    talk = Sessions(make())
    running = talk.begin(first, tenant="berlin")
    running.go(1)
    said = talk.ask(first, tenant="paris")
    assert talk.cached == 0
    assert talk.ask(first, tenant="paris") == said
    assert talk.cached == 64
    running.end()
    while talk.verifier.prepare(never):
        pass
    assert talk.ask(first, tenant="rome") == said
    assert talk.cached == 0
    for tenant in ("berlin", "paris"):
        talk.ask(another, tenant=tenant)
    assert talk.verifier.stats()["saved_texts"] > 0
    assert talk.ask(first, tenant="oslo") == said
    assert talk.cached == 0
    assert talk.ask(first, tenant="rome") == said
    assert talk.cached >= 64


def test_an_answer_that_was_read_again_in_idle_time_serves_whole(
    target: LlamaModel, make: Make, first: list[int], stable: bool
) -> None:
    alone, talk = Sessions(make(stable=stable, cache=None)), Sessions(make(stable=stable))
    said, _ = talk.ask(first, ANSWER)
    chunks = 0
    while talk.verifier.prepare(never):
        chunks += 1
    # The last token was never evaluated.
    assert chunks == (len(first) + ANSWER - 1) // 64 - 1 == 2
    assert talk.verifier.stats()["prepared_tokens"] == 128
    second = turns(target, first, said)
    assert talk.ask(second) == alone.ask(second)
    assert talk.cached == 192


def test_a_text_that_is_only_partly_read_again_serves_as_far_as_it_is(
    target: LlamaModel, make: Make, first: list[int]
) -> None:
    alone, talk = Sessions(make(cache=None)), Sessions(make())
    said, _ = talk.ask(first, ANSWER)
    assert talk.verifier.prepare(never)
    second = turns(target, first, said)
    assert talk.ask(second) == alone.ask(second)
    assert talk.cached == 128


def test_where_the_texts_part_nothing_is_taken_over_from_there_on(make: Make, first: list[int]) -> None:
    alone, talk = Sessions(make(cache=None)), Sessions(make())
    talk.ask(first)
    while talk.verifier.prepare(never):
        pass
    for prompt in ([*first[:100], *first[20:90]], first[:130], first[:64], first[:65], [5, *first], first):
        assert talk.ask(prompt) == alone.ask(prompt), len(prompt)


def test_what_had_to_give_way_comes_back_from_memory(
    target: LlamaModel, make: Make, first: list[int], another: list[int]
) -> None:
    alone, talk = Sessions(make(1, cache=None)), Sessions(make(1))
    said, _ = talk.ask(first, ANSWER)
    talk.ask(another)
    assert talk.cached == 0
    assert talk.verifier.stats()["saved_texts"] == 1
    second = turns(target, first, said)
    assert talk.ask(second) == alone.ask(second)
    assert talk.cached == 64


def test_and_from_a_disk_after_a_restart(
    target: LlamaModel, make: Make, first: list[int], another: list[int], tmp_path: Path
) -> None:
    cache = KvCache(disk=KvDisk(path=tmp_path))
    before = LlamaVerifier(
        target, sessions=1, context_tokens=512, max_verify=8, threads=1, stable=False, kv_cache=cache
    )
    talk = Sessions(before)
    said, _ = talk.ask(first, ANSWER)
    while before.prepare(never):
        pass
    talk.ask(another)
    before.close()
    alone, talk = Sessions(make(1, cache=None)), Sessions(make(1, cache=cache))
    assert talk.verifier.stats()["disk_texts"] == 2
    second = turns(target, first, said)
    assert talk.ask(second) == alone.ask(second)
    assert talk.cached == 192
    assert talk.ask([*another, *first[:9]]) == alone.ask([*another, *first[:9]])
    assert talk.cached == 64


def test_a_session_takes_over_what_another_one_has_just_read(make: Make, first: list[int]) -> None:
    alone, talk = Sessions(make(cache=None)), Sessions(make())
    running = talk.begin(first)
    running.go(3)
    prompt = [*first[:140], *first[:20]]
    assert talk.ask(prompt) == alone.ask(prompt)
    assert talk.cached == 64
    rest = running.go(5)
    assert rest[0] == alone.ask(first)[0][3:]


def test_a_session_that_was_cut_off_goes_on_where_it_was(make: Make, first: list[int], stable: bool) -> None:
    alone, talk = Sessions(make(stable=stable, cache=None)), Sessions(make(stable=stable))
    expected, logprobs = alone.ask(first, 40)
    session = talk.begin(first)
    # With hints right and wrong, whose cells are dropped again.
    told, _ = session.go(20, hints=[*expected[:7], 5, 6, *expected[9:20]])
    session.end()
    assert told == expected[:20]
    again = talk.begin(first + told, len(first))
    assert again.go(20) == (expected[20:], logprobs[20:])
    assert talk.cached == len(first) + 19


def test_whoever_wants_it_fresh_reads_it_all(make: Make, first: list[int]) -> None:
    talk = Sessions(make())
    said = talk.ask(first)
    assert talk.ask(first, fresh=True) == said
    assert talk.cached == 0
    assert talk.ask(first) == said
    assert talk.cached == 64


def test_without_a_cache_nothing_is_kept(make: Make, first: list[int]) -> None:
    talk = Sessions(make(cache=None))
    talk.ask(first)
    assert not talk.verifier.prepare(never)
    talk.ask(first)
    assert talk.cached == 0
    assert not talk.verifier.stats()["hits"]


def test_a_failed_step_leaves_nothing_to_take_over(
    make: Make, first: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, talk = Sessions(make(cache=None)), Sessions(make())
    session = talk.begin(first)
    session.go(5)

    def fail(*args: object) -> None:
        raise EngineError("no")

    with monkeypatch.context() as patched:
        patched.setattr(LlamaContext, "decode", fail)
        with pytest.raises(EngineError):
            session.go(1)
    session.end()
    assert talk.ask(first) == alone.ask(first)
    assert talk.cached == 0


def test_sessions_beside_each_other_with_little_room_all_get_their_own_text(
    target: LlamaModel, make: Make, first: list[int], another: list[int]
) -> None:
    """Four conversations on two places, with room in memory for about two of their texts."""
    alone = Sessions(make(cache=None))
    talk = Sessions(make(cache=KvCache(max_bytes=10 << 20)))
    chats = [first, another, [*first[:70], *another[:70]], [*another[:64], *first[:64]]]
    for turn in range(2):
        for pair in ((0, 1), (2, 3), (1, 3)):
            sessions = [talk.begin(chats[number]) for number in pair]
            told = [session.go(6) for session in sessions]
            for session, number, mine in zip(sessions, pair, told, strict=True):
                session.end()
                assert mine == alone.ask(chats[number], 6), (turn, number)
                chats[number] = [*chats[number], *mine[0], *first[turn : turn + 30]]
        talk.verifier.prepare(never)
    assert talk.verifier.stats()["hits"] >= 6


def test_work_in_idle_time_is_given_up_when_somebody_comes(
    target: LlamaModel, make: Make, first: list[int]
) -> None:
    alone, talk = Sessions(make(cache=None)), Sessions(make())
    said, _ = talk.ask(first, ANSWER)
    asked = 0

    def soon() -> bool:
        nonlocal asked
        asked += 1
        return asked > 50

    assert talk.verifier.prepare(soon)
    assert asked == 51
    assert talk.verifier.stats()["prepared_tokens"] == 0
    second = turns(target, first, said)
    assert talk.ask(second) == alone.ask(second)
    assert talk.cached == 64
