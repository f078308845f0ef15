"""Data that comes with the package: prompts, traces, pace profiles and shapes of models, by name.

Owns where they lie. Must not know what is in them.
"""

from pathlib import Path
from typing import Literal

from ecd.errors import BadRequest

Kind = Literal["prompts", "traces", "profiles", "shapes"]


def find_file(kind: Kind, name: str) -> Path:
    """The file at the path `name`, or the shipped one whose name begins so up to its first dot.

    Raises BadRequest that lists what is there.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(__file__).parent / kind
    shipped = {
        file.name.split(".")[0]: file for file in sorted(folder.glob("*.json*")) if not file.match("*.part")
    }
    if name not in shipped:
        known = ", ".join(shipped) or "none"
        raise BadRequest(f"{name!r} is no file and none of the {kind} that come with ecd ({known})")
    return shipped[name]
