"""Blocks of rows through BLAS: where weights are so many that products are what takes the time.

A block is as many rows as `memory` has room for logits of. Their logits are a product in one array, the row
code puts their gradient in its place, and that goes into the two products of the gradients. A part of the
classes at a time is widened where weights are halves, and has its sums added to those of the blocks before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastce.linear import sparse

PART_BYTES = 1 << 20  # of the gradient of the weights of a part of the classes
WIDE_BYTES = 1 << 23  # of weights that are widened
CACHED_BYTES = 1 << 24  # of logits that are no longer needed when their loss is known


@np.errstate(all="ignore")
def run(
    rows: Any,
    x: NDArray,
    w: NDArray,
    bias: NDArray | None,
    ignored: NDArray | None,
    grads: tuple[NDArray | None, NDArray | None, NDArray | None],
    accumulate: bool,
    dtype: np.dtype,
    memory: int,
    binary: bool = False,
) -> None:
    """Add the losses of features `x` by weights `w` to `rows`, and write the gradients that are arrays.

    Parameters
    ----------
    rows : LinearRows
        Targets and options, checked.
    x, w, bias
        (N, D), (C, D) and (C,) of any dtypes; `x` may be a CSR array.
    ignored : (N,) ndarray of bool, or None
        Rows that do not count.
    grads
        Of `x`, `w` and `bias`, each an array of its shape or None.
    accumulate : bool
        Add to what `grads` hold.
    dtype : dtype
        What is computed in.
    memory : int
        Bytes to hold at most.
    binary : bool
        Of two classes the logit of one is 0, that of the other the product with the only row of `w`.
    """
    (n_rows, n_features), n_classes, item = x.shape, 2 if binary else len(w), dtype.itemsize
    is_sparse = not isinstance(x, np.ndarray)
    if is_sparse and sparse.has_room(x, w, dtype, memory):
        sparse.run(rows, x, w, bias, ignored, grads[1:], accumulate, dtype, memory, binary)
        return
    of_x, of_w, of_bias = grads
    with_grad = any(grad is not None for grad in grads)

    in_parts = w.dtype != dtype or of_w is not None or is_sparse
    part_bytes = min(PART_BYTES if w.dtype == dtype else WIDE_BYTES, memory // 4)
    n_part = min(n_classes, max(1, part_bytes // max(1, n_features * item))) if in_parts else 0
    per_row = n_classes
    if not is_sparse and (x.dtype != dtype or (with_grad and ignored is not None and ignored.any())):
        per_row += n_features  # converted, or without those that do not count
    if of_x is not None and (accumulate or of_x.dtype != dtype):
        per_row += n_features
    row_bytes = item * per_row
    room = memory - n_part * n_features * item - 8 * n_classes * (of_bias is not None)
    if room < row_bytes:
        need = row_bytes + memory - room
        raise ValueError(
            f"memory is {memory}; expected at least {need} bytes, which one row of {n_classes} logits and "
            f"{n_features} features needs"
        )
    if not with_grad:
        room = min(room, max(CACHED_BYTES, row_bytes))
    n_block = max(1, min(n_rows, room // row_bytes))
    n_block = -(-n_rows // -(-n_rows // n_block)) if n_rows else 1  # blocks of about the same size

    logits = np.empty((n_block, n_classes), dtype)
    part = np.empty((n_part, n_features), dtype)
    bias_sum = np.zeros(len(w)) if of_bias is not None else None
    wide_bias = None if bias is None else bias.astype(dtype, copy=False)
    for first in range(0, n_rows, n_block):
        block = slice(first, min(first + n_block, n_rows))
        z = logits[: block.stop - first]
        xb = x[block] if is_sparse else x[block].astype(dtype, copy=False)
        if binary:
            z[:, 0] = 0
        _logits(xb, w, wide_bias, part, z[:, binary:])
        rows.of_block(z, first, with_grad)
        z = z[:, binary:]
        if not with_grad:
            continue
        without = None if ignored is None or not ignored[block].any() else ignored[block]
        if of_x is not None:
            _input_grad(z, w, part, without, accumulate, of_x[block])
        if of_bias is not None:
            bias_sum += np.ones(len(z), dtype) @ z
        if of_w is not None:
            if without is not None:
                xb = _without(xb, without)
            _add_weight_grad(z, xb, part, first > 0 or accumulate, of_w)
    if of_bias is not None:
        of_bias[...] = bias_sum + of_bias if accumulate else bias_sum
    if n_rows == 0 and of_w is not None and not accumulate:
        of_w[...] = 0


def _parts(w: NDArray, part: NDArray) -> Any:
    """The classes of each part, and their weights, wide."""
    for start in range(0, len(w), max(1, len(part))):
        classes = slice(start, min(start + len(part), len(w)))
        wide = part[: classes.stop - start]
        np.copyto(wide, w[classes], casting="unsafe")
        yield classes, wide


def _logits(x: Any, w: NDArray, bias: NDArray | None, part: NDArray, z: NDArray) -> None:
    if not isinstance(x, np.ndarray):
        for classes, wide in _parts(w, part):
            z[:, classes] = x @ wide.T
    elif w.dtype == z.dtype:
        np.matmul(x, w.T, out=z)
    else:
        for classes, wide in _parts(w, part):
            np.matmul(x, wide.T, out=z[:, classes])
    if bias is not None:
        z += bias


def _input_grad(
    g: NDArray, w: NDArray, part: NDArray, without: NDArray | None, accumulate: bool, out: NDArray
) -> None:
    direct = not accumulate and out.dtype == g.dtype
    total = out if direct else np.empty(out.shape, g.dtype)
    if w.dtype == g.dtype:
        np.matmul(g, w, out=total)
    else:
        total[...] = 0
        for classes, wide in _parts(w, part):
            total += g[:, classes] @ wide
    if without is not None:
        total[without] = 0  # not 0 times a weight, which may be infinite
    if accumulate:
        total += out
    if not direct:
        out[...] = total


def _without(x: Any, rows: NDArray) -> Any:
    """Features with 0 in some rows: what these hold is not used."""
    if isinstance(x, np.ndarray):
        x = x.copy()
        x[rows] = 0
        return x
    x = x.copy()
    x.data[np.repeat(rows, np.diff(x.indptr))] = 0
    return x


def _add_weight_grad(g: NDArray, x: Any, part: NDArray, accumulate: bool, out: NDArray) -> None:
    if not accumulate and out.dtype == g.dtype and isinstance(x, np.ndarray):
        np.matmul(g.T, x, out=out)
        return
    for start in range(0, len(out), len(part)):
        classes = slice(start, min(start + len(part), len(out)))
        wide = part[: classes.stop - start]
        if isinstance(x, np.ndarray):
            np.matmul(g[:, classes].T, x, out=wide)
        else:
            wide[...] = (x.T @ g[:, classes]).T
        if accumulate:
            wide += out[classes]
        out[classes] = wide


# ---- For solvers --------------------------------------------------------------------------------


def product(x: Any, w: NDArray, bias: NDArray | None, dtype: np.dtype) -> NDArray:
    """Logits of rows."""
    z = x.astype(dtype, copy=False) @ w.T.astype(dtype, copy=False)
    return z if bias is None else z + bias.astype(dtype)


def transposed_product(g: NDArray, x: Any) -> NDArray:
    """The product of gradients of logits with features."""
    return (x.astype(g.dtype, copy=False).T @ g).T


def squared(x: Any) -> Any:
    """Features squared, one by one."""
    return np.square(x) if isinstance(x, np.ndarray) else x.multiply(x).tocsr()
