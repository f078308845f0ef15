"""KV pages: there and back, what q8_0 loses, and everything that is refused."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ecd.errors import PageError
from ecd.pages import Cells, Encoding, Shape, pack, unpack

SHAPE = Shape(b"m" * 16, 3, ((192, 192), (192, 128)))
FIRST, LAST = 64, 84


def some_cells(seed: int = 1, positions: int = LAST - FIRST) -> Cells:
    return np.random.default_rng(seed).normal(0, 3, (positions, SHAPE.width)).astype(np.float16)


def test_f16_loses_nothing() -> None:
    cells = some_cells()
    data = pack(SHAPE, Encoding.F16, FIRST, cells)
    assert np.array_equal(unpack(SHAPE, Encoding.F16, FIRST, LAST, data), cells)


def test_q8_0_is_within_half_a_step_of_each_block_and_half_as_long() -> None:
    cells = some_cells()
    cells[3] = 0
    data = pack(SHAPE, Encoding.Q8_0, FIRST, cells)
    back = unpack(SHAPE, Encoding.Q8_0, FIRST, LAST, data)
    blocks, off = (a.astype(np.float32).reshape(-1, 32) for a in (cells, back - cells))
    # Half a step of a block, and what float16 cannot tell apart.
    assert (np.abs(off).max(axis=1) <= np.abs(blocks).max(axis=1) * (0.5 / 127 + 2**-10)).all()
    assert not back[3].any()
    assert len(data) < 0.6 * len(pack(SHAPE, Encoding.F16, FIRST, cells))


def test_numbers_that_tell_much_the_same_compress() -> None:
    small = (some_cells() / 100).astype(np.float16)
    assert len(pack(SHAPE, Encoding.F16, 0, small)) < 0.95 * small.nbytes


@pytest.mark.parametrize("encoding", Encoding)
def test_no_pages_are_longer_than_their_bound(encoding: Encoding) -> None:
    noise = np.random.default_rng(2).integers(0, 0x7BFF, (LAST - FIRST, SHAPE.width), np.uint16)
    assert len(pack(SHAPE, encoding, FIRST, noise.view(np.float16))) <= SHAPE.most_bytes(
        encoding, FIRST, LAST
    )


@pytest.mark.parametrize(
    ("shape", "encoding", "first", "last"),
    [
        (Shape(b"n" * 16, 3, SHAPE.layers), Encoding.F16, FIRST, LAST),
        (Shape(b"m" * 16, 1, SHAPE.layers), Encoding.F16, FIRST, LAST),
        (Shape(b"m" * 16, 3, ((192, 128), (192, 192))), Encoding.F16, FIRST, LAST),
        (SHAPE, Encoding.Q8_0, FIRST, LAST),
        (SHAPE, Encoding.F16, FIRST + 1, LAST + 1),
        (SHAPE, Encoding.F16, FIRST, LAST - 1),
    ],
    ids=["model", "heads", "layers", "encoding", "positions", "number"],
)
def test_what_was_not_asked_for_is_refused(shape: Shape, encoding: Encoding, first: int, last: int) -> None:
    data = pack(SHAPE, Encoding.F16, FIRST, some_cells())
    with pytest.raises(PageError):
        unpack(shape, encoding, first, last, data)


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_numbers_that_are_none_are_refused(encoding: Encoding, bad: float) -> None:
    cells = some_cells()
    cells[7, 9] = bad
    with np.errstate(invalid="ignore"):
        data = pack(SHAPE, encoding, FIRST, cells)
    with pytest.raises(PageError, match="finite"):
        unpack(SHAPE, encoding, FIRST, LAST, data)


def test_a_bomb_is_refused_by_what_it_declares() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(PageError, match="came where there are"):
        unpack(SHAPE, Encoding.F16, FIRST, LAST, bomb)


def test_a_frame_that_declares_nothing_is_refused() -> None:
    content = SHAPE.header(Encoding.F16, FIRST, LAST) + some_cells().tobytes()
    quiet = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    with pytest.raises(PageError):
        unpack(SHAPE, Encoding.F16, FIRST, LAST, quiet)


@given(st.binary(max_size=200), st.integers(0, 4000))
def test_no_bytes_do_anything_but_be_refused(noise: bytes, at: int) -> None:
    data = pack(SHAPE, Encoding.F16, FIRST, some_cells(positions=2))
    at %= len(data)
    for bad in (noise, data[:at] + noise, data + noise):
        if bad != data:
            try:
                cells = unpack(SHAPE, Encoding.F16, FIRST, FIRST + 2, bad)
            except PageError:
                continue
            # Only what a checksum is for: the numbers may differ, nothing else.
            assert cells.shape == (2, SHAPE.width)
