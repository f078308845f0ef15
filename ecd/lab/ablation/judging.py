"""Whether an answer is right, and how much of it is what the target would have said.

Owns how a number and a function are found in an answer, and the target's own opinion. Where programs run is
`sandbox`'s business.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ecd.lab.ablation.conversations import Check
from ecd.lab.ablation.sandbox import runs_through
from ecd.sampling import Rule, Sampling

# llama.cpp is imported by what runs a model, so that `ecd ablate --help` answers at once.
if TYPE_CHECKING:
    from ecd.engine.llama import LlamaModel

_MARKED = re.compile(r"####\s*(-?\$?[\d,]*\.?\d+)")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_FENCED = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)


def is_right(check: Check, text: str) -> bool:
    """Whether an answer is right; code of it is run, see `sandbox`."""
    if check.number is not None:
        found = last_number(text)
        return found is not None and abs(found - float(check.number)) < 1e-6
    assert check.python is not None
    return runs_through("\n".join((check.python.setup, code_of(text), check.python.tests)))


def last_number(text: str) -> float | None:
    """The number after the last ####, GSM8K's mark of an answer, or else the last one; None without any."""
    found = _MARKED.findall(text) or _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("$", "")) if found else None


def code_of(text: str) -> str:
    """The answer's Python: its fenced blocks that define something, or all of it where there is no fence."""
    blocks = _FENCED.findall(text)
    defining = [block for block in blocks if re.search(r"^\s*(def|class) ", block, re.MULTILINE)]
    return "\n".join(defining or blocks or [text])


class Target:
    """The target alone, asked about answers that there are: which of their tokens it would have said.

    The same answer is looked at once, whoever gave it. `load` gives the model when it is first needed.
    """

    def __init__(self, load: "Callable[[], LlamaModel]", threads: int):
        self._load = load
        self._threads = threads
        self._model: LlamaModel | None = None
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...], str], int] = {}

    def agreed(self, result: dict[str, Any]) -> int | None:
        """Of an answer's tokens, how many the target would have said behind those before them.

        `result`: of `run`. None under the rejection rule, where many answers are the target's.
        """
        from ecd.oracle import check

        if Sampling.from_map(result["sampling"]).rule is Rule.REJECTION:
            return None
        key = (tuple(result["prompt_token_ids"]), tuple(result["token_ids"]), repr(result["sampling"]))
        if key not in self._known:
            self._model = self._model or self._load()
            report = check(self._model, result, tolerance=0.0, threads=self._threads)
            self._known[key] = sum(each.gap == 0 for each in report.checks)
        return self._known[key]
