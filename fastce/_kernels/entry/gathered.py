"""Leading axes of an array as one axis of rows, also where no view of it has them so."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Gathered:
    """Rows whose axes are no single one in memory, as those of ``a[:, :-1]``: a slice of them is a copy."""

    def __init__(self, array: NDArray, n_axes: int) -> None:
        self.array, self.dtype = array, array.dtype
        self.lengths, rest = array.shape[:n_axes], array.shape[n_axes:]
        self.shape = (prod(self.lengths), *rest)
        self.row_bytes = array.itemsize * prod(rest) + 8 * (n_axes + 2)  # and of places while it is gathered

    def _places(self, rows: slice) -> tuple[NDArray, ...]:
        return np.unravel_index(np.arange(*rows.indices(self.shape[0])), self.lengths)

    def __getitem__(self, rows: slice) -> NDArray:
        if rows.start == 0 and rows.stop >= self.shape[0]:
            return self.array.reshape(self.shape)
        return self.array[self._places(rows)]

    def __setitem__(self, rows: slice, values: NDArray) -> None:
        self.array[self._places(rows)] = values


def rows_of(a: NDArray, n_axes: int) -> NDArray | Gathered:
    """The first `n_axes` axes as one: a view, or what copies no more rows than it is asked for."""
    if n_axes == 1:
        return a
    lengths = a.shape[:n_axes]
    steps = [(n, step) for n, step in zip(lengths, a.strides, strict=False) if n != 1]
    if a.size == 0 or all(outer == n * inner for (_, outer), (n, inner) in pairwise(steps)):
        return a.reshape(prod(lengths), *a.shape[n_axes:])
    return Gathered(a, n_axes)


def where_they_are(rows: NDArray | Gathered | None) -> NDArray | None:
    """Rows on the axes that they have in memory."""
    return rows.array if type(rows) is Gathered else rows


def row_bytes(*arrays: Any) -> int:
    """What a row takes in those of the arrays whose rows are gathered."""
    return sum([a.row_bytes for a in arrays if type(a) is Gathered])
