"""What counts as right, with the tasks' own solutions."""

from typing import Any

import pytest

from ecd.engine.llama import LlamaModel
from ecd.lab.ablation.conversations import Check, load_conversations
from ecd.lab.ablation.judging import Target, code_of, is_right, last_number
from ecd.lab.shipped import find_file
from ecd.oracle import generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("It is 3 + 4 = 7.", 7),
        ("#### 1,350 and not 7", 1350),
        ("That makes $2,000.50 in all.", 2000.5),
        ("-3", -3),
        ("The answer is -$4.", -4),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_is_the_answer(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_code_is_taken_out_of_its_fence() -> None:
    assert code_of("def f(): pass") == "def f(): pass"
    assert code_of("Here:\n```python\ndef f():\n    return 1\n```\nUse it:\n```\nf()\n```") == (
        "def f():\n    return 1\n"
    )
    assert code_of("```py\ndef f(): pass") == "def f(): pass", "an answer that was cut off"
    assert code_of("```\n1 + 1\n```") == "1 + 1\n"


SOLUTION = """```python
def add(lst):
    return sum(lst[i] for i in range(1, len(lst), 2) if lst[i] % 2 == 0)
```"""


def test_a_function_is_right_if_it_passes_the_tests() -> None:
    tasks = load_conversations(find_file("prompts", "tasks"))
    (check,) = (t.turns[0].check for t in tasks if "def add(lst)" in t.turns[0].content)
    assert check is not None
    assert is_right(check, SOLUTION)
    assert not is_right(check, SOLUTION.replace("range(1", "range(0"))
    assert not is_right(check, "I cannot do that.")
    assert not is_right(check, "def add(lst): quit()")


def test_a_number_is_right_whatever_its_form() -> None:
    check = Check(number="1350")
    assert is_right(check, "1,350.00 dollars")
    assert not is_right(check, "1351")
    assert not is_right(check, "many")


def run_of(model: LlamaModel, tokens: tuple[int, ...] | None = None, **settings: Any) -> dict[str, Any]:
    prompt, sampling = prompt_tokens(model, "Name a colour.", chat=True), Sampling.of(**settings)
    if tokens is None:
        tokens = generate(model, prompt, sampling, max_tokens=8, stop=(), threads=1).token_ids
    return {"prompt_token_ids": list(prompt), "token_ids": list(tokens), "sampling": sampling.to_map()}


def test_the_target_tells_what_it_would_have_said(target: LlamaModel) -> None:
    loads: list[None] = []
    alone = Target(lambda: loads.append(None) or target, threads=1)  # type: ignore[func-returns-value]
    own = run_of(target)
    assert alone.agreed(own) == len(own["token_ids"])
    spoilt = own | {"token_ids": [*own["token_ids"][:-1], 5]}
    assert alone.agreed(spoilt) == len(own["token_ids"]) - 1
    assert alone.agreed(own | {"sampling": Sampling.of("rejection", 0.5).to_map()}) is None
    assert len(loads) == 1
