"""`python -m tests.failing_cloud cloud`: `ecd cloud`, whose engine is lost at steps of your choice."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from ecd import cli
from ecd.cloud.main import load_llama, run_cloud
from ecd.cloud.verifier import StepResult, Verifier, Work
from ecd.config import CloudConfig, load_config
from ecd.daemon import Model
from ecd.errors import EngineLost
from ecd.options import run_program


class FailingVerifier:
    """Has `inner` do all work; `times` steps from number `first` on lose all that it ever did."""

    def __init__(self, inner: Verifier, first: int, times: int):
        self.capacity = inner.capacity
        self._inner = inner
        self._lost = range(first, first + times)
        self._steps = 0
        self._keys: set[int] = set()

    def step(self, work: Sequence[Work]) -> StepResult:
        self._steps += 1
        self._keys |= {item.key for item in work}
        result = self._inner.step(work)
        if self._steps not in self._lost:
            return result
        for key in self._keys:
            self._inner.forget(key)
        self._keys.clear()
        raise EngineLost(f"step {self._steps} was told to fail; the engine is being started again")

    def forget(self, key: int) -> None:
        self._inner.forget(key)

    def prepare(self, stop: Callable[[], bool]) -> bool:
        return self._inner.prepare(stop)

    def stats(self) -> dict[str, int | float]:
        return self._inner.stats()

    def close(self) -> None:
        self._inner.close()


def _cloud(lost_at: int, times: int, file: Any, check: bool, **flags: Any) -> None:
    def load(config: CloudConfig) -> tuple[Model, Verifier]:
        model, verifier = load_llama(config)
        return model, FailingVerifier(verifier, lost_at, times)

    run_cloud(load_config(CloudConfig, file, flags), load)


_LOST = (
    click.Option(["--lost-at"], type=int, required=True),
    click.Option(["--times"], type=int, default=1),
)

main = click.Group(
    "failing_cloud", commands=[click.Command("cloud", params=[*_LOST, *cli.cloud.params], callback=_cloud)]
)

if __name__ == "__main__":
    run_program(main, "python -m tests.failing_cloud")
