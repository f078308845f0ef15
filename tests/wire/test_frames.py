"""Frames: bytes to arrays and back, whatever the chunks, and nothing beyond the limits."""

import itertools
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.errors import ProtocolError
from ecd.wire.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    FrameReader,
    decode_body,
    encode_frame,
    id_width,
    is_uint,
    pack_ids,
    unpack_ids,
)

U32 = st.integers(0, 2**32 - 1)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ARRAYS = st.tuples(U32, U32, st.lists(VALUES, max_size=6)).map(lambda t: [t[0], t[1], *t[2]])
HEAD = b"\x93\x63\x00"  # an array of three: type 99, stream 0, and what follows


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at the given places."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


class TestEncoding:
    @given(ARRAYS)
    def test_a_frame_decodes_to_what_was_encoded(self, fields: list[object]) -> None:
        frame = encode_frame(fields)
        assert list(FrameReader().feed(frame)) == [(fields, len(frame))]

    def test_the_longest_frame_passes_and_one_byte_more_does_not(self) -> None:
        overhead = len(encode_frame([7, 1, b"x" * 70000])) - 70000 - LENGTH_BYTES
        longest = encode_frame([7, 1, bytes(MAX_FRAME_BYTES - overhead)])
        assert len(longest) == LENGTH_BYTES + MAX_FRAME_BYTES
        (received,) = FrameReader().feed(longest)
        assert received[1] == len(longest)
        with pytest.raises(ProtocolError, match="over the limit"):
            encode_frame([7, 1, bytes(MAX_FRAME_BYTES - overhead + 1)])


