"""llama.cpp's state of a sequence as cells by position, and back.

Pure. Owns how llama.cpp lays such a state out (`state_write` in its src/llama-kv-cache.cpp) where keys and
values are float16; other kinds are refused. Its reader trusts what it is given, so it is only ever given
what `write` made of numbers: not a byte of what came from elsewhere steers it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecd.errors import EngineError
from ecd.pages import Cells

State = NDArray[np.uint8]

F16 = 1  # GGML_TYPE_F16
# Of a cell: its position, in how many sequences it is, and in which.
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
# Newer releases tell how keys and values are rotated before the first layer, 8 bytes; older ones do not.
_ROTATIONS = (0, 8)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one context writes a sequence's state.

    magic: what it begins with. streams: how many caches of cells there are, all but one of them empty in a
    state. transposed: values lie by channel and not by position. rotation: bytes before the first layer.
    layers: numbers of a position's keys and values in each.
    """

    magic: int
    streams: int
    transposed: bool
    rotation: bytes
    layers: tuple[tuple[int, int], ...]

    @property
    def width(self) -> int:
        """Numbers of one position."""
        return sum(keys + values for keys, values in self.layers)

    def columns(self) -> Iterator[tuple[slice, slice]]:
        """Where in a position's numbers each layer's keys and values are."""
        at = 0
        for keys, values in self.layers:
            yield slice(at, at + keys), slice(at + keys, at + keys + values)
            at += keys + values


def read(state: State) -> tuple[Layout, NDArray[np.int32], Cells]:
    """A state's layout, and its cells in the order of their positions.

    Raises EngineError for a state of another kind, such as that of a model that looks at a window only.
    """
    for rotation in _ROTATIONS:
        try:
            return _read(state.tobytes(), rotation)
        except (struct.error, ValueError):
            continue
    raise EngineError("this model's KV cache is of a kind whose pages ecd cannot take or give")


def write(layout: Layout, first: int, cells: Cells) -> State:
    """The state of a sequence that holds these cells at the positions from `first` on, at least one."""
    head = np.empty(len(cells), _CELL)
    head["position"] = np.arange(first, first + len(cells))
    head["sequences"], head["sequence"] = 1, 0
    parts = [
        struct.pack("<IiII", layout.magic, 0, layout.streams, len(cells)),
        head.tobytes(),
        struct.pack("<II", layout.transposed, len(layout.layers)),
        layout.rotation,
    ]
    columns = list(layout.columns())
    for keys, _ in columns:
        rows = np.ascontiguousarray(cells[:, keys], "<f2")
        parts += [struct.pack("<iQ", F16, 2 * rows.shape[1]), rows.tobytes()]
    for _, values in columns:
        rows = cells[:, values]
        if layout.transposed:
            parts.append(struct.pack("<iII", F16, 2, rows.shape[1]))
            parts.append(np.ascontiguousarray(rows.T, "<f2").tobytes())
        else:
            parts.append(struct.pack("<iQ", F16, 2 * rows.shape[1]))
            parts.append(np.ascontiguousarray(rows, "<f2").tobytes())
    # The other streams' counts, which are none.
    parts.append(bytes(4 * (layout.streams - 1)))
    return np.frombuffer(b"".join(parts), np.uint8).copy()


class _Cursor:
    """Reads a state from its beginning; ValueError or struct.error where it is too short."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    def numbers(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def array(self, dtype: np.dtype, count: int) -> NDArray:  # type: ignore[type-arg]
        array = np.frombuffer(self._data, dtype, count, self._at)
        self._at += array.nbytes
        return array

    def bytes(self, count: int) -> bytes:
        return self.array(np.dtype(np.uint8), count).tobytes()

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError


def _read(data: bytes, rotation_bytes: int) -> tuple[Layout, NDArray[np.int32], Cells]:
    cursor = _Cursor(data)
    magic, _, streams = cursor.numbers("<IiI")
    _need(0 < streams <= 256)
    filled: tuple[Layout, NDArray[np.int32], Cells] | None = None
    for _ in range(streams):
        (count,) = cursor.numbers("<I")
        if count:
            _need(filled is None)
            filled = _read_cells(cursor, magic, streams, count, rotation_bytes)
    _need(filled is not None and cursor.at_end)
    assert filled is not None
    return filled


def _read_cells(
    cursor: _Cursor, magic: int, streams: int, count: int, rotation_bytes: int
) -> tuple[Layout, NDArray[np.int32], Cells]:
    head = cursor.array(_CELL, count)
    _need(bool((head["sequences"] == 1).all()))
    transposed, n_layers = cursor.numbers("<II")
    _need(transposed <= 1 and 0 < n_layers <= 4096)
    rotation = cursor.bytes(rotation_bytes)
    keys = [_rows(cursor, count) for _ in range(n_layers)]
    values = [_channels(cursor, count) if transposed else _rows(cursor, count) for _ in range(n_layers)]
    layers = tuple((k.shape[1], v.shape[1]) for k, v in zip(keys, values, strict=True))
    layout = Layout(magic, streams, bool(transposed), rotation, layers)
    order = np.argsort(head["position"])
    cells = np.empty((count, layout.width), np.float16)
    for (key_columns, value_columns), k, v in zip(layout.columns(), keys, values, strict=True):
        cells[:, key_columns], cells[:, value_columns] = k[order], v[order]
    return layout, head["position"][order], cells


def _rows(cursor: _Cursor, count: int) -> Cells:
    kind, row_bytes = cursor.numbers("<iQ")
    _need(kind == F16 and row_bytes % 2 == 0 and row_bytes < 1 << 24)
    return cursor.array(np.dtype("<f2"), count * (row_bytes // 2)).reshape(count, -1)


def _channels(cursor: _Cursor, count: int) -> Cells:
    kind, element_bytes, width = cursor.numbers("<iII")
    _need(kind == F16 and element_bytes == 2)
    return cursor.array(np.dtype("<f2"), count * width).reshape(width, count).T
