"""Sparse rows: their logits and the gradient of the weights, by kernels that touch no zeros."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastce import _kernels

LINE = 64  # bytes


def _padded(n_classes: int, dtype: np.dtype) -> int:
    """Classes in whole vectors; one is alone."""
    if n_classes == 1:
        return 1
    lanes = _kernels.kernels.LANES[dtype.name]
    return -(-n_classes // lanes) * lanes


def has_room(x: Any, n_classes: int, dtype: np.dtype, memory: int) -> bool:
    """Whether weights the other way round, and sums of their gradients, take at most half of `memory`."""
    n_features = 4 * _n_entries(x) if _is_scattered(x) else x.shape[1]  # 4: looking them up takes room too
    return n_features * _padded(n_classes, dtype) * (dtype.itemsize + 8) <= memory // 2


def _n_entries(x: Any) -> int:
    return int(x.indptr[-1] - x.indptr[0])


def _is_scattered(x: Any) -> bool:
    """Whether most features have no entry: those that have some are looked up."""
    return 8 * _n_entries(x) < x.shape[1]


def rows_of(x: Any, rows: slice) -> Any:
    """Some rows of a CSR array, whose entries stay where they are."""
    starts = x.indptr[rows.start : rows.stop + 1]
    entries = slice(starts[0], starts[-1])
    parts = (x.data[entries], x.indices[entries], starts - starts[0])
    return type(x)(parts, shape=(len(starts) - 1, x.shape[1]))


def cut(x: Any, n_rows: int, most: int) -> Iterator[slice]:
    """Cut rows into blocks of at most n, which have at most so many entries, if not 0, or are one row."""
    first = 0
    while first < x.shape[0]:
        end = min(first + n_rows, x.shape[0])
        if most:
            last = min(int(x.indptr[first]) + most, int(x.indptr[-1]))
            fitting = np.searchsorted(x.indptr, x.indptr.dtype.type(last), side="right") - 1
            end = min(end, max(int(fitting), first + 1))
        yield slice(first, end)
        first = end


def _as_read(x: Any, dtype: np.dtype) -> tuple[np.dtype, ...]:
    """Dtypes in which kernels read starts, indices and numbers."""
    index_type = np.int32 if x.indices.dtype == x.indptr.dtype == np.int32 else np.int64
    return np.dtype(index_type), np.dtype(index_type), dtype


def _zeros(shape: tuple[int, int], dtype: DTypeLike) -> NDArray:
    """Zeros that begin with a line of the cache: the run of a feature takes as few lines as can be."""
    n_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    memory = np.zeros(n_bytes + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + n_bytes].view(dtype).reshape(shape)


class Products:
    """Products of CSR rows with weights the other way round, a block of rows at a time, and back.

    Of two classes, if binary, the logit of the first is 0 and the weights are those of the other. For rows
    that are multiplied time and again, one is kept: from the second gradient on, `by_feature` serves.
    """

    def __init__(self, x: Any, n_classes: int, dtype: np.dtype, binary: bool) -> None:
        self.n_classes, self.n_grads = n_classes, 0
        self.used: slice | NDArray = slice(None)
        if _is_scattered(x):
            entries = slice(x.indptr[0], x.indptr[-1])
            self.used, places = np.unique(x.indices[entries], return_inverse=True)
            parts = x.data[entries], places.astype(x.indices.dtype), x.indptr - x.indptr[0]
            x = type(x)(parts, shape=(x.shape[0], len(self.used)))
        self.x, self.whole, self.dtypes = x, (x.indptr, x.indices, x.data), _as_read(x, dtype)
        self.is_read_as_is = all(
            a.dtype == kind and a.flags.c_contiguous for a, kind in zip(self.whole, self.dtypes, strict=True)
        )
        self.shape, self.dtype = (x.shape[1], _padded(n_classes - binary, dtype)), dtype
        self.n_columns, self.first = n_classes - binary, int(binary)

    @cached_property
    def by_feature(self) -> tuple[NDArray, NDArray, NDArray]:
        """Where the entries of each feature start, their rows and numbers."""
        x = type(self.x)((self.x.data.astype(self.dtype, copy=False), *self.whole[1::-1]), shape=self.x.shape)
        x = x.tocsc()
        parts = zip((x.indptr, x.indices, x.data), _as_read(x, self.dtype), strict=True)
        return tuple(a.astype(kind, copy=False) for a, kind in parts)

    def weights(self, w: NDArray, bias: NDArray | None) -> tuple[NDArray, NDArray]:
        weights, biases = _zeros(self.shape, self.dtype), np.zeros(self.shape[1], self.dtype)
        weights[:, : self.n_columns] = w[:, self.used].T
        if bias is not None:
            biases[: self.n_columns] = bias
        return weights, biases

    def put(self, sums: NDArray, out: NDArray, accumulate: bool) -> None:
        """Sums of gradients of the weights to where they belong."""
        sums = sums.T[: self.n_columns]
        if sums.shape != out.shape and not accumulate:
            out[...] = 0
        out[:, self.used] = out[:, self.used] + sums if accumulate else sums

    def add_grad(
        self, rows: Any, entries: tuple[Any, ...], g: NDArray, used: NDArray, sums: NDArray, memory: int
    ) -> None:
        """Add to `sums` gradients `g` of logits of a block of rows, those that are used, times features."""
        self.n_grads += 1
        g = g[:, self.first :]
        n_bytes = _n_entries(self.x) * sum(a.itemsize for a in self.dtypes[1:])
        if self.n_grads > 1 and len(g) == self.x.shape[0] and n_bytes <= memory // 4:
            rows.put_feature_grads(*self.by_feature, g, used, sums)
        else:
            rows.add_sparse_grad(*entries, g, used, sums)

    def array(self, room: int) -> NDArray:
        """For logits of a block of rows in `room` bytes, half of it for entries that are converted."""
        width = self.first + self.shape[1]  # of which a first 0
        row = width * self.dtype.itemsize
        n_block = room // row if self.is_read_as_is else room // 2 // (row + self.dtypes[0].itemsize)
        self.most = 0 if self.is_read_as_is else max(1, room // 2 // sum(t.itemsize for t in self.dtypes[1:]))
        return _zeros((max(1, min(self.x.shape[0], n_block)), width), self.dtype)

    def multiply(
        self, rows: Any, entries: tuple[Any, ...], weights: tuple[NDArray, NDArray], z: NDArray
    ) -> None:
        """Logits of a block of rows."""
        z[:, : self.first] = 0
        rows.sparse_logits(*entries, *weights, z[:, self.first :])

    def blocks(self, n_rows: int) -> Iterator[tuple[slice, tuple[NDArray, NDArray, NDArray, int]]]:
        """Which rows; their row starts, columns and numbers, as kernels read them, and the first."""
        for block in cut(self.x, n_rows, self.most):
            if self.is_read_as_is:
                yield block, (*self.whole, block.start)
            else:
                x = rows_of(self.x, block)
                parts = zip((x.indptr, x.indices, x.data), self.dtypes, strict=True)
                yield block, (*(np.ascontiguousarray(a, kind) for a, kind in parts), 0)


def _column_sums(z: NDArray) -> NDArray:
    """Sums in float64; of few columns NumPy's own takes several times as long."""
    return z.sum(axis=0, dtype=np.float64) if z.shape[1] == 1 else np.einsum("ij->j", z, dtype=np.float64)


