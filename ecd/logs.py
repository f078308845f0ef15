"""The form of a daemon's log: lines of text for people, or a JSON object a line for machines.

Owns the form, and the names of what a line is about. A line about a connection or a session says which in
`extra=`. Sessions have the numbers of `ecdctl sessions`; connections count from 1 since the daemon started.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["text", "json"]

# What a line may be about, in the order in which it is written.
ABOUT = ("connection", "peer", "tenant", "session", "stream")
# What would begin another line, or be obeyed by the terminal that shows it: all of C0 and C1, and DEL.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE [connection=1 session=7]`; control characters are shown as `?`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without a traceback."""
        about = " ".join(f"{name}={value}" for name, value in _about(record).items())
        return CONTROL.sub("?", super().formatMessage(record) + (f" [{about}]" if about else ""))


class JsonFormatter(logging.Formatter):
    """An object: `time` (ISO 8601, UTC) `level` `logger` `message`, what it is about, `error` (traceback)."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logs(level: str, form: Format) -> None:
    """Sends all logs of the process to standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _about(record: logging.LogRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in ABOUT if hasattr(record, name)}
