"""The target on llama.cpp: its logprobs are the oracle's, whatever is hinted and whoever is beside it."""

from collections.abc import Callable, Iterator

import pytest

from ecd.cloud.llama_verifier import LlamaVerifier
from ecd.cloud.verifier import Judged, Work
from ecd.engine.llama import LlamaModel
from ecd.logprobs import TokenLogprobs
from ecd.oracle import OracleAnswer, generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Hint, Sampling

# In natural logarithms. The weights are quantised, where batches of another shape give the same logits.
TOLERANCE = 1e-5
TOP = 3
TOKENS = 24
SETTINGS = {
    "greedy": Sampling(),
    "greedy with penalties": Sampling(
        repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.5, logit_bias=((1, -50.0),)
    ),
    "coupled": Sampling.of("coupled", 0.8, seed=3),
    "coupled with all": Sampling.of("coupled", 0.7, seed=4, top_k=40, top_p=0.9, repetition_penalty=1.2),
}
# Of the text that follows: guesses for it.
HINTS: dict[str, Callable[[list[int]], list[int]]] = {
    "none": lambda coming: [],
    "right": lambda coming: coming[:4],
    "wrong": lambda coming: [(token + 1) % 1000 for token in coming[:3]],
    "wrong at last": lambda coming: [*coming[:2], 17, 18],
}


@pytest.fixture(scope="module", params=[False, True], ids=["batched", "stable"])
def verifier(target: LlamaModel, request: pytest.FixtureRequest) -> Iterator[LlamaVerifier]:
    engine = LlamaVerifier(
        target, sessions=2, context_tokens=256, max_verify=8, threads=1, stable=request.param
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompt(target: LlamaModel) -> tuple[int, ...]:
    return prompt_tokens(target, "List five facts about the Moon.", chat=True)


@pytest.fixture(scope="module")
def alone(target: LlamaModel, prompt: tuple[int, ...]) -> dict[str, OracleAnswer]:
    return {
        name: generate(target, prompt, sampling, max_tokens=TOKENS, stop=(), threads=1, logprobs=TOP)
        for name, sampling in SETTINGS.items()
    }


def answer(
    verifier: LlamaVerifier,
    prompt: tuple[int, ...],
    sampling: Sampling,
    hints: Callable[[list[int]], list[int]],
    expected: tuple[int, ...],
) -> tuple[list[int], list[TokenLogprobs]]:
    """What the verifier commits, beside a session that wants no logprobs."""
    tokens, beside = list(prompt), list(prompt[:-1])
    told: list[TokenLogprobs] = []
    while len(tokens) - len(prompt) < len(expected):
        coming = list(expected[len(tokens) - len(prompt) :])
        work = [
            Work(1, tokens, len(prompt), sampling, [Hint(token) for token in hints(coming)], TOP),
            Work(2, beside, len(prompt) - 1, Sampling(), []),
        ]
        judged = verifier.step(work).judged
        other = judged.get(2, None)
        if other is not None:
            assert other.logprobs is None
            beside.extend(other.verdict.tokens)
        match judged.get(1):
            case Judged(verdict, _, logprobs) if logprobs is not None:
                assert len(logprobs) == len(verdict.tokens)
                tokens.extend(verdict.tokens)
                told.extend(logprobs)
            case wrong:
                assert wrong is None
    for key in (1, 2):
        verifier.forget(key)
    return tokens[len(prompt) :], told


@pytest.mark.parametrize("hinted", HINTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_logprobs_are_those_of_the_target_alone(
    verifier: LlamaVerifier,
    prompt: tuple[int, ...],
    alone: dict[str, OracleAnswer],
    settings: str,
    hinted: str,
) -> None:
    expected = alone[settings]
    ids, told = answer(verifier, prompt, SETTINGS[settings], HINTS[hinted], expected.token_ids)
    length = len(expected.token_ids)
    assert tuple(ids[:length]) == expected.token_ids
    assert expected.logprobs is not None
    for mine, theirs in zip(told[:length], expected.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=TOLERANCE)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
        assert [v for _, v in mine.top] == pytest.approx([v for _, v in theirs.top], abs=TOLERANCE)


def test_they_are_of_the_raw_distribution(prompt: tuple[int, ...], alone: dict[str, OracleAnswer]) -> None:
    """What greedy takes without penalties is the likeliest; with them, and when drawing, it need not be."""

    def likeliest(name: str) -> list[bool]:
        told = alone[name].logprobs
        assert told is not None
        return [each.top[0][0] == token for each, token in zip(told, alone[name].token_ids, strict=True)]

    assert all(likeliest("greedy"))
    assert not all(likeliest("greedy with penalties"))
    assert not all(likeliest("coupled"))
    first = [alone[name].logprobs for name in SETTINGS]
    assert all(told is not None and told[0].top == first[0][0].top for told in first if first[0] is not None)


def test_stats_tell_cells_in_use_and_all_there_are(verifier: LlamaVerifier, prompt: tuple[int, ...]) -> None:
    empty = {"kv_tokens": 0, "kv_capacity": 2 * 256}
    assert verifier.stats() == empty
    verifier.step([Work(1, prompt, len(prompt), Sampling(), [])])
    assert verifier.stats() == empty | {"kv_tokens": len(prompt)}
    verifier.forget(1)
    assert verifier.stats() == empty


def test_a_verdict_that_was_nobodys_to_commit_is_given_again_and_other_tokens_can_follow(
    verifier: LlamaVerifier, prompt: tuple[int, ...], alone: dict[str, OracleAnswer]
) -> None:
    """As in a session whose edge commits: the text is read ahead, and goes on with what the edge says."""
    says = alone["greedy"].token_ids
    greedy = SETTINGS["greedy"]

    def verdict(tokens: list[int], *hints: int) -> tuple[tuple[int, ...], int]:
        while True:
            step = verifier.step([Work(3, tokens, len(prompt), greedy, [Hint(hint) for hint in hints])])
            if 3 in step.judged:
                judged = step.judged[3].verdict
                return judged.tokens, judged.accepted

    text = list(prompt)
    assert verdict(text) == ((says[0],), 0)
    assert verdict(text) == ((says[0],), 0)
    assert verdict([*text, says[0]], says[1], says[2]) == (says[1:4], 2)
    other = 17
    assert verdict([*text, *says[:2], other])[0] != ()
    assert verdict([*text, *says[:2]], other) == ((says[2],), 0)
    verifier.forget(3)
