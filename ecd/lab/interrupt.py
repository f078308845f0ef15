"""Ending a long measurement early, by Ctrl-C or SIGTERM, so that what was measured is kept.

Owns which signals do that, and for how long. What is kept is the business of whoever measures.
"""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt while the context lasts; then they do what they did before.

    Also where a shell has started this in the background, which makes it deaf to Ctrl-C. For the main thread.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