class TestChunking:
    @given(st.lists(ARRAYS, max_size=5), st.lists(st.integers(0, 10_000), max_size=12))
    def test_any_chunking_gives_the_same_frames(self, arrays: list[list[object]], cuts: list[int]) -> None:
        data = b"".join(map(encode_frame, arrays))
        reader = FrameReader()
        received = [frame for chunk in chunks(data, cuts) for frame in reader.feed(chunk)]
        assert received == [(fields, len(encode_frame(fields))) for fields in arrays]
        assert reader.buffered_bytes == 0

    def test_byte_by_byte_gives_each_frame_with_its_last_byte(self) -> None:
        data = encode_frame([9, 0, 1]) + encode_frame([9, 0, 2])
        reader = FrameReader()
        times = [i for i in range(len(data)) for _ in reader.feed(data[i : i + 1])]
        assert times == [len(data) // 2 - 1, len(data) - 1]

    def test_an_incomplete_frame_is_kept_and_counted(self) -> None:
        reader = FrameReader()
        assert list(reader.feed(encode_frame([9, 0, 1])[:-1])) == []
        assert reader.buffered_bytes == len(encode_frame([9, 0, 1])) - 1

    def test_a_limit_raised_between_two_frames_of_one_chunk_holds_for_the_second(self) -> None:
        reader = FrameReader(16)
        received = []
        for fields, _ in reader.feed(encode_frame([1, 0]) + encode_frame([2, 0, b"x" * 100])):
            received.append(fields[0])
            reader.max_frame_bytes = 200
        assert received == [1, 2]


class TestLength:
    @pytest.mark.parametrize("length", [0, 65, MAX_FRAME_BYTES, 2**31, 2**32 - 1])
    def test_outside_the_limit_is_refused_from_four_bytes_alone(self, length: int) -> None:
        reader = FrameReader(64)
        prefix = length.to_bytes(LENGTH_BYTES, "big")
        assert list(reader.feed(prefix[:3])) == []
        with pytest.raises(ProtocolError, match=rf"frame length {length} is not in 1\.\.64"):
            list(reader.feed(prefix[3:]))

    @pytest.mark.parametrize("length", [1, 64])
    def test_at_the_limit_waits_for_the_body(self, length: int) -> None:
        assert list(FrameReader(64).feed(length.to_bytes(LENGTH_BYTES, "big"))) == []

    def test_frames_before_the_bad_length_are_still_given(self) -> None:
        frames = FrameReader().feed(encode_frame([9, 0]) + bytes(4))
        assert next(frames) == ([9, 0], 7)
        with pytest.raises(ProtocolError):
            next(frames)


class TestBody:
    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"\xc1", "no msgpack type"),
            (b"\x93\x01\x00", "array cut short"),
            (b"\x92\x01\x00\x00", "a byte behind the array"),
            (b"\x92\x01\x00" * 2, "two arrays"),
            (b"\xc0", "no array"),
            (b"\x82\x01\x00\x02\x00", "a map"),
            (b"\x90", "no type"),
            (b"\x91\x01", "no stream"),
            (b"\x92\xc3\x00", "a boolean as type"),
            (b"\x92\x01\xc2", "a boolean as stream"),
            (b"\x92\xff\x00", "a negative type"),
            (b"\x92\x01\xff", "a negative stream"),
            (b"\x92\xcf\x00\x00\x00\x01\x00\x00\x00\x00\x00", "a type beyond u32"),
            (b"\x92\x01\xcf\x00\x00\x00\x01\x00\x00\x00\x00", "a stream beyond u32"),
            (b"\x92\xca\x3f\x80\x00\x00\x00", "a float as type"),
            (HEAD + b"\xa1\xff", "text that is not UTF-8"),
            (HEAD + b"\xa3\xed\xa0\x80", "a lone surrogate"),
            (HEAD + b"\x81\x01\x02", "an integer as map key"),
            (HEAD + b"\x81\x90\x02", "an array as map key"),
            (HEAD + b"\x81\xc0\x02", "nil as map key"),
            (HEAD + b"\xd4\x05a", "an extension"),
            (HEAD + b"\xd6\xff" + bytes(4), "a timestamp"),
            (HEAD + b"\xc7\x0c\xff" + b"\xff" * 12, "a long timestamp"),
            (HEAD + b"\xdd\xff\xff\xff\xff", "an array that declares 2^32 - 1 items"),
            (HEAD + b"\xdf\xff\xff\xff\xff", "a map that declares 2^32 - 1 items"),
            (HEAD + b"\xdb\xff\xff\xff\xff", "a string that declares 4 GiB"),
            (HEAD + b"\xc6\xff\xff\xff\xff", "a binary that declares 4 GiB"),
            (HEAD + b"\xc9\xff\xff\xff\xff\x05", "an extension that declares 4 GiB"),
            (HEAD + b"\xc4\x02a", "a binary cut short"),
            (b"\x91" * 100_000 + b"\xc0", "nested a hundred thousand deep"),
            (b"\x81\xa1a" * 100_000 + b"\xc0", "maps nested a hundred thousand deep"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_is_refused(self, body: bytes, why: str) -> None:
        with pytest.raises(ProtocolError):
            decode_body(body)

    def test_with_an_empty_extension_is_refused(self) -> None:
        with pytest.raises(ProtocolError):
            decode_body(HEAD + b"\xc7\x00\x05")

    def test_may_nest_five_hundred_deep(self) -> None:
        assert decode_body(HEAD + b"\x91" * 498 + b"\xc0")[0] == 99

    @pytest.mark.parametrize("kind", [b"\xdd", b"\xdf"], ids=["arrays", "maps"])
    def test_of_nested_declarations_does_not_reserve_what_they_declare(self, kind: bytes) -> None:
        # Every level declares as many items as the body has bytes; reserving them all would take 16 GiB.
        level = kind + MAX_FRAME_BYTES.to_bytes(4, "big") + (b"\xa0" if kind == b"\xdf" else b"")
        body = (level * 500).ljust(MAX_FRAME_BYTES, b"\xc0")
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                decode_body(body)
            assert tracemalloc.get_traced_memory()[1] < 128 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("head", "item"), [(b"\xdd", b"\xc0"), (b"\xdf", b"\xa4%04x\xc0")], ids=["arrays", "maps"]
    )
    def test_may_hold_so_many_items_in_one_place_and_not_one_more(self, head: bytes, item: bytes) -> None:
        def body(items: int) -> bytes:
            content = b"".join(item % n if b"%" in item else item for n in range(items))
            return HEAD + head + items.to_bytes(4, "big") + content

        assert len(decode_body(body(MAX_ITEMS))[2]) == MAX_ITEMS
        with pytest.raises(ProtocolError, match="max_"):
            decode_body(body(MAX_ITEMS + 1))

    def test_may_be_an_array_of_so_many_items_itself(self) -> None:
        assert len(decode_body(b"\xdc" + MAX_ITEMS.to_bytes(2, "big") + bytes(MAX_ITEMS))) == MAX_ITEMS
        with pytest.raises(ProtocolError):
            decode_body(b"\xdc" + (MAX_ITEMS + 1).to_bytes(2, "big") + bytes(MAX_ITEMS + 1))

    def test_text_and_binaries_may_be_longer_than_arrays(self) -> None:
        assert (
            decode_body(encode_frame([9, 0, "x" * 70_000, bytes(70_000)])[LENGTH_BYTES:])[2] == "x" * 70_000
        )

    def test_of_the_smallest_items_costs_less_than_a_hundred_times_its_length(self) -> None:
        body = b"\xdc\x0f\xf0" + b"\x01\x00" + b"\x80" * 0xFEE
        tracemalloc.start()
        try:
            assert len(decode_body(body)) == 0xFF0
            assert tracemalloc.get_traced_memory()[1] < 100 * len(body)
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("empty", [b"\x90", b"\x80"])
    def test_may_hold_so_many_arrays_and_maps_in_all(self, empty: bytes) -> None:
        def body(inner: int) -> bytes:
            # The frame's own, two in it, and those in them.
            full = b"\xdc" + MAX_ITEMS.to_bytes(2, "big") + empty * MAX_ITEMS
            return b"\x94\x63\x00" + full + b"\xdc" + inner.to_bytes(2, "big") + empty * inner

        assert len(decode_body(body(MAX_ITEMS - 3))[3]) == MAX_ITEMS - 3
        with pytest.raises(ProtocolError, match="more than 8192 arrays and maps"):
            decode_body(body(MAX_ITEMS - 2))

    def test_of_empty_arrays_takes_no_memory_for_all_of_them(self) -> None:
        # A byte each on the wire, 64 in memory: without a bound on their number, 285 MiB and a second.
        inner = b"\xdc\x10\x00" + b"\x90" * 4096
        body = b"\xdc\x04\x00\x63\x00" + inner * 1022
        assert MAX_FRAME_BYTES - 2 * len(inner) < len(body) <= MAX_FRAME_BYTES
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                decode_body(body)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @given(st.binary(max_size=64))
    def test_of_random_bytes_is_an_array_or_a_protocol_error(self, body: bytes) -> None:
        try:
            fields = decode_body(body)
        except ProtocolError:
            return
        assert is_uint(fields[0])
        assert is_uint(fields[1])

    @given(ARRAYS, st.integers(0, 10_000), st.integers(1, 255))
    def test_with_one_byte_changed_is_an_array_or_a_protocol_error(
        self, fields: list[object], at: int, flip: int
    ) -> None:
        body = bytearray(msgpack.packb(fields))
        body[at % len(body)] ^= flip
        try:
            changed = decode_body(bytes(body))
        except ProtocolError:
            return
        assert is_uint(changed[0])
        assert is_uint(changed[1])


