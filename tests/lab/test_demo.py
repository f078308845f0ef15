"""`bin/run`, without the shell around it."""

import subprocess
import sys


def test_one_prompt_from_start_to_a_clean_end() -> None:
    command = [sys.executable, "-m", "ecd.lab.demo", "--small", "--max-tokens", "12", "Count to five."]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    text, summary = run.stdout.strip().rsplit("\n\n", 1)
    assert text
    for figure in ("tokens/s", "acceptance rate", "target forwards per token", "bytes up", "down", "RTT"):
        assert figure in summary
