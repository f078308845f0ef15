"""The draft model at work: lines of one text share their cells, whichever way they fork."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ecd.config import KvCache, KvDisk
from ecd.edge.confidence import Confidence, Strategy
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.llama_drafter import BATCH_TOKENS, BRANCHES, MAX_SEQUENCES, LlamaDrafter
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS
from ecd.sampling import Guess, Rule, Sampling, guess

TEXT = "The history of computing is longer than most people think: counting boards, gears, relays. "
Draft = Callable[..., list[tuple[Guess, ...]]]


@pytest.fixture(scope="module")
def tokens(draft: LlamaModel) -> list[int]:
    return draft.tokenize(TEXT * 20, add_bos=True, parse_special=False)[:300]


@pytest.fixture
def drafter(draft: LlamaModel) -> Iterator[LlamaDrafter]:
    drafter = LlamaDrafter(draft, slots=3, context_tokens=512, threads=1)
    yield drafter
    drafter.close()


class Decoded:
    """How many tokens each call evaluates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[int]] = []
        real = LlamaContext.decode

        def decode(context: LlamaContext, segments: Sequence[Segment]) -> object:
            self.calls.append([len(segment.tokens) for segment in segments])
            return real(context, segments)

        monkeypatch.setattr(LlamaContext, "decode", decode)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    return Decoded(monkeypatch)


def task(context: list[int], slot: int = 0, branch: int = 0, **changes: object) -> DraftTask:
    return DraftTask(slot, branch, context, 1, 1, Sampling(), **changes)  # type: ignore[arg-type]


def finish(drafter: LlamaDrafter, *tasks: DraftTask) -> list[Guess]:
    """Asks until all prompts are read."""
    found: dict[int, Guess] = {}
    while len(found) < len(tasks):
        left = [index for index in range(len(tasks)) if index not in found]
        for index, made in zip(left, drafter.draft([tasks[index] for index in left]), strict=True):
            if made:
                (found[index],) = made
    return [found[index] for index in range(len(tasks))]


def afresh(model: LlamaModel, context: list[int]) -> Guess:
    """What a drafter says that has seen nothing before."""
    drafter = LlamaDrafter(model, slots=1, context_tokens=512, threads=1)
    (made,) = finish(drafter, task(context))
    drafter.close()
    return made


def assert_same(made: Guess, expected: Guess) -> None:
    """Products differ a little with the shape of the batch."""
    assert made.token == expected.token
    assert made.confidence == pytest.approx(expected.confidence, abs=0.02)


def test_it_guesses_what_the_model_thinks_likely(
    draft: LlamaModel, drafter: LlamaDrafter, tokens: list[int]
) -> None:
    context = LlamaContext(draft, n_ctx=128, n_seq=1, n_batch=64, threads=1)
    (rows,) = context.decode([Segment(0, 0, tokens[:40], 1)])
    expected = guess(rows[0], Sampling(), 40, tokens[:40], 1)
    context.close()
    (made,) = finish(drafter, task(tokens[:40]))
    assert_same(made, expected)
    assert made.drafter == "model"
    assert made.second not in (None, made.token)


def test_confidence_is_by_the_strategy_that_was_asked_for(draft: LlamaModel, tokens: list[int]) -> None:
    def confidence(strategy: Strategy) -> float:
        drafter = LlamaDrafter(
            draft, slots=1, context_tokens=512, threads=1, confidence=Confidence(strategy, temperature=2.0)
        )
        (made,) = finish(drafter, task(tokens[:40]))
        drafter.close()
        return made.confidence

    sure = {strategy: confidence(strategy) for strategy in Strategy}
    assert sure[Strategy.NONE] == 1
    assert sure[Strategy.TEMPERATURE] < sure[Strategy.MAX_PROB] < sure[Strategy.TOP_K_AGG]
    assert len(set(sure.values())) == len(Strategy)


def test_a_line_that_goes_on_evaluates_its_new_token_only(
    drafter: LlamaDrafter, tokens: list[int], decoded: Decoded
) -> None:
    finish(drafter, task(tokens[:30]))
    for end in (31, 32, 33):
        drafter.draft([task(tokens[:end])])
    assert decoded.calls == [[30], [1], [1], [1]]


