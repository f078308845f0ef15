"""The control socket, `ecdctl`, signals and settings, with real processes."""

import asyncio
import json
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.client import BlockingClient, Client
from ecd.errors import DaemonError, RemoteError
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.wire.frames import encode_frame


def ctl(daemon: DaemonProcess, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ecd.ctl", "--socket", str(daemon.socket), *command],
        capture_output=True,
        text=True,
        check=False,
    )


def ctl_json(daemon: DaemonProcess, *command: str) -> Any:
    return json.loads(ctl(daemon, *command, "--json").stdout)


def test_status_and_stats(edge: DaemonProcess, cloud: DaemonProcess) -> None:
    status = ctl_json(edge, "status")
    assert status["link"]["state"] == "connected"
    assert status["target_model"]["name"] == "smollm2-135m"
    assert "link.state" in ctl(edge, "status").stdout
    before = ctl_json(edge, "stats")
    run = ctl_json(edge, "run", "--max-tokens", "8", "--raw", "Once upon a time")
    after = ctl_json(edge, "stats")
    assert after["finished"] == before["finished"] + 1
    assert after["committed"] == before["committed"] + run["usage"]["completion_tokens"]
    assert after["wire_bytes_out"] > before["wire_bytes_out"]
    assert after["cpu_s"] > before["cpu_s"]
    theirs = ctl_json(cloud, "stats")
    assert theirs["committed"] >= after["committed"]
    assert theirs["cpu_s"] > 0
    assert theirs["engine_restarts"] == 0
    assert theirs["engine"]["kv_capacity"] == 8 * 4096
    assert "engine.kv_tokens" in ctl(cloud, "stats").stdout
    assert ctl_json(cloud, "status")["connections"] == 1


def test_stats_tell_what_the_controller_goes_by(edge: DaemonProcess) -> None:
    ctl_json(edge, "run", "--max-tokens", "48", "Name ten animals.")
    stats = ctl_json(edge, "stats")
    conditions = stats["conditions"]
    assert set(conditions) == {
        "rtt_ms",
        "jitter_ms",
        "draft_ms",
        "step_ms",
        "slope",
        "max_verify",
        "sole",
        "acceptance",
        "places",
    }
    assert all(conditions[name] > 0 for name in ("rtt_ms", "draft_ms", "step_ms"))
    assert 0 <= conditions["acceptance"] <= 1
    model = stats["drafters"]["model"]
    assert 0 < model["right"] <= model["settled"] <= model["drafted"]
    assert model["acceptance_rate"] == model["right"] / model["settled"]
    assert stats["pace"] == {}, "nothing runs"


async def test_the_pace_of_what_runs_is_told_with_its_prediction(edge: DaemonProcess) -> None:
    async with Client(edge.socket) as client:
        events = aiter(client.stream("Count to a thousand.", max_tokens=200))
        for _ in range(12):
            started = await anext(events)
        pace = (await client.call("stats"))["pace"]
        assert started["event"] == "text"
        assert pace["state"] in {"drafting", "quiet", "probing"}
        assert pace["ahead"] >= pace["gather"] >= 1
        assert pace["predicted_tokens_per_s"] >= 0.9 * pace["plain_tokens_per_s"] > 0
        assert pace["tokens_per_s"] > 0
        await client.call("cancel", id=(await client.call("sessions"))["sessions"][0]["id"])
        with pytest.raises(Exception, match="cancelled"):
            async for _ in events:
                pass


def test_run_prints_the_text_as_it_comes(edge: DaemonProcess) -> None:
    run = ctl(edge, "run", "--max-tokens", "8", "--raw", "Once upon a time")
    assert run.returncode == 0
    assert (
        run.stdout == ctl_json(edge, "run", "--max-tokens", "8", "--raw", "Once upon a time")["text"] + "\n"
    )


