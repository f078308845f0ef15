"""Whether a Python program runs to its end in a process of its own, with little time, memory and rights.

Owns the process: an empty environment, a folder that is gone afterwards, the end of it and of all that it may
have started. The limits inside are `sandboxed`'s. Knows no tasks and no answers.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ecd.errors import ConfigError

_INSIDE = Path(__file__).with_name("sandboxed.py")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a program may take: seconds of the processor and of the clock, and bytes of addresses."""

    cpu_s: int = 5
    clock_s: float = 15.0
    memory_bytes: int = 512 << 20


USUAL = Allowance()


def runs_through(program: str, allowance: Allowance = USUAL) -> bool:
    """Whether the program comes to its end without an error; one that exits before that does not.

    Raises ConfigError where there are no such limits.
    """
    if sys.platform == "win32":
        raise ConfigError("answers in code are run with limits that only Unix has; use tasks without code")
    # Nothing that a program prints by itself, and no exit code, is taken for its having come to its end.
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="ecd-answer-") as folder:
        file = Path(folder) / "answer.py"
        file.write_text(program, encoding="utf-8", errors="replace")
        limits = (str(allowance.cpu_s), str(allowance.memory_bytes))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_INSIDE), str(file), *limits, word],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=allowance.clock_s)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            # The whole group, so that nothing outlives it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return said == word.encode()