def test_a_fork_evaluates_what_is_new_behind_it(
    draft: LlamaModel, drafter: LlamaDrafter, tokens: list[int], decoded: Decoded
) -> None:
    finish(drafter, task(tokens[:40]))
    other = [*tokens[:25], tokens[50], tokens[51]]
    (made,) = finish(drafter, task(other))
    assert decoded.calls == [[40], [2]]
    assert_same(made, afresh(draft, other))


def test_branches_share_the_cells_before_them_and_go_in_one_batch(
    draft: LlamaModel, drafter: LlamaDrafter, tokens: list[int], decoded: Decoded
) -> None:
    finish(drafter, task(tokens[:60]))
    lines = [tokens[:61], [*tokens[:50], tokens[70]], [*tokens[:55], tokens[80]]]
    made = finish(drafter, *(task(line, branch=branch) for branch, line in enumerate(lines)))
    longer = [[*line, guess.token] for line, guess in zip(lines, made, strict=True)]
    again = finish(drafter, *(task(line, branch=branch) for branch, line in enumerate(longer)))
    assert [sorted(call) for call in decoded.calls] == [[60], [1, 1, 1], [1, 1, 1]]
    for line, said in zip([*lines, *longer], [*made, *again], strict=True):
        assert_same(said, afresh(draft, line))


def test_switching_to_a_branch_costs_nothing_and_says_the_same(
    draft: LlamaModel, drafter: LlamaDrafter, tokens: list[int], decoded: Decoded
) -> None:
    branch = [*tokens[:50], tokens[70], tokens[71]]
    finish(drafter, task(tokens[:60]), task(branch, branch=1))
    read = len(decoded.calls)
    # The branch has become the main line, and is left by another one in turn.
    main, other = [*branch, tokens[72]], [*branch[:-1], tokens[90]]
    made = finish(drafter, task(main), task(other, branch=1))
    assert [sorted(call) for call in decoded.calls[read:]] == [[1, 1]]
    assert_same(made[0], afresh(draft, main))
    assert_same(made[1], afresh(draft, other))


def test_rolling_one_line_back_leaves_the_others(
    draft: LlamaModel, drafter: LlamaDrafter, tokens: list[int]
) -> None:
    branch = [*tokens[:50], tokens[70]]
    finish(drafter, task(tokens[:60]), task(branch, branch=1))
    finish(drafter, task([*tokens[:20], tokens[5]]))
    longer = [*branch, tokens[71]]
    assert_same(finish(drafter, task(longer, branch=1))[0], afresh(draft, longer))


