"""Notes of when tokens were committed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.lab.commits import NotingVerifier, load_commits
from ecd.sampling import Sampling, Verdict


class Engine:
    """Commits two tokens of whoever has an even key; the others' prompts are still being read."""

    capacity = Capacity(3, 100)

    def __init__(self) -> None:
        self.forgotten: list[int] = []
        self.closed = False

    def step(self, work: Sequence[Work]) -> StepResult:
        even = [item.key for item in work if item.key % 2 == 0]
        return StepResult({key: Judged(Verdict((7, 8), 1), 1) for key in even})

    def forget(self, key: int) -> None:
        self.forgotten.append(key)

    def prepare(self, stop: Callable[[], bool]) -> bool:
        return False

    def stats(self) -> dict[str, int | float]:
        return {"kv_use": 0.5}

    def close(self) -> None:
        self.closed = True


def work(key: int, tokens: int) -> Work:
    return Work(key, [1] * tokens, 3, Sampling(), ())


def test_each_session_is_noted_with_how_far_its_answer_came(tmp_path: Path) -> None:
    engine = Engine()
    verifier = NotingVerifier(engine, tmp_path / "notes")
    assert verifier.capacity is engine.capacity
    assert verifier.stats() == {"kv_use": 0.5}
    start = monotonic()
    assert set(verifier.step([work(1, 3), work(2, 3)]).judged) == {2}
    verifier.step([work(2, 5), work(4, 9)])
    verifier.forget(2)
    verifier.close()
    assert (engine.forgotten, engine.closed) == ([2], True)
    commits = load_commits(tmp_path / "notes")
    assert set(commits) == {(2, 2), (2, 4), (4, 8)}
    assert start <= commits[2, 2] <= commits[2, 4] == commits[4, 8] <= monotonic()
