"""Products of features and weights by BLAS: how rows and classes are cut into blocks, and the logits of one.

A block has all its logits in one array where `memory` has room for enough rows of them; else a part of the
classes has its logits at a time. What a block needs beside them, features or weights in another dtype, is in
its memory too.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, isqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastce import _kernels
from fastce._kernels.entry.gathered import Gathered, row_bytes
from fastce.linear import sparse
from fastce.linear.arguments import Layer

LEAST_ROWS = 128  # of whole logits: the products of fewer are slower than one product more...
LEAST_ROWS_OF_LOSS = 1024  # ... which a loss alone does not need
HELD_BYTES = 1 << 24  # of the logits of a part, four times as many classes as rows: allocators keep that
SUMMED_BYTES = 1 << 20  # of gradients of weights that are added to others
WIDE_BYTES = 1 << 23  # of weights that are widened
KEPT_BYTES = 256  # of a row's sums
FEW_CLASSES = 3  # as many products with a vector are quicker than one with a matrix that narrow


class Blocks(NamedTuple):
    """How a call is cut: rows of a block, classes whose logits it has at a time, and classes of a part."""

    n_rows: int
    n_held: int
    n_part: int


def plan(
    shape: tuple[int, int, int],
    item: int,
    per_row: int,
    per_row_in_parts: int,
    per_class: int,
    most_beside: int,
    with_grad: bool,
    memory: int,
    is_whole: bool = False,
) -> Blocks:
    """Choose blocks for (N, D, C) that take `memory` bytes at most.

    `per_row`, with whole logits or in parts, and `per_class` are numbers, of `item` bytes, that a row of a
    block and a class of a part take beside logits; for whole logits the latter are `most_beside` at most.
    `is_whole`: no row is in parts.
    """
    n_rows, n_features, n_classes = shape[0], shape[1], max(1, shape[2])
    beside = per_class * item

    def beside_at_once(most: int) -> int:
        return min(n_classes, max(1, min(most, memory // 4) // beside)) if beside else n_classes

    n_part, n_held = beside_at_once(most_beside), n_classes
    room = (memory - n_part * beside) // ((n_classes + per_row) * item)
    if is_whole and room < 1:
        least = (n_classes + per_row) * item + beside
        raise ValueError(
            f"memory is {memory}; expected at least {least} bytes, what one row of {n_classes} logits takes"
        )
    if not (with_grad or is_whole):
        room = min(room, HELD_BYTES // (n_classes * item))
    if not is_whole and room < min(n_rows, LEAST_ROWS if with_grad else LEAST_ROWS_OF_LOSS):
        least = per_row_in_parts * item + KEPT_BYTES
        held = min(HELD_BYTES, max(1, memory)) // item
        n_some = min(beside_at_once(WIDE_BYTES), isqrt(4 * held), (memory - least) // (beside + item))
        n_some = max(1, n_some)
        in_parts = min((memory - n_some * beside) // (n_some * item + least), max(LEAST_ROWS, held // n_some))
        if in_parts > 0:
            n_part, n_held, room = n_some, n_some, in_parts
        elif room < 1:
            raise ValueError(
                f"memory is {memory}; expected at least {least + beside + item} bytes, which one row and one "
                f"class of {n_features} features need"
            )
    n_blocks = -(-n_rows // max(1, room))
    return Blocks(-(-n_rows // n_blocks) if n_blocks else 1, n_held, n_part)


class Products:
    """Logits of blocks of rows, whole or a part of the classes at a time, all in the same memory."""

    def __init__(
        self,
        x: Any,
        w: NDArray,
        bias: NDArray | None,
        dtype: np.dtype,
        n_threads: int | None,
        binary: bool = False,
    ) -> None:
        self.x, self.w, self.dtype, self.n_threads = x, w, dtype, n_threads
        self.bias = None if bias is None else bias.astype(dtype, copy=False)
        self.first_column, self.n_classes = int(binary), 2 if binary else len(w)
        self.is_sparse = hasattr(x, "tocsr")
        # Whether products take a copy: without an axis of neighbours NumPy's go without BLAS.
        self.is_widened = w.dtype != dtype or _is_strided(w)
        self.is_converted = not self.is_sparse and (x.dtype != dtype or _is_strided(x))
        self.by_class = len(w) <= FEW_CLASSES and not self.is_sparse

    def hold(self, blocks: Blocks, has_beside: bool) -> None:
        """Take the memory of a block and, for what is beside its logits, of a part."""
        self.n_part, self.is_whole = blocks.n_part, blocks.n_held == self.n_classes
        self.held = np.empty(blocks.n_rows * blocks.n_held, self.dtype)
        self.beside = np.empty((self.n_part if has_beside else 0, self.w.shape[1]), self.dtype)

    def features(self, block: slice) -> Any:
        """Those of a block, in the dtype that is computed in, with an axis of neighbours."""
        if self.is_sparse:
            return sparse.rows_of(self.x, block)
        return self.x[block].astype(self.dtype, copy=self.is_converted)

    def whole_logits(self, x: Any) -> NDArray:
        """Those of all classes."""
        z = self.logits(x.shape[0], slice(0, self.n_classes))
        z[:, : self.first_column] = 0
        for classes, w in self.parts():
            self.multiply(x, w, classes, self.logits(x.shape[0], classes))
        return z

    def logits(self, n_rows: int, classes: slice) -> NDArray:
        """Where those of some classes are held, whole rows or this part alone."""
        if not self.is_whole:
            n_classes = classes.stop - classes.start
            return self.held[: n_rows * n_classes].reshape(n_rows, n_classes)
        z = self.held[: n_rows * self.n_classes].reshape(n_rows, self.n_classes)
        return z if classes.stop - classes.start == self.n_classes else z[:, self.first_column :][:, classes]

    def parts(self) -> Iterator[tuple[slice, NDArray]]:
        """Classes, and their weights in the dtype that is computed in."""
        n_part = self.n_part if self.is_widened or self.is_sparse or not self.is_whole else len(self.w)
        for start in range(0, len(self.w), n_part):
            classes = slice(start, min(start + n_part, len(self.w)))
            w = self.w[classes]
            if self.is_widened:
                _kernels.kernels.widen(w, self.beside[: len(w)], self.n_threads)
                w = self.beside[: len(w)]
            yield classes, w

    def multiply(self, x: Any, w: NDArray, classes: slice, z: NDArray) -> None:
        """Write the logits of some classes."""
        if self.is_sparse:
            z[...] = x @ w.T
        elif self.by_class:
            for column, of_class in enumerate(w):
                z[:, column] = x @ of_class
        else:
            np.matmul(x, w.T, out=z)
        if self.bias is not None:
            z += self.bias[classes]


def _is_strided(a: NDArray | Gathered) -> bool:
    return isinstance(a, np.ndarray) and a.itemsize not in a.strides


def of_blocks(layer: Layer, tokens: Any, n_threads: int | None) -> Iterator[tuple[slice, NDArray, NDArray]]:
    """Yield one block of whole rows after the other: which, their logits, in the same memory, and tokens."""
    products = Products(*layer[:4], n_threads)
    (n_rows, n_features), item = layer.x.shape, layer.dtype.itemsize
    per_row = n_features * products.is_converted + products.by_class + ceil(row_bytes(layer.x, tokens) / item)
    per_class = n_features * products.is_widened
    shape = n_rows, n_features, products.n_classes
    blocks = plan(shape, item, per_row, 0, per_class, WIDE_BYTES, False, layer.memory, is_whole=True)
    products.hold(blocks, products.is_widened)
    for first in range(0, max(n_rows, 1), blocks.n_rows):  # an empty block, where there are no rows
        with np.errstate(all="ignore"):
            z = products.whole_logits(products.features(slice(first, first + blocks.n_rows)))
        rows = slice(first, first + len(z))
        yield rows, z, tokens[rows]
