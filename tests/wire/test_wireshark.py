"""The Wireshark dissector: its tables against the code, and tshark on a capture of a real session."""

import re
import shutil
import signal
import subprocess
from dataclasses import fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from ecd.client import BlockingClient
from ecd.errors import Code
from ecd.lab.shipped import find_file
from ecd.lab.system import address_of, running_cloud, running_edge
from ecd.lab.trace import load_trace
from ecd.wire.fields import BYTES, IDS, TEXT, U8, U16, U32, U64
from ecd.wire.frames import FrameReader, id_width
from ecd.wire.messages import (
    ALTERNATE,
    BY_TYPE,
    FIELDS,
    Draft,
    Finish,
    Hello,
    KvOp,
    Open,
    Origin,
    Ping,
    Pong,
    Reset,
    Tokens,
    Welcome,
    from_fields,
)

SCRIPT = Path(__file__).parents[2] / "wireshark" / "ecd.lua"
SOURCE = SCRIPT.read_text(encoding="utf-8")
ENUMS: tuple[type[IntEnum], ...] = (Finish, Origin, KvOp, Code)
KINDS = {"u": {U8, U16, U32, U64}, "bytes": {BYTES}, "text": {TEXT}, "ids": {IDS}}
TRACE = "qwen-coder-greedy"
RECORDINGS = load_trace(find_file("traces", TRACE))
LIMIT_S = 60

needs_tshark = pytest.mark.skipif(
    shutil.which("tshark") is None or shutil.which("dumpcap") is None, reason="needs tshark"
)


def fields_of(number: int) -> list[tuple[str, str]]:
    found = re.search(rf'\[{number}\] = {{\s*"\w+",\s*((?:"[^"]*"(?:\s*\.\.\s*)?)+)', SOURCE)
    assert found
    layout = "".join(re.findall(r'"([^"]*)"', found[1]))
    return [(name, kind) for name, _, kind in (each.partition(":") for each in layout.split())]


def test_every_message_is_there_with_its_fields_in_order() -> None:
    named = {int(number): name for number, name in re.findall(r'\[(\d+)\] = {\s*"([A-Z]+)"', SOURCE)}
    assert named == {number: kind.__name__.upper() for number, kind in BY_TYPE.items()}
    for number, kind in BY_TYPE.items():
        told = fields_of(number)
        assert [name for name, _ in told] == [each.name for each in fields(kind)][1:]
        for (name, word), codec in zip(told, FIELDS[kind], strict=True):
            plain = codec.name.removesuffix(" or nil")
            if word in KINDS:
                assert plain in {each.name for each in KINDS[word]}, name
            elif word == "alternates":
                assert plain == f"array of {ALTERNATE.name}"
            elif word != "any":
                assert plain == word


@pytest.mark.parametrize("kind", ENUMS)
def test_every_number_has_its_name(kind: type[IntEnum]) -> None:
    found = re.search(rf"{kind.__name__} = {{\s*\[0\] = (.*?)}}", SOURCE, re.DOTALL)
    assert found
    assert re.findall(r'"(\w+)"', found[1]) == [member.name for member in kind]


