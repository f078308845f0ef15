"""`python -m tests.fuzz.child TARGET ...`: one target under atheris, in a process that libFuzzer ends.

What follows the target's name are libFuzzer's arguments. Its last lines tell how many executions there were.
"""

import logging
import sys

import atheris

# Before anything else imports them: what is imported here tells libFuzzer which of its branches are taken.
with atheris.instrument_imports(include=["ecd"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzzes until the arguments say that it is enough."""
    # What is refused is logged, which would be most of the work.
    logging.disable()
    # The first is what libFuzzer starts again, through a shell, when it merges.
    again = f"{sys.executable} -m tests.fuzz.child {sys.argv[1]}"
    atheris.Setup([again, *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