class TestIds:
    @given(st.data(), st.sampled_from([2, 3]))
    def test_unpack_to_what_was_packed(self, data: st.DataObject, width: int) -> None:
        ids = tuple(data.draw(st.lists(st.integers(0, 256**width - 1))))
        packed = pack_ids(ids, width)
        assert packed == b"".join(token.to_bytes(width, "big") for token in ids)
        assert unpack_ids(packed, width) == ids
        assert all(type(token) is int for token in unpack_ids(packed, width))

    @pytest.mark.parametrize(("length", "width"), [(1, 2), (3, 2), (1, 3), (2, 3), (4, 3)])
    def test_of_no_whole_number_are_refused(self, length: int, width: int) -> None:
        with pytest.raises(ProtocolError, match="no whole number"):
            unpack_ids(bytes(length), width)

    @pytest.mark.parametrize(("token", "width"), [(1 << 16, 2), (1 << 24, 3)])
    def test_beyond_the_width_are_not_sent_as_other_ids(self, token: int, width: int) -> None:
        with pytest.raises(ProtocolError):
            pack_ids((token,), width)

    @pytest.mark.parametrize(("n_vocab", "width"), [(1, 2), (65536, 2), (65537, 3), (1 << 24, 3)])
    def test_take_as_many_bytes_as_the_vocabulary_needs(self, n_vocab: int, width: int) -> None:
        assert id_width(n_vocab) == width

    @pytest.mark.parametrize("n_vocab", [0, -1, (1 << 24) + 1])
    def test_of_a_vocabulary_they_cannot_cover_are_refused(self, n_vocab: int) -> None:
        with pytest.raises(ProtocolError, match=f"vocabulary of {n_vocab} tokens"):
            id_width(n_vocab)


@pytest.mark.parametrize("value", [True, False, -1, 256, 1.0, "1", b"1", None, [1]])
def test_only_integers_in_range_are_unsigned_integers(value: object) -> None:
    assert not is_uint(value, 8)
    assert is_uint(255, 8)
    assert is_uint(0, 8)
