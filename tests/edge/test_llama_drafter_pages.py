"""Drafting behind cells that came as pages agrees with drafting behind a prompt that was read here."""

from collections.abc import Iterator, Sequence

import pytest

from ecd.config import KvCache
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.llama_drafter import LlamaDrafter
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.errors import EngineError
from ecd.pages import RUN_TOKENS, Cells, Encoding, pack, unpack
from ecd.sampling import Guess, Sampling

GUESSES = 24
LENGTH = 400


@pytest.fixture(scope="module")
def prompt(draft: LlamaModel) -> list[int]:
    lines = (f"{n}. The {n * 3 % 17}th visitor bought {n * 5 % 11} apples and a book.\n" for n in range(60))
    return draft.tokenize("".join(lines), add_bos=True, parse_special=False)[:LENGTH]


@pytest.fixture(scope="module")
def here(draft: LlamaModel) -> Iterator[LlamaDrafter]:
    drafter = LlamaDrafter(draft, slots=2, context_tokens=1024, threads=1)
    yield drafter
    drafter.close()


@pytest.fixture
def there(draft: LlamaModel) -> Iterator[LlamaDrafter]:
    drafter = LlamaDrafter(draft, slots=2, context_tokens=1024, threads=1, kv_cache=KvCache())
    yield drafter
    drafter.close()


def drafted(
    drafter: LlamaDrafter, prompt: Sequence[int], slot: int = 0, text: Sequence[Guess] = ()
) -> list[Guess]:
    """What it guesses behind the prompt, each guess behind the one before, or behind those of `text`."""
    context: list[int] = list(prompt)
    guesses: list[Guess] = []
    while len(guesses) < GUESSES:
        (made,) = drafter.draft([DraftTask(slot, 0, context, len(prompt), len(prompt), Sampling())])
        guesses += made
        if made:
            context.append((text or guesses)[len(guesses) - 1].token)
    return guesses


def travelled(drafter: LlamaDrafter, cells: Cells, encoding: Encoding) -> list[Cells]:
    shape = drafter.shape
    assert shape is not None
    runs = [(first, cells[first : first + RUN_TOKENS]) for first in range(0, len(cells), RUN_TOKENS)]
    return [
        unpack(shape, encoding, first, first + len(part), pack(shape, encoding, first, part))
        for first, part in runs
    ]


@pytest.fixture(scope="module")
def local(here: LlamaDrafter, prompt: list[int]) -> tuple[list[Guess], Cells]:
    guesses = drafted(here, prompt)
    cells = here.take(0, prompt)
    assert cells is not None
    assert len(cells) == len(prompt)
    here.release(0)
    return guesses, cells


class Read:
    """Tokens that are evaluated meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        real = LlamaContext.decode

        def decode(context: LlamaContext, segments: Sequence[Segment]) -> object:
            self.tokens += sum(len(segment.tokens) for segment in segments)
            return real(context, segments)

        monkeypatch.setattr(LlamaContext, "decode", decode)


@pytest.mark.parametrize(("encoding", "alike"), [(Encoding.F16, GUESSES), (Encoding.Q8_0, GUESSES - 4)])
def test_guesses_agree_and_nothing_is_read_again(
    there: LlamaDrafter,
    prompt: list[int],
    local: tuple[list[Guess], Cells],
    monkeypatch: pytest.MonkeyPatch,
    encoding: Encoding,
    alike: int,
) -> None:
    guesses, cells = local
    there.put(1, prompt, travelled(there, cells, encoding))
    assert there.held(1) == len(prompt)
    read = Read(monkeypatch)
    found = drafted(there, prompt, slot=1, text=guesses)
    # The prompt's last token, whose logits are not among the pages, and then the guesses.
    assert read.tokens == GUESSES
    assert sum(a.token == b.token for a, b in zip(found, guesses, strict=True)) >= alike
    assert there.prefill(1) == Prefill(len(prompt))


def test_the_rest_of_a_text_is_read_behind_pages_of_its_beginning(
    there: LlamaDrafter, prompt: list[int], local: tuple[list[Guess], Cells], monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses, cells = local
    there.draft([DraftTask(0, 0, prompt, len(prompt), len(prompt), Sampling())])
    before = there.held(0)
    assert there.prefill(0) == Prefill(0, before)
    there.put(0, prompt[:300], [cells[:300]])
    assert there.prefill(0) == Prefill(300 - before, before)
    read = Read(monkeypatch)
    assert [g.token for g in drafted(there, prompt)] == [g.token for g in guesses]
    assert read.tokens == len(prompt) - 300 + GUESSES - 1
    assert there.prefill(0) == Prefill(300 - before, len(prompt) - 300 + before)


def test_pages_that_came_before_the_first_question_were_not_read(
    there: LlamaDrafter, prompt: list[int], local: tuple[list[Guess], Cells]
) -> None:
    _, cells = local
    there.put(0, prompt[:300], [cells[:300]])
    drafted(there, prompt)
    assert there.prefill(0) == Prefill(300, len(prompt) - 300)


def test_pages_of_another_text_are_found_not_to_be_this_ones(
    there: LlamaDrafter, prompt: list[int], local: tuple[list[Guess], Cells], monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses, cells = local
    other = [*prompt[:100], prompt[100] + 1, *prompt[101:]]
    there.put(0, other, [cells])
    read = Read(monkeypatch)
    assert [g.token for g in drafted(there, prompt)] == [g.token for g in guesses]
    assert read.tokens == len(prompt) - 100 + GUESSES - 1


def test_a_text_that_was_kept_makes_room_and_is_saved(
    there: LlamaDrafter, prompt: list[int], local: tuple[list[Guess], Cells]
) -> None:
    drafted(there, prompt[50:])
    there.release(0)
    assert there.stats()["kept_tokens"] > 0
    there.put(0, prompt, [local[1]])
    assert (there.stats()["kept_tokens"], there.stats()["saved_texts"]) == (0, 1)
    assert [g.token for g in drafted(there, prompt)] == [g.token for g in local[0]]


def test_what_does_not_fit_leaves_a_slot_that_reads_by_itself(
    there: LlamaDrafter, prompt: list[int], local: tuple[list[Guess], Cells]
) -> None:
    with pytest.raises(EngineError):
        there.put(0, prompt * 20, [local[1]] * 20)
    assert there.held(0) == 0
    assert [g.token for g in drafted(there, prompt)] == [g.token for g in local[0]]


def test_only_what_is_held_is_taken(here: LlamaDrafter, prompt: list[int]) -> None:
    assert here.take(1, prompt) is None
    here.draft([DraftTask(1, 0, prompt[:64], 64, 64, Sampling())])
    cells = here.take(1, [*prompt[:40], prompt[40] + 1, *prompt[41:]])
    assert cells is not None
    assert len(cells) == 40
    here.release(1)
