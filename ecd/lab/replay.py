"""`python -m ecd.lab.replay cloud|edge`: the daemons with recorded models, at the pace of an accelerator.

Owns the two engines that speak from a trace and keep their time by sleeping, and the command line that starts
the daemons with them. All else is the daemons' own: sockets, frames, batching, pacing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ecd import cli
from ecd.cloud.main import run_cloud
from ecd.cloud.verifier import Capacity, Judged, StepResult, Verifier, Work
from ecd.config import CloudConfig, EdgeConfig, load_config
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.main import run_edge
from ecd.engine.packing import PROMPT_CHUNK_TOKENS
from ecd.errors import BadRequest, EcdError, EngineError
from ecd.lab.commits import NotingVerifier
from ecd.lab.options import FILE, MS_ABOVE_0, SHARE
from ecd.lab.pace import DRAFT_LINE_COST, Hold, Line, StepTime, load_curve
from ecd.lab.shipped import find_file
from ecd.lab.trace import Recording, Trace, load_trace
from ecd.options import run_program
from ecd.sampling import Guess, Hint, Sampling, Verdict
from ecd.wire.fingerprint import Fingerprint

# Tokens of prompts that one step reads, all sessions together. Such a session counts as one token of the
# step: an accelerator reads a few hundred tokens in about the time of one.
PROMPT_STEP_TOKENS = 512
# As many lines for each generation as the llama.cpp drafter has.
BRANCHES = 3
CONTEXT_TRAIN = 1 << 20
# A prompt is looked up as it was given, so that nothing stands around it.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class ReplayModel:
    """The vocabulary of a trace: what was recorded can be read and written, and nothing else."""

    chat_template: str | None = CHAT_TEMPLATE
    adds_bos = False
    bos = eos = -1
    context_train = CONTEXT_TRAIN

    def __init__(self, trace: Trace):
        self._trace = trace
        self._prompts = {recording.prompt: list(recording.prompt_ids) for recording in trace.recordings}
        self.n_vocab = trace.n_vocab
        self.eog = frozenset(trace.eog)

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        """The recorded ids of a recorded prompt, template and all. Raises BadRequest for any other text."""
        if text not in self._prompts:
            raise BadRequest(
                f"the trace of {self._trace.provenance.target} has {len(self._prompts)} prompts, and not "
                f"{text[:40]!r}; ask one of them, or record a trace with it"
            )
        return self._prompts[text]

    def piece(self, token: int, *, control: bool = False) -> bytes:
        """The bytes of a token of the answers. Raises EngineError for another."""
        if token in self.eog:
            return b""
        if token not in self._trace.pieces:
            raise EngineError(f"token {token} is in none of the answers of the trace")
        return self._trace.pieces[token]

    def fingerprint(self) -> Fingerprint:
        """Equal at both ends when they replay the same trace."""
        digest = self._trace.digest
        return Fingerprint(
            self.n_vocab, digest, {"end_of_generation": list(self._trace.eog)}, "replay", digest
        )


def _by_prompt(trace: Trace) -> dict[tuple[int, ...], Recording]:
    return {recording.prompt_ids: recording for recording in trace.recordings}


@dataclass(slots=True)
class _Sequence:
    """A session: its recording, and how many of its tokens would lie in a KV cache."""

    recording: Recording
    read: int = 0


class ReplayVerifier:
    """`Verifier` whose target says what was recorded, and the end of text behind that.

    Hints are judged by equality. A step takes what `step_time` says for its sessions and tokens.
    """

    def __init__(self, trace: Trace, *, sessions: int, context_tokens: int, step_time: StepTime):
        self.capacity = Capacity(sessions, context_tokens)
        self._recordings = _by_prompt(trace)
        self._end = trace.eog[0]
        self._step_time = step_time
        self._sequences: dict[int, _Sequence] = {}
        self._hold = Hold()

    def step(self, work: Sequence[Work]) -> StepResult:
        """All sessions in one batch; prompts share PROMPT_STEP_TOKENS, first come first served."""
        started = time.perf_counter()
        judged: dict[int, Judged] = {}
        failed: dict[int, EcdError] = {}
        tokens = sessions = 0
        room = PROMPT_STEP_TOKENS
        for item in work:
            try:
                sequence = self._sequence(item)
                unread = len(item.tokens) - sequence.read
                reading = unread > 1
                piece, hints = (min(unread, room), ()) if reading else (1, item.hints)
                if not piece:
                    continue
                room -= piece if reading else 0
                sequence.read += piece
                sessions += 1
                tokens += 1 + len(hints)
                if piece == unread:
                    verdict = self._judge(sequence.recording, item, hints)
                    sequence.read += verdict.accepted
                    judged[item.key] = Judged(verdict, len(hints))
            except EcdError as e:
                failed[item.key] = e
        if sessions:
            self._hold.until(started, self._step_time.step_ms(sessions, tokens))
        return StepResult(judged, failed, tokens, sessions)

    def forget(self, key: int) -> None:
        """Forgets the session."""
        self._sequences.pop(key, None)

    def prepare(self, stop: Callable[[], bool]) -> bool:
        """There is nothing to compute."""
        return False

    def stats(self) -> dict[str, int | float]:
        """Nothing fills up."""
        return {}

    def close(self) -> None:
        """There is nothing to free."""

    def _sequence(self, item: Work) -> _Sequence:
        if item.key not in self._sequences:
            recording = self._recordings.get(tuple(item.tokens[: item.prompt_len]))
            if recording is None:
                raise EngineError(f"the trace has no prompt with these {item.prompt_len} token ids")
            if item.logprobs is not None:
                raise BadRequest("a recorded target has no logprobs; ask without them")
            if _deciding(item.sampling) != _deciding(recording.sampling):
                raise BadRequest(
                    f"prompt {recording.name} was recorded with {recording.sampling.to_map()}; "
                    "ask for the same"
                )
            self._sequences[item.key] = _Sequence(recording)
        return self._sequences[item.key]

    def _judge(self, recording: Recording, item: Work, hints: Sequence[Hint]) -> Verdict:
        target, at = recording.target_ids, len(item.tokens) - item.prompt_len
        if tuple(item.tokens[item.prompt_len :]) != target[:at]:
            raise EngineError(f"the answer to {recording.name} has left what was recorded")
        # One token of the target's own behind the hints; behind the recorded ones the text is over.
        own = target[at : at + len(hints) + 1]
        own += (self._end,) * (len(hints) + 1 - len(own))
        accepted = next((i for i, hint in enumerate(hints) if hint.token != own[i]), len(hints))
        return Verdict(own[: accepted + 1], accepted)


def _deciding(sampling: Sampling) -> Sampling:
    """The settings that the answer depends on: without temperature that is not the seed."""
    return sampling if sampling.temperature else replace(sampling, seed=0)


class ReplayDrafter:
    """`Drafter` that guesses what was guessed in the recording, and never right where the text left it.

    A call takes `draft_ms` for one task, and a share `line_cost` of it more for each further one.
    `wrong`: no guess is right anywhere; the confidences stay.
    """

    branches = BRANCHES

    def __init__(
        self,
        trace: Trace,
        *,
        slots: int,
        context_tokens: int,
        draft_ms: float,
        line_cost: float = DRAFT_LINE_COST,
        wrong: bool = False,
    ):
        self.slots = slots
        self.slot_tokens = context_tokens
        self._recordings = _by_prompt(trace)
        self._strays = _unused(trace)
        self._time = Line(draft_ms, line_cost)
        self._wrong = wrong
        self._read: dict[int, int] = {}
        self._hold = Hold()

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        """One guess per task that may run the model and whose prompt is read."""
        started = time.perf_counter()
        guesses = [self._guess(task) if task.model else () for task in tasks]
        running = sum(task.model for task in tasks)
        if running:
            self._hold.until(started, self._time.step_ms(1, running))
        return guesses

    def release(self, slot: int) -> None:
        """Forgets that the slot's prompt was read."""
        self._read.pop(slot, None)

    def prefill(self, slot: int) -> Prefill:
        """Whatever is replayed is read anew."""
        return Prefill(0, self._read.get(slot, 0))

    def stats(self) -> dict[str, int]:
        """Nothing is kept."""
        return {}

    def close(self) -> None:
        """There is nothing to free."""

    def _guess(self, task: DraftTask) -> tuple[Guess, ...]:
        """As the llama.cpp drafter, a call reads one chunk of the prompt, and the last one guesses too."""
        read = min(task.prompt_len, self._read.get(task.slot, 0) + PROMPT_CHUNK_TOKENS)
        self._read[task.slot] = read
        if read < task.prompt_len:
            return ()
        recording = self._recordings.get(tuple(task.context[: task.prompt_len]))
        if recording is None:
            raise EngineError(f"the trace has no prompt with these {task.prompt_len} token ids")
        at = len(task.context) - task.prompt_len
        there = recording.guesses[min(at, len(recording.guesses) - 1)]
        on_record = at < len(recording.target_ids) and (
            tuple(task.context[task.prompt_len :]) == recording.target_ids[:at]
        )
        if on_record and not self._wrong:
            return (there,)
        token, second = self._strays
        return (replace(there, token=token, second=second),)


