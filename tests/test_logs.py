"""The lines of the log, in both forms."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from ecd.logs import JsonFormatter, LimitedLog, TextFormatter, set_up_logs


def record(message: str, *args: object, **about: object) -> logging.LogRecord:
    made = logging.LogRecord("ecd.test", logging.INFO, "f.py", 1, message, args, None)
    made.__dict__.update(about)
    return made


def test_text_ends_with_what_it_is_about() -> None:
    line = TextFormatter().format(record("ended: %s", "stop", session=7, connection=2))
    assert line.endswith(" INFO ecd.test: ended: stop [connection=2 session=7]")
    assert TextFormatter().format(record("ready")).endswith(" INFO ecd.test: ready")


def test_what_a_peer_says_begins_no_line_and_moves_no_cursor() -> None:
    line = TextFormatter().format(record("left: %s", "bye\n2026 INFO ecd: \x1b[2Jall is well\x9b", session=7))
    assert line.endswith("left: bye?2026 INFO ecd: ?[2Jall is well? [session=7]")


def test_json_has_it_as_fields() -> None:
    made = record("ended: %s\n", "人", session=7, unknown=3)
    made.created = 0.25
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "info",
        "logger": "ecd.test",
        "message": "ended: 人\n",
        "session": 7,
    }


def test_a_traceback_stays_in_the_line() -> None:
    made = record("failed")
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: why" in json.loads(line)["error"]


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def test_it_goes_to_standard_error(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("warning", "json")
    logging.getLogger("ecd.x").info("not this")
    logging.getLogger("ecd.x").warning("this", extra={"session": 1})
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["session"] == 1


def test_more_lines_than_so_many_a_second_are_told_as_a_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("ecd.logs.monotonic", lambda: now)
    log = logging.getLogger("ecd.test")
    lines = LimitedLog(log, "guests", 2.0)
    with caplog.at_level(logging.INFO, "ecd.test"):
        for number in range(10):
            lines.write(logging.INFO, "guest %d", number, extra={"session": number})
        now += 1.0
        lines.write(logging.ERROR, "the last guest")
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("INFO", "guest 0"),
        ("INFO", "guest 1"),
        ("INFO", "guest 2"),
        ("WARNING", "7 lines about guests were left out"),
        ("ERROR", "the last guest"),
    ]
    assert caplog.records[1].session == 1  # type: ignore[attr-defined]
