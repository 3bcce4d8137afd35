"""Blocks of rows through BLAS: where weights are so many that products are what takes the time.

A block has all its logits in one array where `memory` has room for enough rows of them: the row code puts
their gradient in their place, and that goes into the two products of the gradients. Else a part of the
classes has its logits at a time. The row code adds each part to the sums of its rows, and a part's logits are
computed once more for its gradient: four products instead of three. For a loss alone that costs nothing, and
parts that stay in cache are quicker.
"""

from __future__ import annotations

from math import ceil, isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastce._kernels.entry.gathered import Gathered, row_bytes
from fastce.linear import sparse
from fastce.linear.products import HELD_BYTES, SUMMED_BYTES, WIDE_BYTES, Blocks, Products, plan


@np.errstate(all="ignore")
def run(
    rows: Any,
    x: Any,
    w: NDArray,
    bias: NDArray | None,
    grads: tuple[NDArray | Gathered | None, NDArray | None, NDArray | None],
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
        (N, D), (C, D) and (C,) of any dtypes; `x` may be a CSR array, `sparse.Products` of it, or `Gathered`.
    grads
        Of `x`, `w` and `bias`, each an array of its shape or None; that of `x` may be `Gathered`.
    accumulate : bool
        Add to what `grads` hold.
    dtype : dtype
        What is computed in.
    memory : int
        Bytes to hold at most.
    binary : bool
        Of two classes the logit of one is 0, that of the other the product with the only row of `w`.
    """
    if hasattr(x, "tocsr") and sparse.has_room(x, len(w), dtype, memory):
        x = sparse.Products(x, 2 if binary else len(w), dtype, binary)
    if isinstance(x, sparse.Products):
        sparse.run(rows, x, w, bias, grads[1:], accumulate, memory)
    else:
        _Run(rows, x, w, bias, grads, accumulate, dtype, binary).run(memory)


class _Run(Products):
    """A call, and the arrays that its blocks share."""

    def __init__(
        self,
        rows: Any,
        x: Any,
        w: NDArray,
        bias: NDArray | None,
        grads: tuple[NDArray | Gathered | None, NDArray | None, NDArray | None],
        accumulate: bool,
        dtype: np.dtype,
        binary: bool,
    ) -> None:
        super().__init__(x, w, bias, dtype, rows.n_threads or None, binary)
        self.rows, self.accumulate = rows, accumulate
        self.of_x, self.of_w, self.of_bias = grads
        self.with_grad = any(grad is not None for grad in grads)
        # Whether the gradient of the features is not where products are added up.
        self.sums_input = self.of_x is not None and (
            accumulate or self.of_x.dtype != dtype or isinstance(self.of_x, Gathered)
        )
        # Whether those of a block are a copy, which may be changed.
        self.is_copied = self.is_converted or isinstance(x, Gathered)

    def _plan(self, memory: int) -> Blocks:
        n_rows, n_features = self.x.shape
        item, per_row, per_class, in_parts = self.dtype.itemsize, 0, 0, 0
        if self.is_widened or self.of_w is not None or self.is_sparse:
            per_class = n_features
        if self.is_sparse:  # SciPy's products are new arrays, of contiguous ones
            per_class, per_row = 3 * per_class, 2 * min(self.n_classes, isqrt(HELD_BYTES // item))
        elif self.is_converted or (self.with_grad and self.rows.has_ignored and not self.is_copied):
            per_row += n_features  # converted, or without those that do not count
        per_row += self.by_class + ceil((row_bytes(self.x, self.of_x) + self.rows.row_bytes) / item)
        if self.of_x is not None:
            per_row += n_features * (self.sums_input + self.is_widened)
            in_parts = n_features * (not self.is_widened)
        most = WIDE_BYTES if self.is_widened or self.is_sparse else SUMMED_BYTES
        shape, per_row = (n_rows, n_features, self.n_classes), (per_row, per_row + in_parts)
        blocks = plan(shape, item, *per_row, per_class, most, self.with_grad, memory)
        return blocks._replace(n_held=2) if self.first_column else blocks

    def _most_entries(self, memory: int) -> int:
        """Of a block of sparse rows that is converted, or copied without the ignored rows; 0: any number."""
        if not self.is_sparse:
            return 0
        item = self.x.data.itemsize
        per_entry = self.dtype.itemsize * (self.x.dtype != self.dtype)
        per_entry += 4 * (self.x.indices.itemsize > 4)  # SciPy makes int32 of indices where it can
        per_entry += (item + 1) * (self.with_grad and self.rows.has_ignored)
        return max(1, memory // 4 // per_entry) if per_entry else 0

    def run(self, memory: int) -> None:
        n_rows = self.x.shape[0]
        if self.of_bias is not None:
            self.bias_sum = np.zeros(len(self.w))
            memory -= self.bias_sum.nbytes
        # Sums of halves would be rounded at each block: they are wide where `memory` has room for that.
        narrow = self.of_w if self.of_w is not None and self.of_w.dtype != self.dtype else None
        if narrow is not None and 2 * narrow.size * self.dtype.itemsize <= memory:
            self.of_w = narrow.astype(self.dtype) if self.accumulate else np.zeros(narrow.shape, self.dtype)
            memory -= self.of_w.nbytes
        most = self._most_entries(memory)
        blocks = self._plan(memory - memory // 4 if most else memory)
        self.hold(blocks, self.is_widened or self.of_w is not None)
        for block in sparse.cut(self.x, blocks.n_rows, most):
            self._block(block)
        if self.of_bias is not None:
            self.of_bias[...] = self.bias_sum + self.of_bias if self.accumulate else self.bias_sum
        if n_rows == 0 and self.of_w is not None and not self.accumulate:
            self.of_w[...] = 0
        if narrow is not None and self.of_w is not narrow:
            narrow[...] = self.of_w

    def _block(self, block: slice) -> None:
        rows, first, n_rows = self.rows, block.start, block.stop - block.start
        x = self.features(block)
        if self.is_whole:
            rows.of_block(self.whole_logits(x), first, self.with_grad)
        else:
            kept = None
            for classes, w in self.parts():
                z = self.logits(n_rows, classes)
                kept = rows.begin_parts(z, first) if kept is None else kept
                self.multiply(x, w, classes, z)
                rows.sweep_part(kept, z, first, classes.start)
            rows.finish_parts(kept, z, first, self.with_grad)
        if not self.with_grad:
            return
        ignored = rows.ignored(first, n_rows)
        used = x if ignored is None else _without(x, ignored, self.is_copied)
        total = None
        for classes, w in self.parts():
            g = self.logits(n_rows, classes)
            if not self.is_whole:
                self.multiply(x, w, classes, g)
                rows.write_part(kept, g, first, classes.start)
            if self.of_bias is not None:
                self.bias_sum[classes] += np.ones(n_rows, self.dtype) @ g
            if self.of_x is not None and total is not None:
                total += g @ w
            elif self.of_x is not None:
                total = np.matmul(g, w, out=None if self.sums_input else self.of_x[block])
            if self.of_w is not None:
                self._add_weight_grad(g, used, classes, first > 0 or self.accumulate)
        if self.of_x is not None:
            self._put_input_grad(total, block)

    def _put_input_grad(self, total: NDArray, block: slice) -> None:
        if self.accumulate:
            total += self.of_x[block]
        if self.sums_input:
            self.of_x[block] = total

    def _add_weight_grad(self, g: NDArray, x: Any, classes: slice, is_later: bool) -> None:
        if not (is_later or self.is_sparse) and self.of_w.dtype == self.dtype:
            _multiply_back(g, x, self.of_w[classes])
            return
        for start in range(0, g.shape[1], self.n_part):
            columns = slice(start, min(start + self.n_part, g.shape[1]))
            out, product = self.of_w[classes][columns], self.beside[: columns.stop - start]
            if self.is_sparse:
                product[...] = (x.T @ g[:, columns]).T
            else:
                _multiply_back(g[:, columns], x, product)
            if is_later:
                np.add(out, product, out=out, casting="unsafe")
            else:
                out[...] = product


def _multiply_back(g: NDArray, x: NDArray, out: NDArray) -> None:
    """The product of the gradient's columns with the features: of one row NumPy's would be without BLAS."""
    if len(g) == 1:
        np.einsum("nc,nd->cd", g, x, out=out)
    else:
        np.matmul(g.T, x, out=out)


def _without(x: Any, rows: NDArray, in_place: bool) -> Any:
    """Features with 0 in some rows: what these hold is not used."""
    if hasattr(x, "tocsr"):
        data = x.data.copy()
        data[np.repeat(rows, np.diff(x.indptr))] = 0
        return type(x)((data, x.indices, x.indptr), shape=x.shape)
    x = x if in_place else x.copy()
    x[rows] = 0
    return x


# ---- For solvers --------------------------------------------------------------------------------


@np.errstate(all="ignore")
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
    """The Hessian of the mean of all rows at weights and bias `coef`, times those of a direction."""
    if isinstance(x, sparse.Products):
        sparse.hessian_product(rows, x, coef, direction, of_w, of_bias, memory)
        return
    n_rows, n_classes = x.shape[0], 2 if binary else len(coef[0])
    n_block = max(1, memory // (2 * dtype.itemsize * (n_classes + (x.dtype != dtype) * x.shape[1])))
    held = np.zeros((2, min(n_block, n_rows), n_classes), dtype)
    of_w[...] = 0
    if of_bias is not None:
        of_bias[...] = 0
    for first in range(0, n_rows, n_block):
        xb = x[first : first + n_block].astype(dtype, copy=False)
        z, t = held[:, : xb.shape[0]]
        z[:, :binary] = 0
        for (w, bias), out in ((coef, z[:, binary:]), (direction, t[:, binary:])):
            out[...] = product(xb, w, bias, dtype)
        rows.hessian_rows(z, t, first, binary)
        of_w += transposed_product(t[:, binary:], xb)
        if of_bias is not None:
            of_bias += t[:, binary:].sum(axis=0, dtype=np.float64)


def product(x: Any, w: NDArray, bias: NDArray | None, dtype: np.dtype) -> NDArray:
    """Logits of rows."""
    z = x.astype(dtype, copy=False) @ w.T.astype(dtype, copy=False)
    return z if bias is None else z + bias.astype(dtype)


def transposed_product(g: NDArray, x: Any) -> NDArray:
    """The product of gradients of logits with features."""
    return (x.astype(g.dtype, copy=False).T @ g).T


def squared(x: Any) -> Any:
    """Features squared, one by one."""
    if isinstance(x, np.ndarray):
        return np.square(x)
    if not x.has_canonical_format:  # entries of the same place add up
        x = x.copy()
        x.sum_duplicates()
    return type(x)((np.square(x.data), x.indices, x.indptr), shape=x.shape)