def _unused(trace: Trace) -> tuple[int, int]:
    """Two ids that no text and no guess of the trace has: guesses that are surely wrong."""
    used: set[int | None] = set(trace.eog)
    for recording in trace.recordings:
        used.update(recording.prompt_ids, recording.target_ids)
        used.update(token for guess in recording.guesses for token in (guess.token, guess.second))
    free = [token for token in range(trace.n_vocab) if token not in used][:2]
    if len(free) < 2:
        raise BadRequest(f"the trace uses all {trace.n_vocab} ids; none is left for a wrong guess")
    return free[0], free[1]


_TRACE = click.Option(
    ["--trace", "trace_name"], required=True, help="A trace file, or the name of one of ecd's."
)
_CLOUD = (
    click.Option(["--step-ms"], type=MS_ABOVE_0, help="A step of one token a session."),
    click.Option(
        ["--step-slope"],
        type=SHARE,
        default=0.02,
        show_default=True,
        help="Share of --step-ms that every further token costs.",
    ),
    click.Option(["--pace"], metavar="PROFILE", help="Measured step times instead: a file, or one of ecd's."),
    click.Option(["--commits"], type=FILE, help="Note here when tokens are committed."),
)
_EDGE = (
    click.Option(["--draft-ms"], type=MS_ABOVE_0, help="One guess."),
    click.Option(
        ["--draft-line-cost"],
        type=SHARE,
        default=DRAFT_LINE_COST,
        show_default=True,
        help="Share of --draft-ms that each further line in a forward costs: 0.3 on a CPU, less elsewhere.",
    ),
    click.Option(["--wrong"], is_flag=True, help="Every guess is wrong."),
)


