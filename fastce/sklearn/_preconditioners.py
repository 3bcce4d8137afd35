"""What stands for the Hessian in the steps of `_solver`, at the price of a few passes over X.

Design
------
A. For WHOLE coefficients or less the Hessian, of a sample where rows are many and of all where they are
   few; else the blocks of the classes on the diagonal, from a sample of the rows, where they are small;
   else the curvature of each class times the matrix X'X of a sample, which knows of columns that go
   together; else the Hessian's diagonal, and such a matrix of the columns that have most of it. Where that
   has not been enough for twice PATIENCE steps, the Hessian of all, if one can be afforded now and then.
B. Rare classes that weigh much would not be in a sample, and its minimum far away: rows that weigh more
   than one of the sample stands for are in it themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

import fastce
from fastce.linear import objective

__all__ = ["Preconditioner", "Problem", "of_hessian"]

EXACT_LATE, SIZE_LATE = 1e9, 256  # of a Hessian that is made late: operations, coefficients
PATIENCE, EARLY, LATE, WIDEST = 12, 4, 24, 2500
FLOOR = 0.05  # of the eigenvalues of classes' correlations
_TINY = float(np.finfo(float).tiny)
SAMPLE_BYTES = 1 << 25
WHOLE, LEAST, MOST = 1200, 6, 400  # coefficients of a Hessian of a sample, whose rows are so many times those
ROWS_PER_COLUMN, LATE_ROWS_PER_COLUMN = 50, 16  # of a block on the diagonal
SPARSE = 100  # operations in the time of an entry
LEAST_ROWS = 2048  # of X'X: in fewer, a column may be all 0
HEAVIEST = 128  # columns of a matrix beside the diagonal

Preconditioner = Callable[[NDArray], NDArray]


class Problem:
    """An objective, and what its preconditioners are made of."""

    def __init__(
        self,
        X: Any,
        target: NDArray,
        n_classes: int,
        sample_weight: NDArray | None,
        fit_intercept: bool,
        l2: float,
    ) -> None:
        self.objective = objective(
            X, target, n_classes, sample_weight=sample_weight, fit_intercept=fit_intercept, l2=l2
        )
        self.X, self.target, self.sample_weight = X, target, sample_weight
        self.options = n_classes, fit_intercept, l2
        self.used = None if sample_weight is None or sample_weight.all() else np.flatnonzero(sample_weight)
        self.n_used = X.shape[0] if self.used is None else len(self.used)
        self.n_rows = self.n_used  # of what this is a sample of

    def sample(self, n_rows: int) -> Problem | None:
        """The same of so many rows that count, or as many as memory allows, the same rows each time."""
        entries = self.X.nnz // max(1, self.X.shape[0]) if sparse.issparse(self.X) else self.X.shape[1]
        n_rows = min(n_rows, SAMPLE_BYTES // max(1, entries * self.X.dtype.itemsize))
        if n_rows >= self.n_used or n_rows < 1:
            return self if n_rows else None
        used, weight = np.arange(self.n_used) if self.used is None else self.used, self.sample_weight
        light, heavy = used, used[:0]
        if weight is not None:
            is_heavy = np.abs(weight[used]) > np.abs(weight).sum() / n_rows
            light, heavy = used[~is_heavy], used[is_heavy]
        n_light = n_rows - len(heavy)
        drawn = np.random.default_rng(0).choice(len(light), n_light, replace=False, shuffle=False)
        rows = np.concatenate([np.sort(light[drawn]), heavy])
        X, target = self.X[rows], self.target[rows]
        if weight is not None:
            weight = weight[rows]
            weight[n_light:] *= n_light / len(light)  # as others there are fewer of
        n_classes, fit_intercept, l2 = self.options
        part = Problem(X, target, n_classes, weight, fit_intercept, l2)
        part.n_rows = self.n_rows
        return part

    def best(self, w: NDArray, n_iter: int) -> Preconditioner:
        """What costs about as much as EARLY passes over X at first, and LATE ones when they have not been
        enough."""
        f, n_rows = self.objective, self.n_used
        n_classes, n_columns = f.shape[0], self.X.shape[1]
        if self.n_rows > n_rows and f.size <= WHOLE:  # little beside the passes over the rows it stands for
            if not w.any():  # all probabilities are equal
                return self.of_columns(w)
            wanted = EARLY * self.n_rows // f.size
            return self.of_all(w, int(np.clip(wanted, LEAST * f.size, MOST * f.size)))
        if n_iter > PATIENCE and f.size <= SIZE_LATE and n_rows * f.size**2 <= EXACT_LATE:
            return of_hessian(f, w)
        passes = LATE if n_iter else EARLY
        is_sparse, wanted = sparse.issparse(self.X), ROWS_PER_COLUMN * (n_columns + 1)
        if is_sparse:
            # A pass takes as long as a product of two entries for each entry; a factor, n_columns^3 / 3.
            per_row = self.X.nnz // max(1, n_rows) + 1
            affordable = passes * n_rows // per_row if n_columns**3 <= passes * self.X.nnz * SPARSE else 0
        else:
            # A pass takes 4 n_rows n_columns n_classes operations, a matrix X'X 2 n_columns^2 for each row.
            affordable = 2 * passes * n_rows // max(1, n_columns)
        if n_iter and n_classes == 1:  # whose only block is the Hessian
            wanted = min(wanted, max(affordable, LATE_ROWS_PER_COLUMN * (n_columns + 1)))
        if n_columns <= WIDEST and affordable >= min(wanted, n_rows) and (part := self.sample(wanted)):
            return part.of_blocks(w)
        if not is_sparse and n_columns <= WIDEST:
            wanted = min(max(LEAST_ROWS, 8 * (n_columns + 1)), affordable * n_classes)
            if (n_iter or not w.any()) and wanted > n_columns and (part := self.sample(wanted)):
                return part.of_columns(w)
        return self.of_diagonal(w)

    def of_diagonal(self, w: NDArray) -> Preconditioner:
        """The Hessian's diagonal; where few columns have most of it, like frequent words, `of_columns`."""
        f, n_columns = self.objective, self.X.shape[1]
        diagonal = f.hessian_diagonal(w).reshape(f.shape)
        diagonal += 1e-10 * diagonal.max(initial=0) + _TINY
        inverse = 1 / diagonal
        of_column = (diagonal[:, :n_columns] - self.options[2]).sum(axis=0)
        heaviest = np.argsort(of_column)[-HEAVIEST:]
        part = self.sample(LEAST_ROWS)
        if part is None or 2 * of_column[heaviest].sum() < of_column.sum():
            return lambda g: g * inverse.ravel().astype(g.dtype, copy=False)
        solve_heaviest = part.of_columns(w, heaviest)
        columns = np.append(heaviest, np.arange(n_columns, f.shape[1]))

        def solve(g: NDArray) -> NDArray:
            g = g.reshape(f.shape)
            d = g * inverse.astype(g.dtype, copy=False)
            d[:, columns] = solve_heaviest(g[:, columns]).reshape(len(d), -1)
            return d.ravel()

        return solve

    def of_all(self, w: NDArray, n_rows: int) -> Preconditioner:
        """The whole Hessian, of so many rows."""
        return of_hessian((self.sample(n_rows) or self).objective, w)

    def of_blocks(self, w: NDArray) -> Preconditioner:
        """The Hessian's blocks on the diagonal, one for each class, L_k L_k'; between classes, which compete
        for the same probability, L_k L_l' times the correlation of their probabilities."""
        f = self.objective
        p, weight = self._probabilities(w)
        factors = [_cholesky(self._penalised(self._product(h))) for h in (p * (1 - p) * weight).T]
        between = _inverse_between(p, weight)

        def solve(g: NDArray) -> NDArray:
            parts = zip(factors, g.reshape(f.shape), strict=True)
            inner = between @ np.stack([_triangular(factor, part) for factor, part in parts])
            parts = zip(factors, inner, strict=True)
            return np.concatenate([_triangular(factor, part, True) for factor, part in parts])

        return solve

    def of_columns(self, w: NDArray, columns: Any = slice(None)) -> Preconditioner:
        """X'X, of all columns or some, weighted by the rows' curvature, times the mean of p_k (1 - p_k) and
        -p_k p_l for each two classes."""
        p, weight = self._probabilities(w)
        h = p * (1 - p) * weight
        total = h.mean(axis=1)
        as_good_as = total.sum() ** 2 / max(np.square(total).sum(), _TINY)  # rows of one weight
        factor = _cholesky(self._penalised(_shrunk(self._product(total, columns), as_good_as)))
        scale = np.sqrt(np.maximum(h.sum(axis=0) / max(total.sum(), _TINY), 1e-3))
        between = _inverse_between(p, weight) / scale / scale[:, None]

        def solve(g: NDArray) -> NDArray:
            inner = _triangular(factor, (between @ g.reshape(len(between), -1)).T)
            return _triangular(factor, inner, True).T.ravel()

        return solve

    def _probabilities(self, w: NDArray) -> tuple[NDArray, NDArray]:
        """Of each row and class, in float64, and the rows' weights by their sum."""
        f = self.objective
        z = f.logits(w)
        p = fastce.softmax(np.hstack([z, np.zeros_like(z)]) if f.shape[0] == 1 else z, axis=1)[
            :, : f.shape[0]
        ]
        weight = np.ones(len(z)) if self.sample_weight is None else self.sample_weight
        return p.astype(np.float64), weight[:, None] / f.normalizer

    def _product(self, h: NDArray, columns: Any = slice(None)) -> NDArray:
        """Sums of h x x' over the rows, x with a 1 appended where there is an intercept, and h not negative,
        though weights may be."""
        h = np.maximum(h, 0)
        X, root = self.X[:, columns], np.sqrt(h[:, None]).astype(self.X.dtype)
        n_columns, weighted = X.shape[1], X.multiply(root).tocsr() if sparse.issparse(X) else X * root
        whole = np.empty((n_columns + self.options[1],) * 2)
        product = weighted.T @ weighted  # of which NumPy has BLAS make one half
        if not np.isfinite(product.sum()):  # float32 has no such squares
            weighted = weighted.astype(np.float64)
            product = weighted.T @ weighted
        whole[:n_columns, :n_columns] = product.toarray() if sparse.issparse(X) else product
        if self.options[1]:
            whole[n_columns, :n_columns] = whole[:n_columns, n_columns] = (weighted.T @ root)[:, 0]
            whole[n_columns, n_columns] = h.sum()
        return whole

    def _penalised(self, matrix: NDArray) -> NDArray:
        columns = range(len(matrix) - self.options[1])
        matrix[columns, columns] += self.options[2]
        return matrix