def run(
    rows: Any,
    products: Products,
    w: NDArray,
    bias: NDArray | None,
    grads: tuple[NDArray | None, NDArray | None],
    accumulate: bool,
    memory: int,
) -> None:
    """Add the losses of CSR features to `rows`, and write the other gradients: `blocks.run`."""
    n_rows, n_classes = products.x.shape[0], products.n_classes
    weights = products.weights(w, bias)
    of_w, of_bias = grads
    with_grad = of_w is not None or of_bias is not None
    sums, bias_sums = None if n_rows else _zeros(products.shape, np.float64), np.zeros(products.n_columns)
    logits = products.array(memory // 2)
    for block, entries in products.blocks(len(logits)):
        first, z = block.start, logits[: block.stop - block.start]
        products.multiply(rows, entries, weights, z)
        if block.stop == n_rows:
            del weights  # whose memory sums can have
        rows.of_block(z[:, :n_classes], first, with_grad)
        if of_bias is not None:
            bias_sums += _column_sums(z[:, products.first : n_classes])
        if of_w is not None:
            ignored = rows.ignored(first, len(z))
            used = np.ones(len(z), np.uint8) if ignored is None else (~ignored).view(np.uint8)
            sums = _zeros(products.shape, np.float64) if sums is None else sums
            products.add_grad(rows, entries, z, used, sums, memory)
    if of_w is not None:
        products.put(sums, of_w, accumulate)
    if of_bias is not None:
        of_bias[...] = bias_sums + (of_bias if accumulate else 0)


def hessian_product(
    rows: Any,
    products: Products,
    coef: tuple[NDArray, NDArray | None],
    direction: tuple[NDArray, NDArray | None],
    of_w: NDArray,
    of_bias: NDArray | None,
    memory: int,
) -> None:
    """The Hessian of the mean times weights and bias of a direction: `blocks.hessian_product`."""
    n_classes, binary = products.n_classes, bool(products.first)
    weights, others = products.weights(*coef), products.weights(*direction)
    logits = products.array(memory // 4)
    product = np.empty_like(logits)
    sums, bias_sums = _zeros(products.shape, np.float64), np.zeros(products.n_columns)
    used = np.ones(len(logits), np.uint8)
    for block, entries in products.blocks(len(logits)):
        z, t = (a[: block.stop - block.start] for a in (logits, product))
        products.multiply(rows, entries, weights, z)
        products.multiply(rows, entries, others, t)
        rows.hessian_rows(z[:, :n_classes], t[:, :n_classes], block.start, binary)
        bias_sums += _column_sums(t[:, products.first : n_classes])
        products.add_grad(rows, entries, t, used[: len(t)], sums, memory)
    products.put(sums, of_w, False)
    if of_bias is not None:
        of_bias[...] = bias_sums
