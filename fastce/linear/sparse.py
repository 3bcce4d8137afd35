"""Sparse rows: their logits and the gradient of the weights, by kernels that touch no zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastce import _kernels


def _padded(n_classes: int, dtype: np.dtype) -> int:
    """Classes in whole vectors."""
    lanes = _kernels.kernels.LANES[dtype.name]
    return -(-n_classes // lanes) * lanes


def has_room(x: Any, w: NDArray, dtype: np.dtype, memory: int) -> bool:
    """Whether weights the other way round, and sums of their gradients, take at most half of `memory`."""
    return x.shape[1] * _padded(max(2, len(w)), dtype) * (dtype.itemsize + 8) <= memory // 2


class _Products:
    """Products of CSR rows with weights the other way round, a block of rows at a time, and back.

    Of two classes, if binary, the logit of the first is 0 and the weights are those of the other.
    """

    def __init__(self, x: Any, n_classes: int, dtype: np.dtype, binary: bool) -> None:
        index_type = np.int32 if x.indices.dtype == x.indptr.dtype == np.int32 else np.int64
        self.entries = (
            np.ascontiguousarray(x.indptr, index_type),
            np.ascontiguousarray(x.indices, index_type),
            np.ascontiguousarray(x.data, dtype),
        )
        self.shape, self.dtype = (x.shape[1], _padded(n_classes, dtype)), dtype
        self.columns = slice(int(binary), n_classes)
        self.sums = np.zeros(self.shape)

    def weights(self, w: NDArray, bias: NDArray | None) -> tuple[NDArray, NDArray]:
        weights, biases = np.zeros(self.shape, self.dtype), np.zeros(self.shape[1], self.dtype)
        weights[:, self.columns] = w.T
        if bias is not None:
            biases[self.columns] = bias
        return weights, biases

    def array(self, n_rows: int, room: int) -> NDArray:
        """For logits of a block of rows in `room` bytes."""
        n_block = room // (self.shape[1] * self.dtype.itemsize)
        return np.empty((max(1, min(n_rows, n_block)), self.shape[1]), self.dtype)


def run(
    rows: Any,
    x: Any,
    w: NDArray,
    bias: NDArray | None,
    grads: tuple[NDArray | None, NDArray | None],
    accumulate: bool,
    dtype: np.dtype,
    memory: int,
    binary: bool,
) -> None:
    """Add the losses of CSR features `x` to `rows`, and write the other gradients: `blocks.run`."""
    n_rows, n_classes = x.shape[0], 2 if binary else len(w)
    products = _Products(x, n_classes, dtype, binary)
    weights = products.weights(w, bias)
    of_w, of_bias = grads
    with_grad = of_w is not None or of_bias is not None
    bias_sums = np.zeros(n_classes)
    logits = products.array(n_rows, memory // 2)
    for first in range(0, n_rows, len(logits)):
        z = logits[: n_rows - first]
        rows.sparse_logits(*products.entries, first, *weights, z)
        rows.of_block(z[:, :n_classes], first, with_grad)
        if of_bias is not None:
            bias_sums += z[:, :n_classes].sum(axis=0, dtype=np.float64)
        if of_w is not None:
            ignored = rows.ignored(first, len(z))
            used = np.ones(len(z), np.uint8) if ignored is None else (~ignored).view(np.uint8)
            rows.add_sparse_grad(*products.entries, first, z, used, products.sums)
    for out, sums in ((of_w, products.sums.T), (of_bias, bias_sums)):
        if out is not None:
            out[...] = out + sums[products.columns] if accumulate else sums[products.columns]


def hessian_product(
    rows: Any,
    x: Any,
    coef: tuple[NDArray, NDArray | None],
    direction: tuple[NDArray, NDArray | None],
    of_w: NDArray,
    of_bias: NDArray | None,
    dtype: np.dtype,
    memory: int,
    binary: bool,
) -> None:
    """The Hessian of the mean times weights and bias of a direction: `blocks.hessian_product`."""
    n_rows, n_classes = x.shape[0], 2 if binary else len(coef[0])
    products = _Products(x, n_classes, dtype, binary)
    weights, others = products.weights(*coef), products.weights(*direction)
    bias_sums, used = np.zeros(n_classes), np.ones(n_rows, np.uint8)
    logits = products.array(n_rows, memory // 4)
    product = np.zeros_like(logits)
    for first in range(0, n_rows, len(logits)):
        z, t = logits[: n_rows - first], product[: n_rows - first]
        rows.sparse_logits(*products.entries, first, *weights, z)
        rows.sparse_logits(*products.entries, first, *others, t)
        rows.hessian_rows(z[:, :n_classes], t[:, :n_classes], first, binary)
        bias_sums += t[:, :n_classes].sum(axis=0, dtype=np.float64)
        rows.add_sparse_grad(*products.entries, first, t, used[first:], products.sums)
    of_w[...] = products.sums[:, products.columns].T
    if of_bias is not None:
        of_bias[...] = bias_sums[products.columns]
