"""`python -m tests.fuzz`: fuzzes for so many executions or seconds, and says what came of it."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import click

from tests.fuzz.corpus import keep, kept, unpack
from tests.fuzz.targets import TARGETS

MAX_BYTES = 4096  # of an input
HANG_S = 25  # of one call; the targets' own bound is in CPU time
# A process that grows beyond this keeps something of every input. About 100 MiB are Python's and numpy's.
MAX_RSS_MIB = 768


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target; `failure` is the end of what was printed, empty when nothing failed."""

    target: str
    executions: int
    seconds: float
    coverage: int
    peak_mib: int
    failure: str = ""


def fuzz(target: str, runs: int, seconds: int, *, keep_finds: bool) -> Outcome:
    """One target until `runs` or `seconds`, whichever is not 0, are over."""
    with tempfile.TemporaryDirectory(prefix="ecd-fuzz-") as name:
        folder = Path(name)
        finds, seeds = folder / "finds", folder / "seeds"
        finds.mkdir()
        unpack(kept(target), seeds)
        limits = [f"-runs={runs or -1}", f"-max_total_time={seconds}"]
        output, took_s = _child(folder, target, *limits, str(finds), str(seeds))
        if keep_finds:
            smallest = folder / "smallest"
            smallest.mkdir()
            _child(folder, target, "-merge=1", str(smallest), str(seeds), str(finds))
            found = [file.read_bytes() for file in smallest.iterdir()]
            assert found, "the kept inputs could not be merged"
            keep(target, found)
        crashes = [file.read_bytes().hex() for file in folder.glob("artifact-*")]
    done = _number(r"stat::number_of_executed_units: *(\d+)", output)
    complete = re.search(r"^Done \d+ runs", output, re.MULTILINE)
    failure = (
        "" if complete and not crashes else "\n".join([output[-6000:], *(f"input: {c}" for c in crashes)])
    )
    coverage = _number(r"cov: (\d+)", output)
    return Outcome(target, done, took_s, coverage, _number(r"stat::peak_rss_mb: *(\d+)", output), failure)


def _child(folder: Path, target: str, *arguments: str) -> tuple[str, float]:
    """libFuzzer's output, and how long it took in seconds."""
    command = [
        *(sys.executable, "-m", "tests.fuzz.child", target),
        *(f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}", f"-rss_limit_mb={MAX_RSS_MIB}"),
        *("-print_final_stats=1", f"-artifact_prefix={folder}/artifact-", *arguments),
    ]
    start = monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace"), monotonic() - start


def _number(pattern: str, output: str) -> int:
    """The last number that stands so in the output, 0 for none."""
    return int((re.findall(pattern, output) or ["0"])[-1])


@click.command()
@click.argument("targets", nargs=-1, type=click.Choice(list(TARGETS)))
@click.option("--runs", type=click.IntRange(0), default=0, help="Executions, all targets together.")
@click.option("--seconds", type=click.IntRange(0), default=0, help="Or seconds, all targets together.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Targets at once.")
@click.option("--keep", "keep_finds", is_flag=True, help="Keep what covers more, in tests/fuzz/corpus.")
@click.pass_context
def main(
    context: click.Context, targets: tuple[str, ...], runs: int, seconds: int, jobs: int, keep_finds: bool
) -> None:
    """Fuzz TARGETS, all of them by default. Exit status 1 says that one failed; its input is printed."""
    if bool(runs) == bool(seconds):
        raise click.UsageError("give either --runs or --seconds")
    names = targets or tuple(TARGETS)
    # An equal share each; with several at once there is more time.
    share_runs, share_s = -(-runs // len(names)), -(-seconds * min(jobs, len(names)) // len(names))
    start = monotonic()

    def outcomes() -> Iterator[Outcome]:
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(lambda name: fuzz(name, share_runs, share_s, keep_finds=keep_finds), names)

    click.echo("target        executions  seconds    per s  branches  peak MiB")
    done = []
    for each in outcomes():
        rate = each.executions / each.seconds
        click.echo(
            f"{each.target:<12}  {each.executions:>10,}  {each.seconds:>7.1f}  {rate:>7.0f}  "
            f"{each.coverage:>8}  {each.peak_mib:>8}  {'FAILED' if each.failure else ''}".rstrip()
        )
        done.append(each)
    executions = sum(each.executions for each in done)
    click.echo(f"all           {executions:>10,}  {monotonic() - start:>7.1f}")
    for each in done:
        if each.failure:
            click.echo(f"\n{each.target}:\n{each.failure}")
    context.exit(any(each.failure for each in done))


if __name__ == "__main__":
    main()
