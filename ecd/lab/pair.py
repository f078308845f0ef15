"""The two models that a streaming benchmark runs: real ones, or a recorded pair at a chosen pace.

Owns what differs between the two: daemons and flags, prompts, the k of rounds, what the simulation expects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ecd.errors import BadRequest, DaemonError
from ecd.lab.expect import DRAWN_TOKENS, Expectation, expect_measured, right_guesses
from ecd.lab.pace import Line, StepTime, load_curve
from ecd.lab.rig import Daemons
from ecd.lab.runs import Asking, Run, WarmUp
from ecd.lab.shipped import find_file
from ecd.lab.simulate import MAX_VERIFY, Regime, best_rounds, draws
from ecd.lab.system import REPLAY
from ecd.lab.trace import Recording, Trace, load_prompts, load_trace

# So that rounds get all their hints verified; the cloud may choose fewer for others.
CLOUD_FLAGS = ("--max-verify", str(MAX_VERIFY), "--sessions", "2")
EDGE_FLAGS = ("--sessions", "1")
DEFAULT_PROMPTS = "mixed"
WRONG = "wrong"
# Of an edge's `conditions`, what a simulation needs.
COSTS = ("draft_ms", "step_ms", "slope")


@dataclass(frozen=True, slots=True)
class RealPair:
    """Models that are run."""

    emulated: ClassVar[bool] = False
    daemons: Daemons
    askings: Sequence[Asking]

    def best_k(self, rtt_ms: float, warm: WarmUp) -> int:
        """By what the warm-up measured. Raises DaemonError if that was not everything."""
        costs: dict[str, Any] = {name: warm.conditions.get(name) for name in COSTS}
        if warm.acceptance is None or None in costs.values():
            raise DaemonError(
                f"the warm-up did not measure what a draft, a step and a hint cost ({costs}); give --rounds-k"
            )
        regime = Regime(rtt_ms, costs["draft_ms"], costs["step_ms"], costs["slope"])
        return best_rounds([draws(warm.acceptance, DRAWN_TOKENS, seed=0)], regime).setting.gather

    def expect(self, rtt_ms: float, runs: Sequence[Run], conditions: Mapping[str, Any]) -> Expectation | None:
        """By what these runs measured."""
        return expect_measured(runs, rtt_ms, conditions)


@dataclass(frozen=True, slots=True)
class ReplayedPair:
    """A trace; `right` are each asking's right and wrong guesses."""

    emulated: ClassVar[bool] = True
    daemons: Daemons
    askings: Sequence[Asking]
    right: Sequence[Sequence[bool]]
    draft_ms: float
    step_ms: float
    slope: float

    def best_k(self, rtt_ms: float, warm: WarmUp) -> int:
        """By the trace."""
        return best_rounds(self.right, self._regime(rtt_ms)).setting.gather

    def expect(self, rtt_ms: float, runs: Sequence[Run], conditions: Mapping[str, Any]) -> Expectation | None:
        """By the trace, as far as its prompts were run."""
        answers = [self.right[prompt] for prompt in sorted({run.cell.prompt for run in runs})]
        return Expectation(answers, self._regime(rtt_ms)) if answers else None

    def _regime(self, rtt_ms: float) -> Regime:
        return Regime(rtt_ms, self.draft_ms, self.step_ms, self.slope)


Pair = RealPair | ReplayedPair


def real_pair(
    target: str, draft: str, prompts: Path | None, *, temperature: float, seed: int, threads: int
) -> RealPair:
    """Both models from files or by name; `seed` is every answer's. Raises BadRequest."""
    flags = ("--threads", str(threads))
    askings = [
        Asking(prompt.kind, prompt.text, temperature, seed)
        for prompt in load_prompts(prompts or find_file("prompts", DEFAULT_PROMPTS))
    ]
    return RealPair(Daemons(target, draft, (*CLOUD_FLAGS, *flags), (*EDGE_FLAGS, *flags)), askings)


def replayed_pair(
    trace_name: str,
    prompts: Path | None,
    *,
    max_tokens: int,
    step_ms: float | None,
    step_slope: float,
    draft_ms: float | None,
    draft_line_cost: float,
    pace: str | None,
    always_wrong: bool,
) -> ReplayedPair:
    """A trace with all its prompts, or those of a prompts file; times not given are as recorded.

    An always wrong draft runs without prompt lookup, which would be right now and then. Raises BadRequest.
    """
    trace = load_trace(find_file("traces", trace_name))
    step_time: StepTime = (
        load_curve(find_file("profiles", pace)) if pace else Line(step_ms or trace.step_ms, step_slope)
    )
    recordings = _asked_for(trace, prompts)
    alone_ms = step_time.step_ms(1, 1)
    draft_ms = draft_ms or trace.draft_ms
    cloud = ("--pace", pace) if pace else ("--step-ms", str(alone_ms), "--step-slope", str(step_slope))
    wrong = ("--wrong", "--no-lookup") if always_wrong else ()
    edge = ("--draft-ms", str(draft_ms), "--draft-line-cost", str(draft_line_cost), *wrong)
    replay = REPLAY + trace_name
    daemons = Daemons(replay, replay, (*CLOUD_FLAGS, *cloud), (*EDGE_FLAGS, *edge))
    return ReplayedPair(
        daemons,
        [Asking(r.kind, r.prompt, r.sampling.temperature, r.sampling.seed) for r in recordings],
        [right_guesses(r, max_tokens, always_wrong) for r in recordings],
        draft_ms,
        alone_ms,
        # A curve as the straight line over the hints that a step usually has.
        (step_time.step_ms(1, 9) / alone_ms - 1) / 8,
    )


def _asked_for(trace: Trace, prompts: Path | None) -> list[Recording]:
    if prompts is None:
        return list(trace.recordings)
    by_prompt = {recording.prompt: recording for recording in trace.recordings}
    wanted = [prompt.text for prompt in load_prompts(prompts)]
    missing = [text for text in wanted if text not in by_prompt]
    if missing:
        raise BadRequest(
            f"the trace has no recording of {len(missing)} of the prompts in {prompts}, the first: "
            f"{missing[0][:40]!r}; record them, or leave out --prompts for all that it has"
        )
    return [by_prompt[text] for text in wanted]