_OF_ENGINES = ("model", "threads", "stable", "engine", "engine_args", "check")


def _flags_of(command: click.Command) -> list[click.Parameter]:
    """The daemon's own options, but for those that are about its engine."""
    return [option for option in command.params if option.name not in _OF_ENGINES]


def _cloud(
    trace_name: str,
    step_ms: float | None,
    step_slope: float,
    pace: str | None,
    commits: Path | None,
    file: Path | None,
    **flags: Any,
) -> None:
    """`ecd cloud` with the target of a trace; its step takes what it took while recording, unless told."""
    if pace and step_ms:
        raise click.UsageError("--pace and --step-ms both say how long a step takes; give one")
    trace = load_trace(find_file("traces", trace_name))
    step_time: StepTime = (
        load_curve(find_file("profiles", pace)) if pace else Line(step_ms or trace.step_ms, step_slope)
    )

    def engine(config: CloudConfig) -> tuple[ReplayModel, Verifier]:
        verifier = ReplayVerifier(
            trace, sessions=config.sessions, context_tokens=config.context_tokens, step_time=step_time
        )
        return ReplayModel(trace), NotingVerifier(verifier, commits) if commits else verifier

    run_cloud(load_config(CloudConfig, file, flags | _model(trace.provenance.target)), engine)


def _edge(
    trace_name: str,
    draft_ms: float | None,
    draft_line_cost: float,
    wrong: bool,
    file: Path | None,
    **flags: Any,
) -> None:
    """`ecd edge` with the draft of a trace; its guess takes what it took while recording, unless told."""
    trace = load_trace(find_file("traces", trace_name))
    run_edge(
        load_config(EdgeConfig, file, flags | _model(trace.provenance.draft)),
        lambda config: (
            ReplayModel(trace),
            ReplayDrafter(
                trace,
                slots=config.sessions,
                context_tokens=config.context_tokens,
                draft_ms=draft_ms or trace.draft_ms,
                line_cost=draft_line_cost,
                wrong=wrong,
            ),
        ),
    )


def _model(name: str) -> dict[str, str]:
    """What status and reports call the model."""
    return {"model": f"replay:{Path(name).name}"}


replay = click.Group(
    "replay",
    commands=[
        click.Command("cloud", params=[_TRACE, *_CLOUD, *_flags_of(cli.cloud)], callback=_cloud),
        click.Command("edge", params=[_TRACE, *_EDGE, *_flags_of(cli.edge)], callback=_edge),
    ],
    help="The daemons with recorded models, at a pace of your choice.",
)


if __name__ == "__main__":
    run_program(replay, "python -m ecd.lab.replay")
