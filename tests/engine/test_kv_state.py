"""llama.cpp's states written out by hand: read as cells, written from cells, and what is refused."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.engine.kv_state import Layout, State, read, write
from ecd.errors import EngineError
from ecd.pages import Cells

MAGIC = 0xAF143CD8
LAYERS = ((6, 6), (6, 4))


def some_cells(positions: int) -> Cells:
    return np.random.default_rng(3).normal(size=(positions, 22)).astype(np.float16)


def by_hand(layout: Layout, positions: list[int], cells: Cells, stream: int = 0, kind: int = 1) -> State:
    """As `state_write`, `state_write_meta` and `state_write_data` of llama.cpp do it, number by number."""
    out = struct.pack("<IiI", layout.magic, 5, layout.streams)
    for s in range(layout.streams):
        if s != stream:
            out += struct.pack("<I", 0)
            continue
        out += struct.pack("<I", len(positions))
        for position in positions:
            out += struct.pack("<iIi", position, 1, 5)
        out += struct.pack("<II", layout.transposed, len(layout.layers)) + layout.rotation
        at, values = 0, []
        for n_keys, n_values in layout.layers:
            out += struct.pack("<iQ", kind, 2 * n_keys)
            for row in cells:
                out += row[at : at + n_keys].tobytes()
            values.append(cells[:, at + n_keys : at + n_keys + n_values])
            at += n_keys + n_values
        for value in values:
            if layout.transposed:
                out += struct.pack("<iII", kind, 2, value.shape[1])
                for channel in range(value.shape[1]):
                    out += value[:, channel].tobytes()
            else:
                out += struct.pack("<iQ", kind, 2 * value.shape[1])
                for row in value:
                    out += row.tobytes()
    return np.frombuffer(out, np.uint8)


LAYOUTS = [
    Layout(MAGIC, streams, transposed, rotation, LAYERS)
    for streams in (1, 3)
    for transposed in (False, True)
    for rotation in (b"", bytes(8))
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_llama_cpp_wrote_is_read_in_the_order_of_positions(layout: Layout) -> None:
    cells = some_cells(4)
    state = by_hand(layout, [12, 10, 11, 13], cells, stream=layout.streams - 1)
    found, positions, read_cells = read(state)
    assert found == layout
    assert positions.tolist() == [10, 11, 12, 13]
    np.testing.assert_array_equal(read_cells, cells[[1, 2, 0, 3]])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_written_is_what_llama_cpp_reads(layout: Layout) -> None:
    cells = some_cells(3)
    state = write(layout, 64, cells)
    found, positions, again = read(state)
    assert found == layout
    assert positions.tolist() == [64, 65, 66]
    np.testing.assert_array_equal(again, cells)
    assert len(state) == len(by_hand(layout, [64, 65, 66], cells))


@pytest.mark.parametrize("kind", [0, 8])
def test_a_cache_of_other_numbers_is_refused(kind: int) -> None:
    with pytest.raises(EngineError, match="kind"):
        read(by_hand(LAYOUTS[0], [0], some_cells(1), kind=kind))


def test_an_empty_state_is_refused() -> None:
    with pytest.raises(EngineError):
        read(np.frombuffer(struct.pack("<IiII", MAGIC, 0, 1, 0), np.uint8))


@given(st.integers(0, 2000), st.binary(max_size=40))
def test_a_state_of_unknown_form_is_refused_and_nothing_else(at: int, noise: bytes) -> None:
    good = by_hand(LAYOUTS[2], [0, 1], some_cells(2)).tobytes()
    bad = good[: at % len(good)] + noise
    if bad != good[: len(bad)] or len(bad) != len(good):
        try:
            read(np.frombuffer(bad, np.uint8))
        except EngineError:
            return
        assert len(bad) == len(good)
