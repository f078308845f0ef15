"""A program on a terminal: what it writes is drawn on a screen, what is typed reaches it through a pty."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pexpect
import pyte

COLUMNS, ROWS = 100, 40


class EmulatedTerminal:
    """A running program, its screen, and everything that it has shown."""

    def __init__(self, child: "pexpect.spawn[bytes]"):
        self._child = child
        self._screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        # Programs ask where the cursor is; the answer is typed as by a keyboard.
        self._screen.write_process_input = lambda data: child.send(data.encode())
        self._stream = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        """What was shown so far, the part that has scrolled away too."""
        gone = ["".join(line[x].data for x in range(COLUMNS)).rstrip() for line in self._screen.history.top]
        return gone + [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """All lines in one, without those that are empty at the end."""
        return "\n".join(self.lines).rstrip()

    def colours(self) -> Counter[str]:
        """How many characters on the screen are of each foreground colour, blanks left out."""
        cells = (self._screen.buffer[y][x] for y in range(ROWS) for x in range(COLUMNS))
        return Counter(cell.fg for cell in cells if cell.data.strip())

    def type(self, keys: str) -> None:
        """Types keys; Ctrl-C is \\x03."""
        self._child.send(keys.encode())

    def wait_for(self, what: str, count: int = 1, within_s: float = 120) -> str:
        """All text once `what` was shown `count` times in it."""
        deadline = time.monotonic() + within_s
        while self.text.count(what) < count:
            assert time.monotonic() < deadline, f"{what!r} is not to be seen in:\n{self.text}"
            try:
                self._stream.feed(self._child.read_nonblocking(4096, timeout=1))
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                assert self.text.count(what) >= count, f"it ended without {what!r}:\n{self.text}"
        return self.text

    def end(self) -> int:
        """Waits for the program's end; its exit code, or minus the signal that ended it."""
        while True:
            try:
                self._stream.feed(self._child.read_nonblocking(4096, timeout=60))
            except pexpect.EOF:
                break
        self._child.wait()
        return -self._child.signalstatus if self._child.signalstatus else self._child.exitstatus


@contextmanager
def on_a_terminal(*arguments: str, **environment: str) -> Iterator[EmulatedTerminal]:
    """`ecdctl` with these arguments on a terminal, ended with the context."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "ecd.ctl", *arguments],
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment},
        dimensions=(ROWS, COLUMNS),
    )
    try:
        yield EmulatedTerminal(child)
    finally:
        child.close(force=True)
