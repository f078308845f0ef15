"""Programs that a model might write, and that must not get far."""

import socket
import tempfile
import time
from pathlib import Path

import pytest

from ecd.lab.ablation.sandbox import Allowance, runs_through

QUICK = Allowance(cpu_s=1, clock_s=3, memory_bytes=256 << 20)


def processes_in(folder: str) -> list[str]:
    """Command lines of running processes that name the folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if folder in line:
            found.append(line)
    return found


def test_a_good_program_runs_to_its_end() -> None:
    assert runs_through("import math, re, collections, itertools, heapq\nassert math.gcd(12, 18) == 6")


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def f(:",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "print('0' * 32)\nquit()",
        "import sys\nsys.exit()",
    ],
)
def test_what_does_not_come_to_its_end_is_wrong(program: str) -> None:
    assert not runs_through(program)


def test_an_endless_loop_is_ended() -> None:
    started = time.monotonic()
    assert not runs_through("while True: pass", QUICK)
    assert not runs_through("import time\ntime.sleep(3600)", QUICK)
    assert time.monotonic() - started < 60


def test_a_loop_that_catches_everything_is_ended() -> None:
    program = "while True:\n try:\n  while True: pass\n except BaseException: pass"
    assert not runs_through(program, QUICK)


def test_a_memory_hog_is_refused_memory() -> None:
    assert not runs_through("x = bytearray(1 << 30)", QUICK)
    assert runs_through(
        "try:\n x = bytearray(1 << 30)\nexcept MemoryError: pass\nelse: raise ValueError", QUICK
    )


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n try: os.fork()\n except Exception: pass",
        "import subprocess, sys\nsubprocess.Popen([sys.executable])",
        "import os\nos.system('sleep 100')",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import _posixsubprocess",
        "import os\nos.posix_spawn('/bin/sleep', ['sleep', '100'], {})",
    ],
)
def test_a_fork_bomb_starts_no_process(bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The program's folder is in here, and so in the command line of whatever it forks.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not runs_through(bomb, QUICK)
    assert processes_in(str(tmp_path)) == []


@pytest.mark.parametrize(
    "program",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a').write('x')",
        "import os\nos.remove({path!r})",
        "import os\nos.open({path!r}, os.O_WRONLY | os.O_TRUNC)",
        "import os\nos.rename({path!r}, {path!r} + '2')",
        "import pathlib\npathlib.Path({path!r}).unlink()",
        "import shutil\nshutil.rmtree({folder!r})",
        "open('here', 'w').write('x')",
        "import sqlite3\nsqlite3.connect({path!r}).execute('create table t (a)')",
    ],
)
def test_files_cannot_be_written(program: str, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("as it was")
    assert not runs_through(program.format(path=str(file), folder=str(tmp_path)), QUICK)
    assert [place.name for place in tmp_path.iterdir()] == ["kept"]
    assert file.read_text() == "as it was"


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert not runs_through(program, QUICK)


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    assert runs_through("import os\nassert 'A_SECRET' not in os.environ")


def test_what_it_prints_is_no_burden() -> None:
    assert runs_through("for _ in range(200): print('x' * 10000)")


def test_limits_and_refusals_cannot_be_taken_back() -> None:
    assert not runs_through("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))")
    assert not runs_through("import ctypes\nctypes.CDLL(None)")
