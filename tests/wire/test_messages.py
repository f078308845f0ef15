"""Messages: every one survives the wire, and what does not fit its field is refused by name."""

import math
import struct
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.errors import Code, ProtocolError
from ecd.logprobs import TokenLogprobs
from ecd.wire.fields import MAX_MAP_DEPTH
from ecd.wire.frames import LENGTH_BYTES, decode_body, encode_frame, pack_ids
from ecd.wire.messages import (
    BY_TYPE,
    FIELDS,
    Alternate,
    Audit,
    Commit,
    Credit,
    Draft,
    Error,
    Finish,
    Goaway,
    Hello,
    HintWeights,
    Kv,
    KvOp,
    Message,
    Open,
    Origin,
    Pace,
    Ping,
    Pong,
    Reset,
    Tokens,
    Welcome,
    from_fields,
    to_fields,
)


def floats(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}f", *numbers)


U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
SHOWN = st.text(st.characters(exclude_categories=["Cc", "Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | U64 | st.floats(allow_nan=False) | SHOWN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHOWN, inner, max_size=3),
    max_leaves=5,
)
MAPS = st.dictionaries(SHOWN, VALUES, max_size=3)
TEXTS = st.lists(st.text(), max_size=3).map(tuple)


def messages(width: int) -> st.SearchStrategy[Message]:
    """Any message whose token ids fit the width."""
    token = st.integers(0, 256**width - 1)
    ids = st.lists(token, max_size=8).map(tuple)
    weights = st.lists(st.tuples(token, st.integers(1, 255)), min_size=1, unique_by=lambda pair: pair[0]).map(
        lambda pairs: HintWeights(tuple(i for i, _ in pairs), bytes(w for _, w in pairs))
    )
    q = st.none() | st.lists(weights, max_size=3).map(tuple)
    confidence = st.none() | st.binary(max_size=8)
    pace = st.builds(Pace, U32, U32)
    alternates = st.none() | st.lists(st.builds(Alternate, U32, ids), max_size=3).map(tuple)
    number = st.floats(max_value=0, allow_infinity=False, width=32)
    pairs = st.lists(st.tuples(token, number), max_size=20, unique_by=lambda pair: pair[0])
    top = pairs.map(lambda found: tuple(sorted(found, key=lambda pair: -pair[1])))
    logprobs = st.none() | st.lists(st.builds(TokenLogprobs, number, top), max_size=3).map(tuple)
    code = st.sampled_from(Code)
    u8 = st.none() | st.integers(0, 255)
    auth = st.none() | st.binary()
    return st.one_of(
        st.builds(Hello, U32, U16, U16, TEXTS, auth, MAPS, MAPS, st.text()),
        st.builds(Welcome, U32, U16, U16, TEXTS, MAPS, MAPS, MAPS, st.text()),
        st.builds(Open, U32, auth, U32, ids, ids, MAPS, U32, TEXTS, pace, u8, u8, st.none() | U32),
        st.builds(Draft, U32, U32, U32, ids, confidence, q, alternates, st.none() | pace),
        st.builds(Tokens, U32, U32, ids, U16, U16, U32, st.sampled_from(Finish), logprobs, st.none() | U32),
        st.builds(Commit, U32, U32, ids, st.sampled_from(Origin), U32, U16),
        st.builds(
            Kv, U32, st.sampled_from(KvOp), st.binary(), U32, U32, U32, U32, st.text(), U32, st.binary()
        ),
        st.builds(Credit, U32, U32),
        st.builds(Ping, U32, U64),
        st.builds(Pong, U32, U64, MAPS),
        st.builds(Goaway, U32, code, st.text()),
        st.builds(Reset, U32, code, st.text()),
        st.builds(Error, U32, code, st.text()),
        st.builds(Audit, U32, U32, st.binary(), U16),
    )


ANY = st.sampled_from([2, 3]).flatmap(lambda width: st.tuples(st.just(width), messages(width)))
EXAMPLES: dict[type[Message], Message] = {
    type(message): message
    for message in (
        Hello(0, 1, 0, ("q",), None, {}, {}, "a"),
        Welcome(0, 1, 0, ("q",), {}, {}, {}, "a"),
        Open(1, None, 0, (1,), (), {}, 5, (), Pace(0, 1), 2, 1, 9),
        Draft(1, 3, 3, (7,), b"\xff", (HintWeights((7, 8), b"\x05\x01"),), (Alternate(4, (1,)),), Pace(9, 2)),
        Tokens(1, 3, (7,), 1, 1, 9, Finish.NONE, (TokenLogprobs(-0.5, ((7, -0.5), (8, -1.5))),), 64),
        Commit(1, 3, (7,), Origin.TARGET, 4, 1),
        Kv(1, KvOp.DROP, b"", 3, 3, 0, 1, "", 0, b""),
        Credit(1, 5),
        Ping(0, 5),
        Pong(0, 5, {}),
        Goaway(0, Code.DRAINING, "m"),
        Reset(1, Code.CANCELLED, "m"),
        Error(0, Code.PROTOCOL, "m"),
        Audit(1, 3, b"\x01", 1),
    )
}
BAD: dict[str, tuple[Any, ...]] = {
    "u16": (-1, 1 << 16, True, 1.0, "1", None),
    "u32": (-1, 1 << 32, True, 1.0, "1", None),
    "u32 or nil": (-1, 1 << 32, True, 1.0, "1"),
    "u64": (-1, True, 1.0, "1", None),
    "str": (b"a", 1, None, ["a"]),
    "bin": ("a", 1, None),
    "bin or nil": ("a", 1, [b"a"]),
    "map": ([], None, 1, {b"a": 1}),
    "ids": (b"a", b"abc", [1], "ab", None),
    "array of str": ("ab", [1], [None], {}, None),
    "array of logprob or nil": (
        [-0.5],
        [None],
        {},
        [[b""]],
        [[b"", b"", b""]],
        [["", floats(-1.0)]],
        [[b"", [-1.0]]],
        [[b"", b""]],  # no number for the token itself
        [[b"", floats(-1.0)[:3]]],
        [[b"", floats(-1.0, -1.0)]],
        [[b"\0\7", floats(-1.0)]],
        [[b"\0\7\0", floats(-1.0, -1.0)]],
        [[b"\0\7\0\7", floats(-1.0, -1.0, -1.0)]],  # an id twice
        [[b"\0\7\0\1", floats(-1.0, -2.0, -1.0)]],  # not by likelihood
        [[b"", floats(0.5)]],
        [[b"", floats(math.nan)]],
        [[b"", floats(-math.inf)]],
        [[bytes(range(42)), floats(*[-1.0] * 22)]],  # 21 tokens
    ),
    "u8 or nil": (-1, 256, True, 1.0, "1"),
    "array of alternate or nil": ([1], [[1]], [[-1, b""]], [[True, b""]], [[1, b"a"]], [[1, b"", 1]], {}),
    "pace": ([], [1], [1, 2, 3], [-1, 1], [1, True], [1, 1.0], [1 << 32, 1], {}, 5, None),
    "pace or nil": ([], [1], [1, -1], [None, 1], {}, 5),
    "array of weights or nil": (
        [1],
        [[b"ab"]],
        [[b"", b""]],  # nothing could have been drawn
        [[b"ab", b""]],
        [[b"ab", b"\x00"]],
        [[b"ab", b"\x01\x01"]],
        [[b"abab", b"\x01\x01"]],  # an id twice
        [[b"abc", b"\x01"]],
        [["ab", b"\x01"]],
        [[b"ab", "\x01"]],
        [[b"ab", b"\x01", 1]],
        {},
    ),
    "Code": (-1, 99, True, None, "PROTOCOL"),
    "Finish": (-1, 9, True, "STOP"),
    "Origin": (-1, 9, True, None),
    "KvOp": (-1, 9, True, None),
}
EVERY_FIELD = [
    (kind, index, codec.name) for kind, codecs in FIELDS.items() for index, codec in enumerate(codecs, 2)
]


@given(ANY)
def test_every_message_survives_the_wire(sent: tuple[int, Message]) -> None:
    width, message = sent
    body = encode_frame(to_fields(message, width))[LENGTH_BYTES:]
    assert from_fields(decode_body(body), width) == message


@given(ANY, st.lists(VALUES, max_size=3))
def test_fields_beyond_the_known_ones_are_ignored(sent: tuple[int, Message], extra: list[Any]) -> None:
    width, message = sent
    array = to_fields(message, width)
    array += [None] * (2 + len(FIELDS[type(message)]) - len(array))
    assert from_fields(array + extra, width) == message


@given(ANY)
def test_trailing_nils_are_left_out_and_may_be_there(sent: tuple[int, Message]) -> None:
    width, message = sent
    array = to_fields(message, width)
    assert array[-1] is not None
    full = array + [None] * (2 + len(FIELDS[type(message)]) - len(array))
    assert from_fields(full, width) == message


@given(ANY, st.integers(2, 12), VALUES)
def test_any_value_in_any_field_gives_a_message_or_a_protocol_error(
    sent: tuple[int, Message], index: int, value: Any
) -> None:
    width, message = sent
    array = to_fields(message, width)
    array[min(index, len(array) - 1)] = value
    try:
        received = from_fields(array, width)
    except ProtocolError:
        return
    assert type(received) is type(message)


@pytest.mark.parametrize(
    ("kind", "index", "codec"), EVERY_FIELD, ids=lambda v: v.__name__ if isinstance(v, type) else str(v)
)
class TestEveryField:
    def test_refuses_what_is_not_of_its_type_by_name(
        self, kind: type[Message], index: int, codec: str
    ) -> None:
        name = fields(kind)[index - 1].name
        for value in BAD[codec]:
            array = to_fields(EXAMPLES[kind], 2)
            array[index] = value
            with pytest.raises(ProtocolError, match=rf"^{kind.__name__.upper()}\.{name} is no {codec}$"):
                from_fields(array, 2)

    def test_may_be_missing_only_where_it_is_optional(
        self, kind: type[Message], index: int, codec: str
    ) -> None:
        array = to_fields(EXAMPLES[kind], 2)[:index]
        rest = [c.name for c in FIELDS[kind][index - 2 :]]
        if all(name.endswith("or nil") for name in rest):
            message = from_fields(array, 2)
            assert getattr(message, fields(kind)[index - 1].name) is None
        else:
            with pytest.raises(ProtocolError):
                from_fields(array, 2)


@pytest.mark.parametrize("kind", [n for n in range(70) if n not in BY_TYPE] + [2**32 - 1])
def test_an_unknown_type_is_no_message_whatever_it_holds(kind: int) -> None:
    assert from_fields([kind, 0], 2) is None
    assert from_fields([kind, 7, {"a": [1]}, None], 2) is None


def test_ids_of_the_other_width_are_refused_or_are_other_ids() -> None:
    array = to_fields(Draft(1, 3, 3, (1, 2)), 2)
    with pytest.raises(ProtocolError, match=r"DRAFT\.ids is no ids"):
        from_fields(array, 3)
    array = to_fields(Draft(1, 3, 3, (1,)), 3)
    with pytest.raises(ProtocolError, match=r"DRAFT\.ids is no ids"):
        from_fields(array, 2)


def test_an_optional_field_in_the_middle_is_sent_as_nil() -> None:
    alternates = (Alternate(4, (1,)),)
    array = to_fields(Draft(1, 3, 3, (7,), alternates=alternates), 2)
    assert array == [4, 1, 3, 3, pack_ids((7,), 2), None, None, [[4, pack_ids((1,), 2)]]]


def test_a_position_fits_32_bits_in_alternates_too() -> None:
    array = to_fields(EXAMPLES[Draft], 2)
    array[7] = [[1 << 32, b""]]
    with pytest.raises(ProtocolError, match=r"DRAFT\.alternates"):
        from_fields(array, 2)


@pytest.mark.parametrize(
    "told",
    [
        {"name": "\x1b]0;pwned\x07"},
        {"name": "big\nlink.state  connected"},
        {"name": "\x9b2J"},
        {"\x7f": 1},
        {"a": [{"\x1b[2J": 1}]},
        {"a": b"no JSON"},
        {"a": {b"key": 1}},
    ],
    ids=ascii,
)
def test_a_map_has_nothing_that_a_terminal_obeys_or_json_lacks(told: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=r"PONG\.load is no map"):
        from_fields([Pong.TYPE, 0, 7, told], 2)


def test_a_map_nests_no_deeper_than_others_can_be_told_of_it() -> None:
    value: Any = 1
    for depth in range(1, MAX_MAP_DEPTH + 2):
        value = {"x": value} if depth % 2 else [value]
        told = {"load": value}
        fields = [Pong.TYPE, 0, 7, told]
        if depth < MAX_MAP_DEPTH:
            assert from_fields(fields, 2) == Pong(0, 7, told)
        else:
            with pytest.raises(ProtocolError, match=r"PONG\.load is no map"):
                from_fields(fields, 2)
