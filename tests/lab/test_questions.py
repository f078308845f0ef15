"""What a soak asks."""

import pytest

from ecd.edge.run_args import RunArgs
from ecd.lab.questions import WAYS, Question, real_questions, recorded_questions


def check(questions: list[Question]) -> None:
    for question in questions:
        assert set(question.arguments) <= set(RunArgs.model_fields)
        assert 0 < len(question.expected) <= question.arguments["max_tokens"]


@pytest.mark.parametrize("trace", ["qwen-coder-greedy", "qwen-coder-coupled"])
def test_every_recorded_prompt_is_asked_in_every_way(trace: str) -> None:
    questions = list(recorded_questions(trace))
    check(questions)
    assert len(questions) == 24 * len(WAYS)
    assert len({question.expected for question in questions}) == 24


@pytest.mark.slow
def test_real_ones_expect_what_the_target_says_alone() -> None:
    questions = list(real_questions("smollm2-135m"))
    check(questions)
    by_asking = {(q.arguments["prompt"], q.arguments["temperature"]): q.expected for q in questions}
    assert len(questions) == len(by_asking) * len(WAYS)
    assert len(set(by_asking.values())) == len(by_asking)
