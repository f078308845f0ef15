"""The kept inputs: a file of hex lines for each target, and the seeds that they grew from.

A line that made a target fail once stays, so that `test_fuzz.py` sees it again.
"""

from collections.abc import Iterable
from hashlib import sha1
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def kept(target: str) -> list[bytes]:
    """The target's inputs; none for one that has no file yet."""
    file = FOLDER / f"{target}.hex"
    return [bytes.fromhex(line) for line in file.read_text().splitlines()] if file.exists() else []


def keep(target: str, inputs: Iterable[bytes]) -> None:
    """These are the target's inputs from here on, the short ones first."""
    lines = [data.hex() for data in sorted(set(inputs), key=lambda data: (len(data), data)) if data]
    (FOLDER / f"{target}.hex").write_text("".join(line + "\n" for line in lines))


def unpack(inputs: Iterable[bytes], folder: Path) -> None:
    """A file for each input, as libFuzzer wants them."""
    folder.mkdir(exist_ok=True)
    for data in inputs:
        (folder / sha1(data).hexdigest()).write_bytes(data)