def test_watch_repeats_until_interrupted(edge: DaemonProcess) -> None:
    command = [sys.executable, "-m", "ecd.ctl", "--socket", str(edge.socket), "stats", "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert all("committed" in json.loads(line) for line in lines)


async def test_sessions_are_listed_and_cancelled(edge: DaemonProcess) -> None:
    async with Client(edge.socket) as client:
        events = client.stream("Count to a thousand.", max_tokens=4000)
        started = await anext(aiter(events))
        listed = await asyncio.to_thread(ctl_json, edge, "sessions")
        assert [s["id"] for s in listed["sessions"]] == [started["id"]]
        cancelled = await asyncio.to_thread(ctl_json, edge, "cancel", str(started["id"]))
        assert cancelled == {"cancelled": started["id"]}
        with pytest.raises(Exception, match="cancelled"):
            async for _ in events:
                pass
    assert ctl_json(edge, "sessions") == {"sessions": []}
    missing = ctl(edge, "cancel", "999999")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: no session 999999")


def test_the_socket_is_private_and_its_own(edge: DaemonProcess, tmp_path: Path) -> None:
    assert stat.S_IMODE(edge.socket.stat().st_mode) == 0o600
    second = DaemonProcess("edge", ["--model", "smollm2-135m-draft"], edge.folder)
    second.start()
    with pytest.raises(DaemonError, match="another daemon serves"):
        # The first daemon answers on the path, so this waits for a state that only the second could bring.
        second.wait(lambda status: False)
    assert BlockingClient(edge.socket).__enter__().call("status")["role"] == "edge"


def test_a_broken_control_client_harms_nobody(edge: DaemonProcess) -> None:
    for garbage in (b"\xff\xff\xff\xff", encode_frame([1, 2, 3]), encode_frame([64, 1, "nonsense", {}])):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(edge.socket))
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    assert ctl_json(edge, "status")["state"] == "serving"


def test_no_daemon_is_said_plainly(tmp_path: Path) -> None:
    gone = DaemonProcess("edge", [], tmp_path)
    result = ctl(gone, "status")
    assert result.returncode == 1
    assert "no daemon answers on" in result.stderr
    assert "start `ecd edge`" in result.stderr


@pytest.fixture
def own_cloud(tmp_path: Path) -> Iterator[DaemonProcess]:
    with running_cloud(tmp_path, "smollm2-135m") as daemon:
        yield daemon


