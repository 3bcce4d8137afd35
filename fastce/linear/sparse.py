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


def run(
    rows: Any,
    x: Any,
    w: NDArray,
    bias: NDArray | None,
    ignored: NDArray | None,
    grads: tuple[NDArray | None, NDArray | None],
    accumulate: bool,
    dtype: np.dtype,
    memory: int,
    binary: bool,
) -> None:
    """Add the losses of CSR features `x` to `rows`, and write the other gradients: `blocks.run`."""
    (n_rows, n_features), n_classes = x.shape, 2 if binary else len(w)
    padded = _padded(n_classes, dtype)
    of_w, of_bias = grads
    with_grad = of_w is not None or of_bias is not None
    index_type = np.int32 if x.indices.dtype == x.indptr.dtype == np.int32 else np.int64
    entries = (
        np.ascontiguousarray(x.indptr, index_type),
        np.ascontiguousarray(x.indices, index_type),
        np.ascontiguousarray(x.data, dtype),
    )
    columns = slice(int(binary), n_classes)  # the logits of class 0 are 0 where they are not given
    weights = np.zeros((n_features, padded), dtype)
    weights[:, columns] = w.T
    biases = np.zeros(padded, dtype)
    if bias is not None:
        biases[columns] = bias
    sums = np.zeros((n_features, padded)) if of_w is not None else None
    bias_sums = np.zeros(n_classes)
    used = np.ones(n_rows, np.uint8) if ignored is None else (~ignored).astype(np.uint8)

    n_block = max(1, min(n_rows, memory // 2 // (padded * dtype.itemsize)))
    logits = np.empty((n_block, padded), dtype)
    for first in range(0, n_rows, n_block):
        z = logits[: min(n_block, n_rows - first)]
        rows.sparse_logits(*entries, first, weights, biases, z)
        rows.of_block(z[:, :n_classes], first, with_grad)
        if of_bias is not None:
            bias_sums += z[:, :n_classes].sum(axis=0, dtype=np.float64)
        if of_w is not None:
            rows.add_sparse_grad(*entries, first, z, used[first:], sums)
    if of_w is not None:
        of_w[...] = of_w + sums[:, columns].T if accumulate else sums[:, columns].T
    if of_bias is not None:
        of_bias[...] = of_bias + bias_sums[columns] if accumulate else bias_sums[columns]