def tshark(capture: Path, *arguments: str) -> str:
    command = ["tshark", "-X", f"lua_script:{SCRIPT}", "-r", str(capture), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "lua" not in done.stderr.lower().replace("lua_script", ""), done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What passes on loopback in a session of both daemons: an answer, a cancelled one, and their end."""
    folder = tmp_path_factory.mktemp("capture")
    path = folder / "session.pcapng"
    asked: dict[str, Any] = {"prompt": RECORDINGS.recordings[0].prompt, "max_tokens": 48}
    with running_cloud(folder, f"replay:{TRACE}", "--step-ms", "5") as cloud:
        port = address_of(cloud).rpartition(":")[2]
        command = ["dumpcap", "-q", "-i", "lo", "-f", f"tcp port {port}", "-w", str(path)]
        dumpcap = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert dumpcap.stderr is not None
            said = ""
            while "File: " not in said:
                line = dumpcap.stderr.readline()
                if not line:
                    pytest.skip(f"dumpcap may not capture here: {said}")
                said += line
            with (
                running_edge(folder, f"replay:{TRACE}", f"127.0.0.1:{port}", "--draft-ms", "1") as edge,
                BlockingClient(edge.socket) as client,
            ):
                assert len(client.call("run", **asked)["token_ids"]) == 48
                events = client.stream(**asked)
                while next(events)["event"] != "text":
                    pass
                events.close()  # type: ignore[attr-defined]
                while client.call("sessions")["sessions"]:
                    pass
            # The file lags behind; the connection's end is the last that is written.
            while not tshark(path, "-Y", "tcp.flags.fin == 1"):
                pass
        finally:
            dumpcap.send_signal(signal.SIGINT)
            dumpcap.wait(LIMIT_S)
    return path


@pytest.fixture(scope="module")
def port(capture: Path) -> str:
    syn = "tcp.flags.syn == 1 && tcp.flags.ack == 0"
    return tshark(capture, "-Y", syn, "-T", "fields", "-e", "tcp.dstport").split()[0]


def sent(capture: Path) -> list[list[Any]]:
    """The frames of both ways by our own codec, from the bytes that tshark puts together."""
    ways: dict[bool, bytes] = {False: b"", True: b""}
    follow = tshark(capture, "-q", "-z", "follow,tcp,raw,0")
    for line in follow.splitlines():
        if re.fullmatch(r"\t?[0-9a-f]+", line):
            ways[line.startswith("\t")] += bytes.fromhex(line.strip())
    return [fields for data in ways.values() for fields, _ in FrameReader().feed(data)]


@needs_tshark
def test_it_sees_what_was_sent(capture: Path) -> None:
    width = id_width(RECORDINGS.n_vocab)
    messages = [message for told in sent(capture) if (message := from_fields(told, width)) is not None]
    columns = ("-T", "fields", "-E", "aggregator=;", "-e", "ecd.type", "-e", "ecd.stream")
    pairs = [
        pair
        for line in tshark(capture, "-Y", "ecd", *columns).splitlines()
        for pair in zip(*(column.split(";") for column in line.split("\t")), strict=True)
    ]
    assert sorted(pairs) == sorted((str(message.TYPE), str(message.stream)) for message in messages)
    kinds = {type(message) for message in messages}
    assert {Hello, Welcome, Open, Draft, Tokens, Ping, Pong, Reset} <= kinds
    assert not tshark(capture, "-Y", "ecd.malformed || _ws.malformed || _ws.lua.error")


@needs_tshark
def test_it_shows_token_ids(capture: Path) -> None:
    width = id_width(RECORDINGS.n_vocab)
    messages = [message for told in sent(capture) if (message := from_fields(told, width)) is not None]
    mine = [" ".join(map(str, m.ids)) for m in messages if isinstance(m, Tokens | Draft)]
    columns = ("-T", "fields", "-E", "aggregator=;", "-e", "ecd.ids")
    shown = [
        ids for line in tshark(capture, "-Y", "ecd.ids", *columns).splitlines() for ids in line.split(";")
    ]
    assert sorted(shown) == sorted(mine)


@needs_tshark
def test_it_says_what_ended(capture: Path) -> None:
    listed = tshark(capture, "-Y", "ecd")
    assert "HELLO major=1 " in listed
    assert re.search(r'RESET 2 CANCELLED "cancelled by the user"', listed)
    assert re.search(r"TOKENS 1 base=\d+ ids=\d+ accepted=\d+ verified=\d+ (STOP|LENGTH)", listed)
    assert "CANCELLED" in tshark(capture, "-Y", "ecd.code == 13", "-O", "ecd")


@needs_tshark
def test_another_port_is_recognised_by_its_hello(capture: Path, port: str) -> None:
    assert port != "7040"
    assert "HELLO" in tshark(capture, "-Y", "ecd.type == 1")


@needs_tshark
def test_garbage_is_shown_as_such(tmp_path: Path) -> None:
    hex_dump = tmp_path / "garbage.txt"
    hex_dump.write_text("0000 00 00 00 03 93 01 c1\n")
    capture = tmp_path / "garbage.pcap"
    subprocess.run(
        ["text2pcap", "-q", "-T", "40000,7040", str(hex_dump), str(capture)], check=True, timeout=LIMIT_S
    )
    assert "malformed" in tshark(capture, "-Y", "ecd.malformed")
