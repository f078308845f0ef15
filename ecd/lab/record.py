"""`ecd bench record`: what a target answers, and what a draft guesses at every place of these answers.

Owns the order of work and going on after an interruption; the file is `trace`'s business. The target runs
alone, as the oracle runs it; the draft sees the target's own text, as if every guess had been settled.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from ecd.errors import BadRequest
from ecd.lab.host import describe_machine, versions
from ecd.lab.options import FILE, THREADS, TOKENS, FiniteFloatRange
from ecd.lab.shipped import find_file
from ecd.lab.trace import Prompt, Provenance, Recording, Trace, load_prompts, load_trace, save_trace
from ecd.prompt import prompt_tokens
from ecd.sampling import Guess, Sampling

# llama.cpp is imported by what runs a model, so that a program that only lists this command starts at once.
if TYPE_CHECKING:
    from ecd.engine.llama import LlamaModel


def record_trace(
    target: "LlamaModel",
    draft: "LlamaModel",
    prompts: Sequence[Prompt],
    sampling: Sampling,
    provenance: Provenance,
    out: Path,
    *,
    threads: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Trace:
    """Records `prompts` into `out`, which is written after each; those that are in it already are skipped.

    `on_progress` gets how many prompts are done. Raises BadRequest when `out` holds another trace.
    """
    trace = Trace(provenance, target.n_vocab, tuple(sorted(target.eog)), {}, ())
    if out.exists():
        trace = load_trace(out)
        _check_same(trace, provenance, sampling, out)
    done = {recording.prompt for recording in trace.recordings}
    for number, prompt in enumerate(prompts, 1):
        if prompt.text not in done:
            recording = _record(target, draft, prompt, sampling, provenance.max_tokens, threads)
            pieces = {token: target.piece(token) for token in recording.target_ids}
            trace = replace(trace, pieces=trace.pieces | pieces, recordings=(*trace.recordings, recording))
            save_trace(out, trace)
            done.add(prompt.text)
        on_progress(number)
    return trace


def _check_same(trace: Trace, wanted: Provenance, sampling: Sampling, out: Path) -> None:
    there = trace.provenance
    if (there.target, there.draft, there.max_tokens) != (
        wanted.target,
        wanted.draft,
        wanted.max_tokens,
    ) or any(recording.sampling != sampling for recording in trace.recordings):
        raise BadRequest(
            f"{out} holds a trace of {there.target} and {there.draft}, {there.max_tokens} tokens, "
            f"{trace.recordings[0].sampling.to_map()}, and not of what was asked for; choose another --out"
        )


def _record(
    target: "LlamaModel",
    draft: "LlamaModel",
    prompt: Prompt,
    sampling: Sampling,
    max_tokens: int,
    threads: int,
) -> Recording:
    from ecd.oracle import generate

    ids = prompt_tokens(target, prompt.text, chat=True)
    times = [time.perf_counter()]
    answer = generate(
        target,
        ids,
        sampling,
        max_tokens=max_tokens,
        stop=(),
        threads=threads,
        on_text=lambda text: times.append(time.perf_counter()),
    )
    guesses, draft_ms = _guesses(draft, ids, answer.token_ids, sampling, threads)
    return Recording(
        prompt.kind,
        prompt.text,
        ids,
        sampling,
        answer.token_ids,
        guesses,
        step_ms=_typical_ms(times),
        draft_ms=draft_ms,
    )


def _guesses(
    draft: "LlamaModel", prompt: tuple[int, ...], answer: tuple[int, ...], sampling: Sampling, threads: int
) -> tuple[tuple[Guess, ...], float]:
    """The draft's guess at each place of the answer, from the drafter that an edge runs; and ms for one."""
    from ecd.edge.drafter import DraftTask
    from ecd.edge.llama_drafter import LlamaDrafter

    guesses: list[Guess] = []
    times = []
    drafter = LlamaDrafter(draft, slots=1, context_tokens=len(prompt) + len(answer), threads=threads)
    try:
        while len(guesses) < len(answer):
            context = [*prompt, *answer[: len(guesses)]]
            task = DraftTask(
                slot=0,
                branch=0,
                context=context,
                prompt_len=len(prompt),
                committed=len(context),
                sampling=sampling,
            )
            (found,) = drafter.draft([task])
            if found:
                times.append(time.perf_counter())
                guesses.append(replace(found[0], confidence=round(found[0].confidence, 4)))
    finally:
        drafter.close()
    return tuple(guesses), _typical_ms(times)


def _typical_ms(times: list[float]) -> float:
    """The median time between events in ms, without the first, which had the prompt to read."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return median(gaps[1:] or gaps) * 1000


@click.command()
@click.option("--target", required=True, help="Path of a GGUF file, or a name from `ecd models list`.")
@click.option("--draft", required=True, help="Likewise; of the same vocabulary.")
@click.option("--prompts", required=True, help='JSONL of {"class", "prompt"}: a file, or one of ecd\'s.')
@click.option("--max-tokens", type=TOKENS, default=64, show_default=True, help="Of each answer.")
@click.option(
    "--temperature",
    type=FiniteFloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="0 greedy, else coupled.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 64) - 1),
    default=0,
    show_default=True,
    help="Of all answers.",
)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of each engine.")
@click.option("--out", required=True, type=FILE, help="The trace; `.gz` compresses it.")
def record(
    target: str,
    draft: str,
    prompts: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    threads: int,
    out: Path,
) -> None:
    """Record a target's answers and a draft's guesses along them, for `--target replay:TRACE`.

    Goes on where an earlier run with the same --out was interrupted.
    """
    from ecd.engine.llama import LlamaModel
    from ecd.models.fetch import resolve

    provenance = Provenance(
        target=target,
        draft=draft,
        max_tokens=max_tokens,
        versions=versions(),
        machine=describe_machine(),
        date=date.today().isoformat(),
    )
    wanted = load_prompts(find_file("prompts", prompts))
    with click.progressbar(length=len(wanted), label="recording", show_pos=True) as bar:
        trace = record_trace(
            LlamaModel(resolve(target)),
            LlamaModel(resolve(draft)),
            wanted,
            Sampling.of("exact", temperature, seed=seed),
            provenance,
            out,
            threads=threads,
            on_progress=lambda done: bar.update(done - bar.pos),
        )
    click.echo(
        f"{out}: {len(trace.recordings)} of {len(wanted)} prompts, target {trace.step_ms:.1f} ms and "
        f"draft {trace.draft_ms:.1f} ms per token"
    )