@pytest.fixture
def own_edge(tmp_path: Path, own_cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    with running_edge(tmp_path, "smollm2-135m-draft", address_of(own_cloud)) as daemon:
        yield daemon


async def test_sigterm_drains_the_edge(own_edge: DaemonProcess) -> None:
    assert own_edge.process is not None
    async with Client(own_edge.socket) as client:
        events = client.stream("Tell a story.", max_tokens=48)
        await anext(aiter(events))
        own_edge.process.send_signal(signal.SIGTERM)
        while (await client.call("status"))["state"] != "draining":
            pass
        with pytest.raises(Exception, match="draining"):
            await client.call("run", prompt="One more?")
        result = [event async for event in events][-1]
    assert result["event"] == "done"
    assert await asyncio.to_thread(own_edge.process.wait, 10) == 0
    assert not own_edge.socket.exists()


async def test_a_draining_cloud_finishes_what_runs(own_edge: DaemonProcess, own_cloud: DaemonProcess) -> None:
    assert own_cloud.process is not None
    async with Client(own_edge.socket) as client:
        events = client.stream("Tell a story.", max_tokens=48)
        await anext(aiter(events))
        drained = await asyncio.to_thread(ctl_json, own_cloud, "drain")
        assert drained == {"drained": True}
        result = [event async for event in events][-1]
    assert result["event"] == "done"
    assert result["stats"]["resumed"] == 0
    assert await asyncio.to_thread(own_cloud.process.wait, 10) == 0


async def test_sigint_stops_at_once(own_edge: DaemonProcess) -> None:
    assert own_edge.process is not None
    async with Client(own_edge.socket) as client:
        events = client.stream("Count to a thousand.", max_tokens=4000)
        await anext(aiter(events))
        own_edge.process.send_signal(signal.SIGINT)
        with pytest.raises(Exception, match=r"stopping|closed the connection"):
            async for _ in events:
                pass
    assert await asyncio.to_thread(own_edge.process.wait, 10) == 0


async def test_sigint_ends_an_edge_that_has_nothing_left_to_draft(tmp_path: Path) -> None:
    """Without a cloud the drafter soon stands idle, all its guesses made; stopping must not wake it."""
    flags = ["--model", "smollm2-135m-draft", "--cloud", "127.0.0.1:1", "--ahead-tokens", "2"]
    edge = DaemonProcess("edge", flags, tmp_path)
    edge.start()
    try:
        await asyncio.to_thread(edge.wait, lambda status: True)
        async with Client(edge.socket) as client:
            events = client.stream("Tell a story.", max_tokens=48)
            assert (await anext(aiter(events)))["link"] in ("connecting", "down")
            ahead = 0
            while ahead < 2:
                ahead = (await client.call("sessions"))["sessions"][0]["ahead"]
            assert await asyncio.to_thread(edge.signal, signal.SIGINT) == 0
            with pytest.raises(Exception, match=r"stopping|closed the connection"):
                async for _ in events:
                    pass
    finally:
        edge.stop()


async def test_a_second_signal_ends_at_once(own_edge: DaemonProcess) -> None:
    assert own_edge.process is not None
    async with Client(own_edge.socket) as client:
        events = client.stream("Count to a thousand.", max_tokens=4000)
        await anext(aiter(events))
        own_edge.process.send_signal(signal.SIGTERM)
        while (await client.call("status"))["state"] != "draining":
            pass
        own_edge.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(own_edge.process.wait, 10) == 130


def test_a_socket_left_by_a_killed_daemon_is_taken_over(own_edge: DaemonProcess) -> None:
    own_edge.signal(signal.SIGKILL)
    assert own_edge.socket.exists()
    own_edge.start()
    own_edge.wait(lambda status: bool(status["link"]["state"] == "connected"))


def ecd(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ecd", *command], capture_output=True, text=True, check=False
    )


def test_settings_are_checked_without_starting(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("model: smollm2-135m\nkeepalive:\n  silence_s: 3\n")
    bad.write_text("model: smollm2-135m\nkeepalive:\n  silence: 3\n")
    assert ecd("cloud", "--config", str(good), "--check").returncode == 0
    refused = ecd("cloud", "--config", str(bad), "--check")
    assert refused.returncode == 1
    assert "keepalive.silence is no setting" in refused.stderr
    assert "insecure" in ecd("cloud", "--model", "x", "--listen", "0.0.0.0:1", "--check").stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("cloud", "--model", "no-such-model"), "no-such-model"),
        (("cloud", "--model", __file__), "cannot load"),
        (("cloud", "--model", "smollm2-135m", "--listen", "127.0.0.1:1x"), "HOST:PORT"),
        (("edge",), "model is missing"),
    ],
)
def test_a_daemon_that_cannot_start_says_why(tmp_path: Path, command: tuple[str, ...], said: str) -> None:
    result = ecd(command[0], *command[1:], "--socket", str(tmp_path / "x.sock"))
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        result = ecd(
            "cloud", "--model", "smollm2-135m", "--listen", listen, "--socket", str(tmp_path / "x.sock")
        )
    assert result.returncode == 1
    assert "choose another --listen" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unusable_runtime_folder_is_said(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "edge.sock"
    result = ecd("edge", "--model", "smollm2-135m-draft", "--socket", str(path))
    assert result.returncode == 1
    assert "choose a shorter one" in result.stderr


def ctl_knows(daemon: DaemonProcess, session: int) -> bool:
    try:
        return bool(daemon.call("trace", id=session)["events"])
    except RemoteError:
        return False


def test_a_session_is_told_again_from_both_ends(
    edge: DaemonProcess, cloud: DaemonProcess, tmp_path: Path
) -> None:
    before = {session["id"] for session in ctl_json(edge, "sessions")["sessions"]}
    number = ctl_json(edge, "run", "--max-tokens", "24", "--temperature", "0.8", "Name a colour.")["id"]
    assert number not in before
    shown = ctl(edge, "trace", str(number)).stdout
    assert "  receive        " in shown
    # At the cloud it is the newest, whatever its number there.
    kept = [n for n in range(1, 60) if ctl_knows(cloud, n)]
    for daemon, session in ((edge, number), (cloud, max(kept))):
        file = tmp_path / f"{daemon.role}.jsonl"
        file.write_text(ctl(daemon, "trace", str(session), "--json").stdout)
        again = ecd("retrace", str(file))
        assert again.returncode == 0, again.stdout + again.stderr
        assert again.stdout.endswith(" events, the same answers\n")
    gone = ctl(edge, "trace", "4000")
    assert gone.returncode == 1
    assert "nothing is kept of session 4000" in gone.stderr


def test_the_doctor_finds_an_edge_well(edge: DaemonProcess) -> None:
    examined = ctl(edge, "doctor")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    lines = [line.split(maxsplit=1) for line in examined.stdout.splitlines() if not line.startswith(" ")]
    assert [rest.split("  ")[0].strip() for _, rest in lines] == [
        "edge",
        "link",
        "round trip",
        "TLS",
        "clock",
        "speeds",
        "to expect",
    ]
    assert "draft" in lines[-1][1]
