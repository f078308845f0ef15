"""What both daemons have in common, in a process of its own: it is about signals."""

import subprocess
import sys

DAEMON = """
import os, signal
from ecd.config import CloudConfig
from ecd.daemon import run_daemon

def load():
    os.kill(os.getpid(), signal.SIGHUP)

async def serve(engine, life):
    os.kill(os.getpid(), signal.SIGHUP)
    await life.reload.wait()
    print("read again")

run_daemon(CloudConfig(model="m"), load, serve)
"""


def test_a_hangup_while_the_model_loads_ends_nothing() -> None:
    command = [sys.executable, "-c", DAEMON]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "read again\n"), ended.stderr