def _shrunk(matrix: NDArray, n_rows: float) -> NDArray:
    """Nearer to its diagonal by what a sample of so many rows is off: OAS (Chen, Wiesel, Eldar, Hero, 2010)
    of the correlations."""
    n = len(matrix)
    scale = np.sqrt(np.maximum(np.diag(matrix), _TINY))
    squares = float(np.sum((matrix / scale / scale[:, None]) ** 2))
    share = min(1.0, ((1 - 2 / n) * squares + n**2) / ((n_rows + 1 - 2 / n) * max(squares - n, _TINY)))
    shrunk = (1 - share) * matrix
    shrunk[np.diag_indices(n)] = np.diag(matrix)
    return shrunk


def _inverse_between(p: NDArray, weight: NDArray) -> NDArray:
    """Of the correlations of classes in the mean of diag(p) - p p'. All logits may rise together: along
    that, and what is nearly that, FLOOR stands for the curvature."""
    covariance = -(p * weight).T @ p
    covariance[np.diag_indices(len(covariance))] = np.maximum((p * (1 - p) * weight).sum(axis=0), _TINY)
    scale = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / scale / scale[:, None])
    return (vectors / np.maximum(values, FLOOR)) @ vectors.T


def _cholesky(matrix: NDArray) -> NDArray:
    """The factor of a positive definite matrix, or of one that rounding errors or columns that go together
    have made singular, with its diagonal enlarged until it is not; in units of the diagonal, whatever the
    columns' scales. `matrix` is used up."""
    diagonal = np.abs(np.diag(matrix))
    scale = np.sqrt(diagonal + 1e-30 * diagonal.max(initial=0) + _TINY)
    matrix /= scale
    matrix /= scale[:, None]
    # Along a direction of no curvature a step must not be endless.
    unit = np.where(diagonal > 0, np.diag(matrix), 1)
    for addend in (1e-12, 1e-9, 1e-6, 1e-3):
        np.fill_diagonal(matrix, unit + addend)
        factor, failed = lapack.dpotrf(matrix.T, lower=True)  # LAPACK's order, in which it makes no copy
        if not failed:
            return scale[:, None] * factor
    return np.diag(scale)


def _triangular(factor: NDArray, given: NDArray, transposed: bool = False) -> NDArray:
    return lapack.dtrtrs(factor, given, lower=True, trans=transposed)[0]


def of_hessian(f: Any, w: NDArray) -> Preconditioner:
    """Of the Hessian of f. All logits may rise together: gradients of centred coefficients have nothing along
    that, where the Hessian's rounding errors would make endless steps of theirs."""
    matrix, (n_classes, n_columns) = f.hessian(w), f.shape
    if n_classes > 1:
        of_columns = np.einsum("kili->kli", matrix.reshape(n_classes, n_columns, n_classes, n_columns))
        of_columns += np.einsum("kki->i", of_columns) / n_classes**2
    factor = _cholesky(matrix)
    return lambda g: lapack.dpotrs(factor, g, lower=True)[0]
