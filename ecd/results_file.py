"""A file of lines that one run appends to, and that a later one goes on from.

Owns that nobody else writes it meanwhile, and that a line is in it at once. Knows not what lines say.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from ecd.errors import BadRequest, EcdError


@contextmanager
def results_file(path: Path, run: str, option: str) -> Iterator[FileIO]:
    """The file, made if it is not there. `run` and `option`: what writes it, and what names it, in errors.

    Raises BadRequest when it cannot be opened, or is being written by another one.
    """
    if path.exists() and not path.is_file():
        raise BadRequest(f"results go to a file, which {path} is not; choose another {option}")
    try:
        # Unbuffered: a line is in the file as soon as it is written, whatever ends the program.
        file = path.open("ab", buffering=0)
    except OSError as e:
        raise BadRequest(f"cannot write results to {path}: {e.strerror}; choose another {option}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequest(
                f"another {run} writes {path} now; wait for it, or choose another {option}"
            ) from None
        yield file


def append(file: FileIO, line: bytes) -> None:
    """Writes a line, without its end. Raises EcdError for a full disk."""
    line += b"\n"
    try:
        written = file.write(line)
    except OSError as e:
        raise EcdError(f"cannot write results to {file.name}: {e.strerror}") from None
    if written < len(line):
        raise EcdError(f"cannot write results to {file.name}: it takes no more; is the disk full?")
