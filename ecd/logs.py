"""The form of a daemon's log: lines of text for people, or a JSON object a line for machines.

Owns the form, the names of what a line is about, and how many lines others may cause. A line about a
connection or a session says which in `extra=`. Sessions have the numbers of `ecdctl sessions`; connections
count from 1 since the daemon started.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

from ecd.control_characters import CONTROL
from ecd.trust.bucket import TokenBucket

Format = Literal["text", "json"]

# What a line may be about, in the order in which it is written.
ABOUT = ("connection", "peer", "tenant", "session", "stream")


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


class LimitedLog:
    """Lines that others cause: `per_s` of them, and a second's worth at once. They must not fill the disk.

    How many were left out is told with the next one; `of` says there what they are about.
    """

    def __init__(self, log: logging.Logger, of: str, per_s: float):
        self._log = log
        self._of = of
        self._lines = TokenBucket.full(per_s, monotonic())
        self._untold = 0

    def write(
        self, level: int, line: str, *details: object, extra: Mapping[str, object] | None = None
    ) -> None:
        """Logs a line, or counts it as left out."""
        now = monotonic()
        if self._lines.wait_s(now):
            self._untold += 1
            return
        self._lines.take(1, now)
        if self._untold:
            self._log.warning("%d lines about %s were left out", self._untold, self._of)
            self._untold = 0
        self._log.log(level, line, *details, extra=extra)


def _about(record: logging.LogRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in ABOUT if hasattr(record, name)}
