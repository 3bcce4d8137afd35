"""A solver for the objectives of `fastce.linear`: few passes over X are all that counts.

Design
------
A. L-BFGS (Nocedal and Wright, algorithm 7.4) with a preconditioner as its first Hessian. What remains for
   the memory of steps is what the preconditioner misses. SciPy's L-BFGS-B takes none, and its first step
   ignores the scale of the variables that one would transform; its Newton-CG and trust-region methods
   take none either.
B. The preconditioner: for WHOLE coefficients or less the Hessian, of a sample where rows are many and of
   all where they are few; else the blocks of the classes on the diagonal, from a sample of the rows,
   where they are small; else the curvature of each class times the matrix X'X of a sample, which knows of
   columns that go together; else the Hessian's diagonal, and such a matrix of the columns that have most
   of it. Where that has not been enough for twice PATIENCE steps, the Hessian of all, if one can be
   afforded now and then. Once |gradient| <= tol none is made again.
C. Where rows are many, a sample of them is solved first, and a sample of that before it: the last steps
   begin within the sample's noise of the solution. Rare classes that weigh much would not be in it, and
   its minimum far away: rows that weigh more than one of the sample stands for are in it themselves.
D. It stops where scikit-learn does, |gradient| <= tol, but goes up to BEYOND steps on unless the
   preconditioner expects less of one than GAIN of the objective: scikit-learn's last step often leads
   well below tol, and its objective is not to be lower. A sample is left as soon as a step gains less than
   a SHARE of what its choice of rows does: (coefficients) / (2 rows).
E. Objectives of float32 data are known to about NOISE: within that the slope decides whether a step is
   good, and a step that gains less than was lost to it is the last.
F. Where columns are many and rows few, coefficients are sought in the span of the rows, where they are as
   few: beside it they change no logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController

import fastce
from fastce.linear import objective

__all__ = ["Solution", "minimize"]

GAIN, BEYOND, SHARE = 1e-7, 4, 0.05
NOISE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
MEMORY, LARGE = 10, 1 << 17  # steps that are remembered; as many numbers are kept in the features' precision
EXACT_AT_ONCE, EXACT, EXACT_LATE = 1e7, 2e8, 1e9  # operations of a Hessian: each step, now and then, late
PATIENCE, EARLY, LATE, WIDEST = 12, 4, 24, 2500
FLOOR = 0.05  # of the eigenvalues of classes' correlations
_TINY = float(np.finfo(float).tiny)
SAMPLED, PER_COEFFICIENT = 16, 16  # a sample is one of so many rows, and so many times the coefficients
SAMPLE_BYTES = 1 << 25
WHOLE, LEAST, MOST = 1200, 6, 400  # coefficients of a Hessian of a sample, whose rows are so many times those
ROWS_PER_COLUMN = 50  # of a block on the diagonal
HEAVIEST, ROWS_OF_HEAVIEST = 128, 2048  # columns of a matrix beside the diagonal, from so many rows

Preconditioner = Callable[[NDArray], NDArray]


class Solution(NamedTuple):
    """The last coefficients, their objective, the steps taken, and whether nothing is left to gain."""

    coef: NDArray
    loss: float
    n_iter: int
    converged: bool


def minimize(
    X: Any,
    target: NDArray,
    n_classes: int,
    coef: NDArray,
    *,
    sample_weight: NDArray | None,
    fit_intercept: bool,
    l2: float,
    tol: float,
    max_iter: int,
    callback: Callable[[NDArray], Any] | None = None,
) -> Solution:
    """Coefficients of form (K, D + fit_intercept) that minimise the objective, from `coef` on."""
    if 2 * X.shape[0] <= X.shape[1] and (X.shape[0] + 1) * len(coef) <= WHOLE and _is_small(X):
        options = {"sample_weight": sample_weight, "fit_intercept": fit_intercept, "l2": l2, "tol": tol}
        return _in_span(X, target, n_classes, coef, callback, max_iter=max_iter, **options)
    f = objective(X, target, n_classes, sample_weight=sample_weight, fit_intercept=fit_intercept, l2=l2)
    problem = Problem(f, X, target, n_classes, sample_weight, fit_intercept, l2)
    if n_classes > 2:  # that changes no probability and lessens the penalty
        coef = coef - coef.mean(axis=0)
    with limited_blas(X, f.size):
        return _minimum(problem, coef, tol, max_iter, callback)


def _is_small(X: Any) -> bool:
    """Whether a copy of it in float64 is."""
    return not sparse.issparse(X) and 8 * X.size <= SAMPLE_BYTES


def _in_span(
    X: NDArray, target: NDArray, n_classes: int, coef: NDArray, callback: Callable | None, **options: Any
) -> Solution:
    """As `minimize`, with u for which the coefficients are Q u, X = (Q R)' with orthonormal columns of Q."""
    n_rows, n_columns = X.shape
    with limited_blas(X, 0):
        factors, R = linalg.qr(X.T.astype(np.float64, copy=False), mode="raw", check_finite=False)

    def rotated(v: NDArray, transposed: str) -> NDArray:
        """The square matrix of which Q is the first columns, that LAPACK does not spell out, times v'."""
        return lapack.dormqr("L", transposed, *factors, v.T, lwork=64 * len(v))[0].T

    given, intercept = coef[:, :n_columns], coef[:, n_columns:]
    rest = rotated(given, "T")
    start = np.hstack([rest[:, :n_rows], intercept])
    rest[:, :n_rows] = 0
    beside = 0.0 if options["l2"] else rotated(rest, "N")  # a penalty leaves nothing of it

    def whole(u: NDArray) -> NDArray:
        u = u.reshape(len(coef), -1)
        v = np.zeros((len(u), n_columns))
        v[:, :n_rows] = u[:, :n_rows]
        return np.hstack([rotated(v, "N") + beside, u[:, n_rows:]]).ravel()

    def told(u: NDArray) -> None:
        if callback:
            callback(whole(u))

    found = minimize(np.ascontiguousarray(R.T), target, n_classes, start, callback=told, **options)
    return found._replace(coef=whole(found.coef))


