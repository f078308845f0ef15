"""docs/PROTOCOL.md against the code: the tables say what the code does, golden frames are what it sends."""

import json
import re
import struct
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import zstandard

from ecd.cloud.calls import CloudCalls
from ecd.cloud.session import MAX_PATIENCE_S
from ecd.control import MAX_CALLS, ControlType
from ecd.edge.calls import EdgeCalls
from ecd.edge.handing import PORT
from ecd.edge.results import TOKEN_BYTES, TOP_BYTES
from ecd.edge.run_args import RunArgs
from ecd.engine.llama import SAMPLE_BYTES, SAMPLES
from ecd.errors import Code
from ecd.logprobs import LOWEST, MAX_TOP, TokenLogprobs
from ecd.pages import Encoding, Shape, pack
from ecd.sampling import MAX_Q_TOKENS, Noise, Sampling, uniforms
from ecd.wire import messages
from ecd.wire.connection import (
    ALLOWED,
    COMMIT,
    FEATURES,
    FRAME_S,
    HANDSHAKE_FRAME_BYTES,
    HANDSHAKE_FRAMES,
    HANDSHAKE_ITEMS,
    MAJOR,
    MAX_PONG_BYTES,
    MAX_STREAM,
    MAX_UNANSWERED_PINGS,
    MINOR,
    ON_STREAM_ZERO,
    PAGES,
    PRIORITY,
    Closed,
    Priority,
)
from ecd.wire.fingerprint import PROBES
from ecd.wire.frames import LENGTH_BYTES, MAX_FRAME_BYTES, MAX_ITEMS, decode_body, encode_frame
from ecd.wire.link import MAX_QUEUED_BYTES, STUCK_S
from ecd.wire.messages import BY_TYPE, FIELDS, Finish, KvOp, Message, Origin, from_fields, to_fields
from ecd.wire.prefix import BLOCK_TOKENS, blocks
from ecd.wire.transfer import CHUNK_BYTES, FIRST_WINDOW_BYTES, MAX_RUN_TOKENS, MOST_WINDOW_BYTES

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
PROSE = " ".join(TEXT.split())