def test_a_long_prompt_is_read_in_several_calls_beside_others(
    draft: LlamaModel, drafter: LlamaDrafter, tokens: list[int], decoded: Decoded
) -> None:
    finish(drafter, task(tokens[:20], slot=1))
    said, calls = [], 0
    long: tuple[Guess, ...] = ()
    while not long:
        line = [*tokens[:20], *(guess.token for guess in said)]
        long, (quick,) = drafter.draft([task(tokens), task(line, slot=1)])
        said.append(quick)
        calls += 1
    assert calls == -(-300 // PROMPT_CHUNK_TOKENS)
    assert all(sum(call) <= BATCH_TOKENS for call in decoded.calls)
    assert_same(long[0], afresh(draft, tokens))
    assert_same(said[-1], afresh(draft, [*tokens[:20], *(guess.token for guess in said[:-1])]))


def test_many_long_prompts_share_the_room(drafter: LlamaDrafter, tokens: list[int], decoded: Decoded) -> None:
    finish(drafter, *(task(tokens[: 200 + slot], slot=slot) for slot in range(3)))
    assert all(sum(call) <= BATCH_TOKENS for call in decoded.calls)
    assert len(decoded.calls) <= 8


def test_a_released_slot_begins_anew(
    draft: LlamaModel, drafter: LlamaDrafter, tokens: list[int], decoded: Decoded
) -> None:
    finish(drafter, task(tokens[:40]), task([*tokens[:30], tokens[70]], branch=1), task(tokens[:40], slot=1))
    drafter.release(0)
    read = len(decoded.calls)
    finish(drafter, task(tokens[:40]), task(tokens[:41], slot=1))
    assert [sorted(call) for call in decoded.calls[read:]] == [[1, 40]], "the other slot's is still there"


def test_slots_can_all_be_full(draft: LlamaModel, tokens: list[int]) -> None:
    drafter = LlamaDrafter(draft, slots=2, context_tokens=128, threads=1)
    for _ in range(3):
        lines = [task(tokens[slot : slot + 127], slot=slot) for slot in range(2)]
        finish(drafter, *lines)
        finish(
            drafter,
            *(
                task([*line.context[:120], *tokens[200:207]], line.slot, branch)
                for line in lines
                for branch in (1, 2)
            ),
        )
        for slot in range(2):
            drafter.release(slot)
    drafter.close()


def test_where_the_model_may_not_be_run_it_is_not(
    drafter: LlamaDrafter, tokens: list[int], decoded: Decoded
) -> None:
    """It has nothing to copy from, and a quiet controller must not be made to pay for it."""
    quiet, asked = drafter.draft([task(tokens[:30], model=False), task(tokens[:30], slot=1)])
    assert (quiet, len(asked), decoded.calls) == ((), 1, [[30]])
    assert drafter.draft([task(tokens[:30], model=False)]) == [()]


def test_under_rejection_it_ships_its_distribution(drafter: LlamaDrafter, tokens: list[int]) -> None:
    sampling = Sampling(Rule.REJECTION, 5, 1.0)
    ((made,),) = drafter.draft([DraftTask(0, 0, tokens[:30], 1, 30, sampling)])
    assert made.q is not None
    assert made.token in made.q.ids
    assert made.second is None


def test_many_slots_have_fewer_branches(draft: LlamaModel) -> None:
    wide = LlamaDrafter(draft, slots=MAX_SEQUENCES // 2, context_tokens=64, threads=1)
    assert (BRANCHES, wide.branches) == (3, 2)
    wide.close()


class TestTextsThatAreOver:
    """The second turn of a conversation, and other texts that begin alike."""

    @pytest.fixture
    def keeping(self, draft: LlamaModel) -> Iterator[LlamaDrafter]:
        drafter = LlamaDrafter(draft, slots=3, context_tokens=512, threads=1, kv_cache=KvCache())
        yield drafter
        drafter.close()

    @pytest.fixture
    def second(self, tokens: list[int]) -> list[int]:
        return [*tokens[:150], *tokens[200:220]]

    @pytest.mark.parametrize("slot", [0, 2])
    def test_a_second_turn_reads_what_is_new_in_whichever_slot(
        self,
        draft: LlamaModel,
        keeping: LlamaDrafter,
        tokens: list[int],
        second: list[int],
        decoded: Decoded,
        slot: int,
    ) -> None:
        finish(keeping, task(tokens[:150]))
        assert keeping.prefill(0) == Prefill(0, 150)
        keeping.release(0)
        assert keeping.stats()["kept_tokens"] == 150
        read = len(decoded.calls)
        (made,) = finish(keeping, task(second, slot=slot))
        assert decoded.calls[read:] == [[20]]
        assert keeping.prefill(slot) == Prefill(150, 20)
        assert_same(made, afresh(draft, second))

    def test_the_beginning_of_a_text_serves_and_the_rest_is_saved(
        self, draft: LlamaModel, keeping: LlamaDrafter, tokens: list[int], second: list[int], decoded: Decoded
    ) -> None:
        finish(keeping, task(tokens[:250]))
        keeping.release(0)
        other = [*tokens[:100], *tokens[20:30]]
        (made,) = finish(keeping, task(other))
        assert decoded.calls[-1] == [10]
        assert_same(made, afresh(draft, other))
        assert keeping.stats()["saved_texts"] == 1
        keeping.release(0)
        longer = [*tokens[:250], tokens[7]]
        (made,) = finish(keeping, task(longer))
        assert keeping.prefill(0) == Prefill(250, 1)
        assert_same(made, afresh(draft, longer))

    def test_only_the_last_text_stays_in_the_cells_and_the_others_come_back(
        self, draft: LlamaModel, keeping: LlamaDrafter, tokens: list[int], second: list[int], decoded: Decoded
    ) -> None:
        another = tokens[100:250]
        finish(keeping, task(tokens[:150]), task(another, slot=1))
        keeping.release(0)
        keeping.release(1)
        assert keeping.stats()["kept_tokens"] == 150
        assert keeping.stats()["saved_texts"] == 1
        for text, last in ((tokens[:150], tokens[150]), (another, tokens[250]), (tokens[:150], tokens[150])):
            longer = [*text, last]
            (made,) = finish(keeping, task(longer))
            assert keeping.prefill(0) == Prefill(150, 1)
            assert_same(made, afresh(draft, longer))
            keeping.release(0)

    def test_texts_that_run_beside_each_other_share_their_beginning(
        self, draft: LlamaModel, keeping: LlamaDrafter, tokens: list[int], second: list[int]
    ) -> None:
        finish(keeping, task(tokens[:150]))
        (made,) = finish(keeping, task(second, slot=1))
        assert keeping.prefill(1) == Prefill(150, 20)
        assert_same(made, afresh(draft, second))
        keeping.release(1)
        assert_same(finish(keeping, task(tokens[:151]))[0], afresh(draft, tokens[:151]))

    def test_alternates_of_a_text_that_was_taken_over_share_it_too(
        self, draft: LlamaModel, keeping: LlamaDrafter, tokens: list[int], second: list[int], decoded: Decoded
    ) -> None:
        finish(keeping, task(tokens[:150]))
        keeping.release(0)
        branch = [*second[:165], tokens[90]]
        made = finish(keeping, task(second), task(branch, branch=1))
        assert_same(made[0], afresh(draft, second))
        assert_same(made[1], afresh(draft, branch))

    def test_what_is_counted_is_what_was_read_until_now(
        self, keeping: LlamaDrafter, tokens: list[int]
    ) -> None:
        (made,) = keeping.draft([task(tokens[:200])])
        assert made == ()
        assert keeping.prefill(0) == Prefill(0, keeping.held(0))
        assert 0 < keeping.held(0) < 200
        finish(keeping, task(tokens[:200]))
        finish(keeping, task(tokens[:203]))
        assert keeping.prefill(0) == Prefill(0, 200), "what follows is the answer"

    def test_what_was_guessed_wrong_is_not_taken_for_the_text(
        self, draft: LlamaModel, keeping: LlamaDrafter, tokens: list[int]
    ) -> None:
        finish(keeping, task([*tokens[:100], 5, 6, 7]))
        keeping.release(0)
        (made,) = finish(keeping, task(tokens[:110]))
        assert keeping.prefill(0) == Prefill(100, 10)
        assert_same(made, afresh(draft, tokens[:110]))

    def test_they_survive_a_restart_on_a_disk(
        self, draft: LlamaModel, tokens: list[int], second: list[int], tmp_path: Path
    ) -> None:
        def made() -> LlamaDrafter:
            cache = KvCache(disk=KvDisk(path=tmp_path))
            return LlamaDrafter(draft, slots=2, context_tokens=512, threads=1, kv_cache=cache)

        drafter = made()
        finish(drafter, task(tokens[:150]), task(tokens[60:200], slot=1))
        drafter.release(0)
        drafter.close()  # with one text that is over and one that is not
        drafter = made()
        assert drafter.stats()["disk_texts"] == 2
        (guess,) = finish(drafter, task(second))
        assert drafter.prefill(0) == Prefill(150, 20)
        assert_same(guess, afresh(draft, second))
        drafter.close()

    def test_whoever_wants_it_fresh_reads_it_all(
        self, keeping: LlamaDrafter, tokens: list[int], second: list[int]
    ) -> None:
        finish(keeping, task(tokens[:150]))
        keeping.release(0)
        finish(keeping, task(second, fresh=True))
        assert keeping.prefill(0) == Prefill(0, 170)

    def test_a_slot_that_never_asked_the_model_leaves_what_is_kept_alone(
        self, keeping: LlamaDrafter, tokens: list[int], second: list[int]
    ) -> None:
        finish(keeping, task(tokens[:150]))
        keeping.release(0)
        keeping.draft([task(tokens[:30], model=False)])
        assert keeping.prefill(0) == Prefill()
        keeping.release(0)
        finish(keeping, task(second))
        assert keeping.prefill(0) == Prefill(150, 20)

    def test_all_slots_can_be_full_beside_what_is_kept(self, draft: LlamaModel, tokens: list[int]) -> None:
        drafter = LlamaDrafter(draft, slots=2, context_tokens=128, threads=1, kv_cache=KvCache())
        for turn in range(3):
            lines = [task(tokens[turn + 50 * slot :][:127], slot=slot) for slot in range(2)]
            finish(drafter, *lines)
            for slot in range(2):
                drafter.release(slot)
        drafter.close()

    def test_without_a_cache_nothing_is_kept(self, drafter: LlamaDrafter, tokens: list[int]) -> None:
        finish(drafter, task(tokens[:150]))
        drafter.release(0)
        assert drafter.stats() == {}
        finish(drafter, task(tokens[:150]))
        assert drafter.prefill(0) == Prefill(0, 150)