@contextmanager
def limited_blas(X: Any, n_coefficients: int) -> Iterator[None]:
    """One thread for BLAS where all its products are small, or of vectors: others spin for a while after
    each, where fastce's own want the core. Of fits at the same time one sets the limit: others would find
    it, and leave it behind."""
    if (n_coefficients > WHOLE and not sparse.issparse(X)) or not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with _pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()


_limiting = Lock()


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


def _minimum(
    problem: Problem, coef: NDArray, tol: float, max_iter: int, callback: Callable[[NDArray], Any] | None
) -> Solution:
    f, n_rows = problem.objective, problem.n_used
    many = n_rows >= SAMPLED * PER_COEFFICIENT * f.size and not sparse.issparse(problem.X)
    if many and (part := problem.sample(n_rows // SAMPLED)):
        found = _minimum(part, coef, tol, max_iter, None).coef
        solution = _descend(f, found, part.best, tol, max_iter, callback)
        if solution.converged or solution.n_iter == max_iter:
            return solution  # else the sample has led astray
    if f.size <= WHOLE and (work := problem.X.shape[0] * f.size**2) <= EXACT:
        patience = 1 if work <= EXACT_AT_ONCE else EARLY
        return _descend(f, coef, lambda w, _: _of_hessian(f, w), tol, max_iter, callback, patience)
    enough = SHARE * f.size / (2 * n_rows) if problem.n_rows > n_rows else 0.0
    return _descend(f, coef, problem.best, tol, max_iter, callback, enough=enough)


@np.errstate(over="ignore", invalid="ignore")  # a step that leads nowhere is refused
def _descend(
    f: Any,
    coef: NDArray,
    preconditioner: Callable[[NDArray, int], Preconditioner],
    tol: float,
    max_iter: int,
    callback: Callable[[NDArray], Any] | None,
    patience: int = PATIENCE,
    enough: float = 0.0,
) -> Solution:
    """As `minimize`; the preconditioner is made again, where the steps have led, each `patience` of them.
    Steps that are expected to gain no more than `enough` are not taken."""
    w = np.array(coef, np.float64).ravel()
    loss, g = f.loss_and_grad(w)
    noise, settled, solve = NOISE[f.dtype], 0, None
    pairs: list[tuple[NDArray, NDArray, float]] = []
    most = 0 if patience == 1 else MEMORY
    kept = f.dtype if f.size > LARGE else np.dtype(np.float64)
    for n_iter in range(max_iter + 1):
        if n_iter == max_iter:
            return Solution(w, loss, n_iter, _flat(g) <= tol)
        settled += _flat(g) <= tol
        if solve is None or (n_iter % patience == 0 and not settled):
            solve = preconditioner(w, n_iter)
        d = _direction(g.astype(kept, copy=False), pairs, solve)
        slope = g @ d
        gain = -slope / 2
        if 0 <= gain <= enough or (settled and (settled > BEYOND or gain <= GAIN * abs(loss))):
            return Solution(w, loss, n_iter, True)
        step = 1.0
        while True:
            new = w + step * d
            new_loss, new_g = f.loss_and_grad(new)
            new_slope = new_g @ d
            if new_loss <= loss + 1e-4 * step * slope:
                break
            if new_loss <= loss + noise * abs(loss) and abs(new_slope) <= 0.9 * abs(slope):
                break
            step *= float(np.clip(-slope * step / (2 * (new_loss - loss - slope * step)), 0.1, 0.5))
            # Nothing below the rounding errors of the objective; NaN where negative weights have no minimum.
            if not step >= 1e-6 or not np.isfinite(slope):
                return Solution(w, loss, n_iter, bool(settled) or -slope <= noise * abs(loss))
        gained = loss - new_loss
        if most and (product := step * (new_slope - slope)) > 0:
            change = np.subtract(new_g, g, dtype=kept, casting="same_kind")
            pairs = [*pairs[1 - most :], (step * d, change, 1 / product)]
        w, loss, g = new, new_loss, new_g
        if callback:
            callback(w)
        # scikit-learn's second criterion; and what is left to gain is less than rounding errors have taken.
        is_noise = gained < 0 and gain <= min(GAIN, noise) * abs(loss)
        if is_noise or 0 <= gained <= 64 * np.finfo(float).eps * max(abs(loss), 1):
            return Solution(w, loss, n_iter + 1, True)
    raise AssertionError("unreachable")


def _flat(g: NDArray) -> float:
    return max(float(g.max(initial=0)), -float(g.min(initial=0)))


def _direction(g: NDArray, pairs: list[tuple[NDArray, NDArray, float]], solve: Preconditioner) -> NDArray:
    """Of the gradient's dtype, as are all vectors here."""
    if not pairs:
        return -solve(g).astype(g.dtype, copy=False)
    (add,) = linalg.get_blas_funcs(("axpy",), (g,))
    q = -g
    shares = []
    for s, y, r in reversed(pairs):
        shares.append(r * float(s @ q))
        q = add(y, q, a=-shares[-1])
    q = solve(q).astype(g.dtype, copy=False)
    _, y, r = pairs[-1]  # the preconditioner's scale may be off, where the Hessian has changed since
    q /= r * float(y @ solve(y))
    for (s, y, r), share in zip(pairs, reversed(shares), strict=True):
        q = add(s, q, a=share - r * float(y @ q))
    return q


# ---- Preconditioners -------------------------------------------------------------------------------


class Problem:
    """An objective, and what its preconditioners are made of."""

    def __init__(
        self,
        f: Any,
        X: Any,
        target: NDArray,
        n_classes: int,
        sample_weight: NDArray | None,
        fit_intercept: bool,
        l2: float,
    ) -> None:
        self.objective, self.X, self.target, self.sample_weight = f, X, target, sample_weight
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
        if weight is not None:  # rows that weigh more than one of the sample stands for are in it themselves
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
        f = objective(X, target, n_classes, sample_weight=weight, fit_intercept=fit_intercept, l2=l2)
        part = Problem(f, X, target, n_classes, weight, fit_intercept, l2)
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
        if n_iter > PATIENCE and f.size <= WHOLE and n_rows * f.size**2 <= EXACT_LATE:
            return _of_hessian(f, w)
        passes = LATE if n_iter else EARLY
        if not sparse.issparse(self.X) and n_columns <= WIDEST:
            # A pass takes 4 n_rows n_columns n_classes operations, a matrix X'X 2 n_columns^2 for each row.
            affordable = 2 * passes * n_rows // max(1, n_columns)
            wanted = ROWS_PER_COLUMN * (n_columns + 1)
            if affordable >= min(wanted, n_rows) and (part := self.sample(wanted)):
                return part.of_blocks(w)
            wanted = min(8 * (n_columns + 1), affordable * n_classes)
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
        part = self.sample(ROWS_OF_HEAVIEST)
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
        return _of_hessian((self.sample(n_rows) or self).objective, w)

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


def _of_hessian(f: Any, w: NDArray) -> Preconditioner:
    """Of the Hessian of f. All logits may rise together: gradients of centred coefficients have nothing along
    that, where the Hessian's rounding errors would make endless steps of theirs."""
    matrix, (n_classes, n_columns) = f.hessian(w), f.shape
    if n_classes > 1:
        of_columns = np.einsum("kili->kli", matrix.reshape(n_classes, n_columns, n_classes, n_columns))
        of_columns += np.einsum("kki->i", of_columns) / n_classes**2
    factor = _cholesky(matrix)
    return lambda g: lapack.dpotrs(factor, g, lower=True)[0]