def table(*header: str) -> list[list[str]]:
    """Rows of the one table whose header is exactly this."""
    lines = TEXT.splitlines()
    at = [i for i, line in enumerate(lines) if line == f"| {' | '.join(header)} |"]
    assert len(at) == 1, f"{len(at)} tables have the header {header}"
    rows = []
    for line in lines[at[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
        assert len(rows[-1]) == len(header), line
    return rows


def fenced(kind: str) -> str:
    """Content of the one fenced block of this kind."""
    (block,) = re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return block


def name_of(kind: type[Message]) -> str:
    return kind.__name__.upper()


def golden_frames() -> list[tuple[int, Message, bytes]]:
    """Id width, message and bytes of every golden frame."""
    names = {kind.__name__: kind for kind in BY_TYPE.values()}
    inner = (
        Code,
        Finish,
        Origin,
        KvOp,
        messages.HintWeights,
        messages.Alternate,
        messages.Pace,
        TokenLogprobs,
    )
    names |= {k.__name__: k for k in inner}
    frames = []
    for block in fenced("golden").split("\n\n"):
        width, message, *digits = block.strip().splitlines()
        value = eval(message, {"__builtins__": {}}, names)
        frames.append((int(width.removeprefix("width ")), value, bytes.fromhex("".join(digits))))
    return frames


GOLDEN = golden_frames()
FRAMES = table("type", "name", "way", "stream", "priority", "fields")


class TestFrameTable:
    def test_lists_every_message_with_its_number(self) -> None:
        assert [(int(row[0]), row[1]) for row in FRAMES] == [
            (t, name_of(k)) for t, k in sorted(BY_TYPE.items())
        ]

    @pytest.mark.parametrize("row", FRAMES, ids=lambda row: row[1])
    def test_lists_fields_in_order_with_their_types(self, row: list[str]) -> None:
        kind = BY_TYPE[int(row[0])]
        names = [f.name for f in fields(kind)][1:]
        listed = [tuple(item.split(": ")) for item in re.findall(r"`([^`]+)`", row[5])]
        assert listed == [(name, codec.name) for name, codec in zip(names, FIELDS[kind], strict=True)]

    @pytest.mark.parametrize("row", FRAMES, ids=lambda row: row[1])
    def test_says_direction_stream_and_priority(self, row: list[str]) -> None:
        kind = BY_TYPE[int(row[0])]
        receivers = {role.name for (role, _), kinds in ALLOWED.items() if kind in kinds}
        # ERROR ends a handshake at the edge, and afterwards either end's connection.
        ways = {"e->c": {"CLOUD"}, "c->e": {"EDGE"}, "both": {"CLOUD", "EDGE"}}
        assert receivers == ways[row[2]]
        stream = "0 or session" if kind is messages.Credit else "0" if kind in ON_STREAM_ZERO else "session"
        assert row[3] == stream
        assert row[4] == PRIORITY.get(kind, Priority.CONTROL).name

    def test_every_field_has_its_meaning_explained(self) -> None:
        rows = table("frame", "field", "meaning")
        explained: dict[str, set[str]] = {}
        owners: list[str] = []
        for frame, names, meaning in rows:
            owners = frame.split(", ") if frame else owners
            assert meaning
            for owner in owners:
                explained.setdefault(owner, set()).update(re.findall(r"`(\w+)`", names))
        for kind in BY_TYPE.values():
            assert {f.name for f in fields(kind)} - {"stream"} == explained[name_of(kind)], kind

    def test_codec_names_are_all_defined(self) -> None:
        defined = {
            name for row in table("name", "msgpack", "meaning") for name in re.findall(r"`(\w+)`", row[0])
        }
        used = {codec.name for codecs in FIELDS.values() for codec in codecs}
        assert {name.removesuffix(" or nil").removeprefix("array of ") for name in used} <= defined


@pytest.mark.parametrize("kind", [Finish, Origin, KvOp], ids=lambda kind: kind.__name__)
def test_enum_tables_list_every_value(kind: type[Enum]) -> None:
    rows = table(kind.__name__, "number", "meaning")
    assert [(row[0], int(row[1])) for row in rows] == [(member.name, member.value) for member in kind]


def test_allowed_table_is_the_connection_s() -> None:
    rows = table("receiver", "state", "may receive")
    listed = {(role, state): set(names.split()) for role, state, names in rows}
    assert listed == {(r.name, s.name): {name_of(k) for k in kinds} for (r, s), kinds in ALLOWED.items()}


def test_code_table_lists_every_code_and_whether_it_is_worth_a_retry() -> None:
    rows = table("code", "name", "retry", "sent when")
    listed = [(int(row[0]), row[1], row[2] == "yes") for row in rows]
    assert listed == [(code.value, code.name, Closed(code, "").retry) for code in Code]


def test_control_table_lists_every_frame_of_the_control_socket() -> None:
    rows = table("control type", "name", "way", "fields")
    assert [(int(row[0]), row[1]) for row in rows] == [(kind.value, kind.name) for kind in ControlType]
    assert not {kind.value for kind in ControlType} & BY_TYPE.keys()


def test_verb_table_lists_what_both_daemons_offer() -> None:
    rows = table("daemon", "verb", "arguments", "result")
    offered = [("edge", verb) for verb in EdgeCalls.handlers(EdgeCalls.__new__(EdgeCalls))]
    offered += [("cloud", verb) for verb in CloudCalls.handlers(CloudCalls.__new__(CloudCalls))]
    assert [(row[0], row[1].strip("`")) for row in rows] == offered


def test_run_arguments_are_all_listed() -> None:
    rows = table("run argument", "default", "meaning")
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert listed == set(RunArgs.model_fields)


def test_sampling_table_lists_every_setting_with_its_default() -> None:
    rows = table("sampling key", "default", "range and meaning")
    wanted = {f.name: f.default for f in fields(Sampling)}
    assert MISSING not in wanted.values()
    listed = {row[0].strip("`"): json.loads(row[1].strip("`")) for row in rows}
    assert listed == json.loads(json.dumps(wanted))


def test_limits_in_the_text_are_those_of_the_code() -> None:
    limits = dict(table("limit", "value"))
    assert limits["length field"] == f"{LENGTH_BYTES} bytes"
    assert limits["longest body"].startswith(f"{MAX_FRAME_BYTES} bytes")
    assert limits["longest PONG, with its length field"] == f"{MAX_PONG_BYTES} bytes"
    assert limits["longest body before the handshake is done"].startswith(f"{HANDSHAKE_FRAME_BYTES} bytes")
    assert limits["most items of an array or map"] == str(MAX_ITEMS)
    assert limits["the same before the handshake is done"] == str(HANDSHAKE_ITEMS)
    assert limits["most arrays and maps in a body"] == "twice as many"
    assert f"from 1 to {MAX_STREAM};" in PROSE
    assert f"more than {MAX_CALLS} running calls" in PROSE
    assert f"more than {MAX_QUEUED_BYTES >> 20} MiB; or nothing" in PROSE
    assert f"had room for within {STUCK_S:g} s" in PROSE
    assert f"one of more than {HANDSHAKE_FRAMES} frames with PROTOCOL" in PROSE
    assert f"not complete within {FRAME_S:g} s of its first byte" in PROSE
    assert f"No more than {MAX_UNANSWERED_PINGS} unanswered PINGs" in PROSE
    assert f"for no longer than {MAX_PATIENCE_S:g} s" in PROSE
    assert f"at most {MAX_Q_TOKENS} ids, each with a weight" in PROSE
    assert f"When OPEN has `logprobs`, 0 to {MAX_TOP}, every TOKENS" in PROSE
    assert f"all different, at most {MAX_TOP} of them" in PROSE
    assert f"a probability that is not above 0 counts as {LOWEST!r}." in PROSE
    assert f"{MAX_FRAME_BYTES} / ({TOKEN_BYTES} + {TOP_BYTES} n)" in PROSE
    assert TEXT.startswith(f"# The ecd protocol, version {MAJOR}.{MINOR}\n")
    for feature in FEATURES:
        parts = "OPEN.limit, COMMIT and AUDIT" if feature == COMMIT else rf"(DRAFT|OPEN)\.{feature}(_hash)?"
        assert re.search(rf"`{feature}` \({parts}\)", PROSE)
    assert f"and `{PAGES}` (section 9.1)" in PROSE
    assert f"runs of at most {MAX_RUN_TOKENS} positions" in PROSE
    assert f"chunks of exactly {CHUNK_BYTES} bytes" in PROSE
    assert f"gives {FIRST_WINDOW_BYTES} first" in PROSE
    assert PROSE.count(f"{MOST_WINDOW_BYTES} bytes of credit") == 1
    assert f"HOST[:PORT] where it takes answers over (port {PORT})" in PROSE
    assert f"{SAMPLES} samples of {SAMPLE_BYTES} bytes" in PROSE


def test_probe_texts_are_the_fingerprint_s() -> None:
    assert tuple(json.loads(fenced("json probes"))) == PROBES


def test_prefix_hashes_are_the_code_s() -> None:
    first, second = (block_hash.hex() for block_hash, _ in blocks(range(1, 131)))
    assert f"H(1) and H(2) are\n\n    {first}\n    {second}\n" in TEXT
    assert f"`prefix_len` is a multiple of {BLOCK_TOKENS}," in PROSE


def test_noise_numbers_follow_from_the_formula_and_are_the_code_s() -> None:
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    rows = table("seed", "position", "id", "purpose", "U")
    assert {int(row[3]) for row in rows} == {purpose.value for purpose in Noise}
    for row in rows:
        seed, position, token, purpose = map(int, row[:4])
        key = mix((mix((seed + golden * purpose) & mask) + golden * (position + 1)) & mask)
        h = mix((key + golden * token) & mask)
        assert float(row[4]) == ((h >> 12) + 0.5) / 2**52
        assert float(row[4]) == uniforms(seed, position, np.array([token]), Noise(purpose))[0]


class TestGoldenFrames:
    @pytest.mark.parametrize(("width", "message", "frame"), GOLDEN, ids=lambda v: type(v).__name__)
    def test_decodes_to_its_message_and_back(self, width: int, message: Message, frame: bytes) -> None:
        assert int.from_bytes(frame[:LENGTH_BYTES], "big") == len(frame) - LENGTH_BYTES
        assert from_fields(decode_body(frame[LENGTH_BYTES:]), width) == message
        assert encode_frame(to_fields(message, width)) == frame

    def test_show_every_message_and_every_optional_field_both_ways(self) -> None:
        for kind, codecs in FIELDS.items():
            shown = [message for _, message, _ in GOLDEN if type(message) is kind]
            assert shown, kind
            for field, codec in zip(fields(kind)[1:], codecs, strict=True):
                if codec.name.endswith("or nil"):
                    present = {getattr(message, field.name) is not None for message in shown}
                    assert present == {True, False}, (kind, field.name)
                if "ids" in codec.name:
                    assert {width for width, m, _ in GOLDEN if type(m) is kind} == {2, 3}, kind


class TestPages:
    def test_ops_are_those_of_the_code(self) -> None:
        rows = table("op", "`first` `last`", "`model` `encoding`", "`chunk` `chunks`", "`checksum` `payload`")
        assert {row[0] for row in rows} == {op.name for op in KvOp}

    def test_a_header_is_what_the_table_says(self) -> None:
        sizes = [row[0] for row in table("bytes", "header")]
        assert sizes == ["4", "16", "2, 2", "4, 4", "16", "4, 4 for each layer"]
        shape = Shape(b"m" * 16, 3, ((192, 64), (192, 32)))
        expected = struct.pack(
            ">4s16sHHII16sIIII", b"ECDK", b"q8_0+zstd", 2, 3, 256, 512, b"m" * 16, 192, 64, 192, 32
        )
        assert shape.header(Encoding.Q8_0, 256, 512) == expected

    def test_content_is_what_the_text_says(self) -> None:
        shape = Shape(b"m" * 16, 1, ((32, 32),))
        cells = np.arange(-64, 64, dtype=np.float16).reshape(2, 64)
        header = len(shape.header(Encoding.F16, 0, 2))
        plain = zstandard.decompress(pack(shape, Encoding.F16, 0, cells))[header:]
        numbers = [struct.unpack("<e", bytes([plain[i], plain[128 + i]]))[0] for i in range(128)]
        assert numbers == cells.ravel().tolist()
        packed = zstandard.decompress(pack(shape, Encoding.Q8_0, 0, cells))[header:]
        scales = struct.unpack("<4e", packed[:8])
        for block, scale in enumerate(scales):
            numbers = cells.ravel()[32 * block : 32 * block + 32]
            assert scale == pytest.approx(np.abs(numbers).max() / 127, rel=1e-3)
            signed = struct.unpack("32b", packed[8 + 32 * block : 40 + 32 * block])
            assert [scale * n for n in signed] == pytest.approx(numbers.tolist(), abs=scale)
