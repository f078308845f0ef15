"""Runs a program that a model wrote, within limits. A script of its own process; `sandbox` starts it.

Owns the limits: of the kernel (time, memory, processes, files, network) and, behind them, of the interpreter,
which refuses whatever would leave the process. The standard library is all it knows: it is run with `-I`.

Arguments: the program's file, CPU seconds, bytes of memory, and the word to print when the program has come
to its end. Not a prison: a program that attacks the interpreter itself gets as far as its user may.
"""

import contextlib
import ctypes
import os
import resource
import sys
from typing import Any

# New namespaces: of users, for which nobody needs rights, and of networks, with no way out.
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of the standard library that act on the world, by name or by the part before the dot.
_REFUSED_GROUPS = frozenset(
    {"socket", "subprocess", "ctypes", "shutil", "tempfile", "pty", "http", "urllib", "sqlite3"}
)
_REFUSED = frozenset(
    {
        "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.system",
        "os.kill", "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
        "os.chmod", "os.chown", "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.lockf",
        "fcntl.ioctl", "fcntl.flock", "fcntl.lockf", "resource.setrlimit", "resource.prlimit",
        "signal.pthread_kill", "sys.remote_exec",
    }
)  # fmt: skip
# What starts processes, or calls any function of C, without an event of its own.
_MODULES = frozenset({"_posixsubprocess", "_ctypes", "ctypes", "cffi", "_cffi_backend", "multiprocessing"})


def _close_off(cpu_s: int, memory_bytes: int) -> None:
    """Limits of the kernel, which cannot be raised again; that of processes does not bind root."""
    # The network first, while there is memory to find the function.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _refuse(event: str, given: tuple[Any, ...]) -> None:
    """The audit hook (PEP 578), which nothing can take away again."""
    group = event.partition(".")[0]
    writes = event == "open" and bool(int(given[2] or 0) & _WRITING)
    imports = event == "import" and given[0] in _MODULES
    if writes or imports or event in _REFUSED or group in _REFUSED_GROUPS:
        raise PermissionError(f"{event} is not allowed here")


def main(file: str, cpu_s: str, memory_bytes: str, word: str) -> None:
    """Runs the program and, if it ends as programs do, prints the word."""
    with open(file, encoding="utf-8") as source:
        program = compile(source.read(), "answer.py", "exec")
    say = os.dup(1)
    os.dup2(2, 1)
    _close_off(int(cpu_s), int(memory_bytes))
    # What it has loaded already, a program could use without an event.
    for name in _MODULES:
        sys.modules.pop(name, None)
    sys.addaudithook(_refuse)
    exec(program, {"__name__": "answer"})
    os.write(say, word.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
