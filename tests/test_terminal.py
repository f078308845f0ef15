"""`ecdctl` as a person uses it: on a terminal, through real daemons."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulated_terminal import EmulatedTerminal, on_a_terminal

from ecd.client import BlockingClient
from ecd.lab.system import DaemonProcess

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
LONG = "Count to a thousand."


def command(daemon: DaemonProcess, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "ecd.ctl", "--socket", str(daemon.socket), *arguments]


def ready(terminal: EmulatedTerminal, prompts: int) -> None:
    """Waits until the program wants its `prompts`th line."""
    terminal.wait_for("\n>", prompts)


def wait_until_nothing_runs(daemon: DaemonProcess) -> None:
    while daemon.call("status")["sessions" if daemon.role == "edge" else "running"]:
        pass


def test_a_chat(edge: DaemonProcess, cloud: DaemonProcess, tmp_path: Path) -> None:
    flags = ["--socket", str(edge.socket), "chat", "--max-tokens", "12"]
    with on_a_terminal(*flags, HOME=str(tmp_path)) as terminal:
        ready(terminal, 1)
        terminal.type("Name a colour.\r")
        ready(terminal, 2)
        terminal.type("/stats\r")
        first = terminal.wait_for("seed")
        assert re.search(r"tokens +\d+, after a prompt of (\d+)", first)
        ready(terminal, 3)

        # The second turn's prompt has the first one in it.
        terminal.type("And another one.\r")
        ready(terminal, 4)
        terminal.type("/stats\r")
        ready(terminal, 5)
        prompts = [int(n) for n in re.findall(r"after a prompt of (\d+)", terminal.text)]
        assert prompts[1] > prompts[0] + 12

        terminal.type("/mode max-tokens=3000 cost temperature=hot\r")
        terminal.wait_for("not a valid float")
        terminal.type("/mode max-tokens=3000 cost draft=off\r")
        ready(terminal, 7)
        terminal.type("/config\r")
        ready(terminal, 8)
        asked = dict(re.findall(r"^  ([a-z-]+)  +(\S.*)$", terminal.text, re.MULTILINE))
        assert (asked["max-tokens"], asked["objective"], asked["draft"]) == ("3000", "cost", "off")
        assert (asked["target"], asked["temperature"]) == ("smollm2-135m", "0.0")

        # Ctrl-C ends the answer, here and in the cloud, and not the program.
        before = edge.call("stats")["cancelled"]
        terminal.type(f"{LONG}\r")
        while not edge.call("sessions")["sessions"]:
            pass
        terminal.type(CTRL_C)
        terminal.wait_for("(cancelled)")
        ready(terminal, 9)
        wait_until_nothing_runs(edge)
        wait_until_nothing_runs(cloud)
        assert edge.call("stats")["cancelled"] == before + 1
        terminal.type("/stats\r")
        terminal.wait_for("ended by  Ctrl-C")

        terminal.type("/nonsense\r")
        terminal.wait_for("/nonsense is no command")
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-D leaves")
        terminal.type("/mode max-tokens=4 draft=on\r")
        ready(terminal, 13)
        terminal.type("/new\r")
        terminal.wait_for("(a new conversation)")
        terminal.type("Hi.\r")
        terminal.wait_for("cut at max-tokens 4", 1)
        terminal.type("/quit\r")
        assert terminal.end() == 0


def test_a_chat_remembers_lines_and_ends_with_ctrl_d(edge: DaemonProcess, tmp_path: Path) -> None:
    flags = ["--socket", str(edge.socket), "chat"]
    environment = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    with on_a_terminal(*flags, **environment) as terminal:
        ready(terminal, 1)
        # Alt-Enter: one text of two lines.
        terminal.type("/mode seed=1234\x1b\rgreedy\r")
        ready(terminal, 2)
        assert re.search(r"^  mode +greedy$", terminal.text, re.MULTILINE)
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    history = tmp_path / "state" / "ecd" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    with on_a_terminal(*flags, **environment) as terminal:
        ready(terminal, 1)
        terminal.type(f"{UP}\r")
        terminal.wait_for("greedy")
        ready(terminal, 2)
        assert re.search(r"^  seed +1234$", terminal.text, re.MULTILINE)


def test_a_chat_outlives_errors(edge: DaemonProcess, cloud: DaemonProcess, tmp_path: Path) -> None:
    with on_a_terminal("--socket", str(edge.socket), "chat", HOME=str(tmp_path)) as terminal:
        ready(terminal, 1)
        terminal.type("/mode max-tokens=100000\r")
        ready(terminal, 2)
        terminal.type("Hi.\r")
        terminal.wait_for("do not fit the cloud's context")
        ready(terminal, 3)
        terminal.type("/mode max-tokens=4\r")
        ready(terminal, 4)
        terminal.type("Hi.\r")
        terminal.wait_for("cut at max-tokens 4")
    with on_a_terminal("--socket", str(cloud.socket), "chat", HOME=str(tmp_path)) as terminal:
        terminal.wait_for("is a cloud's socket; chat needs an edge's")
        assert terminal.end() == 1
    with on_a_terminal("--socket", str(tmp_path / "no.sock"), "chat", HOME=str(tmp_path)) as terminal:
        terminal.wait_for("no daemon answers")
        assert terminal.end() == 1


def test_colours_show_where_tokens_come_from(edge: DaemonProcess, tmp_path: Path) -> None:
    # Strict rounds of a single hint: some are right, and each round has a token of the target's own.
    flags = ["run", "--rounds", "1", "--max-tokens", "48", "Write a Python function that adds two numbers."]
    result = json.loads(subprocess.check_output(command(edge, *flags, "--json"), text=True))
    counts = {origin: result["origins"].count(origin) for origin in ("target", "draft-accepted")}
    assert all(counts.values())
    with on_a_terminal("--socket", str(edge.socket), *flags, "--color", HOME=str(tmp_path)) as terminal:
        assert terminal.end() == 0
        assert set(terminal.colours()) == {"default", "green"}
        # More than the legend's own.
        assert terminal.colours()["green"] > len("draft-accepted 48 (100%)")
        for origin in counts:
            assert re.search(rf"{origin} \d+ \(\d+%\)", terminal.text)
        words = result["text"].split()
        assert terminal.text.split()[: len(words)] == words
    with on_a_terminal(
        "--socket", str(edge.socket), *flags, "--color", HOME=str(tmp_path), NO_COLOR="1"
    ) as terminal:
        assert terminal.end() == 0
        assert set(terminal.colours()) == {"default"}
        assert terminal.text.split() == words
    chat = ["--socket", str(edge.socket), "chat", "--color", "--rounds", "1", "--max-tokens", "48"]
    with on_a_terminal(*chat, HOME=str(tmp_path)) as terminal:
        ready(terminal, 1)
        assert "target  draft-accepted  edge-confident  edge-offline" in terminal.text
        terminal.type("/new\r")
        ready(terminal, 2)
        terminal.type(f"{flags[-1]}\r")
        ready(terminal, 3)
        assert terminal.colours()["green"] > len("draft-accepted")
    piped = subprocess.check_output(command(edge, *flags, "--color"), text=True)
    assert piped == result["text"] + "\n"


def test_ctrl_c_ends_a_run_with_its_exit_code(
    edge: DaemonProcess, cloud: DaemonProcess, tmp_path: Path
) -> None:
    flags = ["run", "--max-tokens", "3000", LONG]
    with on_a_terminal("--socket", str(edge.socket), *flags, HOME=str(tmp_path)) as terminal:
        while not edge.call("sessions")["sessions"]:
            pass
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    wait_until_nothing_runs(edge)
    wait_until_nothing_runs(cloud)


@pytest.mark.parametrize(("role", "key", "code"), [("edge", "q", 0), ("cloud", CTRL_C, 130)])
def test_top_draws_what_runs_until_it_is_left(
    role: str, key: str, code: int, edge: DaemonProcess, cloud: DaemonProcess, tmp_path: Path
) -> None:
    daemon = {"edge": edge, "cloud": cloud}[role]
    with (
        BlockingClient(edge.socket) as client,
        on_a_terminal(
            "--socket", str(daemon.socket), "top", "--interval", "0.1", HOME=str(tmp_path)
        ) as terminal,
    ):
        terminal.wait_for(f"ecd {role}, serving")
        events = client.stream(LONG, max_tokens=2000)
        next(events)
        terminal.wait_for("tokens/s", 2)
        events.close()
        terminal.wait_for("nothing runs")
        terminal.type(key)
        assert terminal.end() == code


def batch_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a results file that may be being written."""
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def stopped_when(process: "subprocess.Popen[str]", there: Callable[[], bool]) -> tuple[int, str]:
    """Interrupts a program as soon as `there` holds; its exit code and what it said on stderr."""
    while not there():
        assert process.poll() is None, "it ended by itself"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_batch_goes_on_where_it_was_interrupted(
    edge: DaemonProcess, cloud: DaemonProcess, tmp_path: Path
) -> None:
    # The third one is long, so that the fourth is answered first and has to wait for its turn.
    prompts = [{"prompt": f"Name {n} animals.", "max_tokens": 48 if n == 3 else 8} for n in range(1, 9)]
    file, results = tmp_path / "animals.jsonl", tmp_path / "animals.results.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts)))
    batch = command(edge, "batch", str(file), "--concurrency", "2", "--temperature", "0.8", "--seed", "5")
    with subprocess.Popen(batch, stderr=subprocess.PIPE, text=True) as process:
        code, said = stopped_when(process, lambda: len(batch_lines(results)) >= 2)
    assert code == 130
    before = batch_lines(results)
    assert 2 <= len(before) < len(prompts)
    assert f"{len(before)} of 8 results are in {results}" in said
    wait_until_nothing_runs(edge)
    wait_until_nothing_runs(cloud)

    # As after a crash of the machine: the beginning of a line that never came to its end.
    with results.open("ab") as torn:
        torn.write(json.dumps(before[0]).encode()[:100])
    started = edge.call("stats")["answers"]
    ended = subprocess.run(batch, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert edge.call("stats")["answers"] == started + len(prompts) - len(before)
    after = batch_lines(results)
    assert after[: len(before)] == before
    assert [record["line"] for record in after] == list(range(1, 9))
    assert [record["request"]["prompt"] for record in after] == [prompt["prompt"] for prompt in prompts]
    with BlockingClient(edge.socket) as client:
        alone = client.call("run", **prompts[5], temperature=0.8, seed=5)
    assert after[5]["result"]["text"] == alone["text"]

    # Nothing is left to do, and other options are another batch.
    whole = results.read_bytes()
    assert subprocess.run(batch, stderr=subprocess.DEVNULL, check=False).returncode == 0
    other = subprocess.run([*batch, "--top-k", "5"], stderr=subprocess.PIPE, text=True, check=False)
    assert other.returncode == 1
    assert "line 1 is not the result of prompt 1 with these options" in other.stderr
    assert results.read_bytes() == whole


def test_a_batch_has_the_reason_of_what_was_refused_and_says_so(edge: DaemonProcess, tmp_path: Path) -> None:
    file, results = tmp_path / "two.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "Hi.", "temperatur": 1}\n"Hi."\n')
    ended = subprocess.run(
        command(edge, "batch", str(file), "--output", str(results), "--max-tokens", "4"),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert f"1 of 2 prompts were refused; {results} says why" in ended.stderr
    refused, answered = batch_lines(results)
    assert refused["error"]["code"] == "bad_request"
    assert "temperatur" in refused["error"]["message"]
    assert len(answered["result"]["token_ids"]) <= 4


def test_a_batch_without_room_for_results_says_so_and_goes_on_later(
    edge: DaemonProcess, tmp_path: Path
) -> None:
    file, results = tmp_path / "few.jsonl", tmp_path / "few.results.jsonl"
    file.write_text('"One."\n"Two."\n"Three."\n"Four."\n')
    batch = command(edge, "batch", str(file), "--max-tokens", "4")
    room = ["prlimit", "--fsize=5000", *batch]
    full = subprocess.run(room, stderr=subprocess.PIPE, text=True, check=False)
    assert full.returncode == 1
    assert f"error: cannot write results to {results}" in full.stderr
    assert "Traceback" not in full.stderr
    before = batch_lines(results)
    assert 0 < len(before) < 4
    assert subprocess.run(batch, stderr=subprocess.DEVNULL, check=False).returncode == 0
    after = batch_lines(results)
    assert [record["line"] for record in after] == [1, 2, 3, 4]
    assert after[: len(before)] == before


def test_two_batches_do_not_write_one_file(edge: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"prompt": LONG, "max_tokens": 3000}))
    batch = command(edge, "batch", str(file))
    with subprocess.Popen(batch, stderr=subprocess.PIPE, text=True) as first:
        while not edge.call("sessions")["sessions"]:
            pass
        second = subprocess.run(batch, stderr=subprocess.PIPE, text=True, check=False)
        code, _ = stopped_when(first, lambda: True)
    assert (second.returncode, code) == (1, 130)
    assert "another batch writes" in second.stderr


def test_a_batch_on_a_terminal_shows_how_far_it_is(edge: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "three.jsonl"
    file.write_text('"One."\n"Two."\n"Three."\n')
    flags = ["--socket", str(edge.socket), "batch", str(file), "--max-tokens", "4"]
    with on_a_terminal(*flags, HOME=str(tmp_path)) as terminal:
        terminal.wait_for("3/3")
        assert terminal.end() == 0
    assert len(batch_lines(tmp_path / "three.results.jsonl")) == 3
