"""A solver for the objectives of `fastce.linear`: few passes over X are all that counts.

Design
------
A. L-BFGS (Nocedal and Wright, algorithm 7.4) with a preconditioner, of `_preconditioners`, as its first
   Hessian. What remains for the memory of steps is what that misses. SciPy's L-BFGS-B takes none, and its
   first step ignores the scale of the variables that one would transform; its Newton-CG and trust-region
   methods take none either.
B. Where rows are many, a sample of them is solved first, and a sample of that before it: the last steps
   begin within the sample's noise of the solution; or at the coefficients given, where these are better.
C. It stops where scikit-learn does, |gradient| <= tol, but goes up to BEYOND steps on, of Newton's thrice as
   many, unless the preconditioner expects less of one than GAIN of the objective: scikit-learn's last step
   often leads well below tol, and its objective is not to be lower. Once |gradient| <= tol a preconditioner
   is made again each EARLY steps, while these still gain. A sample is left as soon as a step gains less
   than a SHARE of what its choice of rows does: (coefficients) / (2 rows). Newton's solvers go on longer.
D. Objectives of float32 data are known to about NOISE: within that the slope decides whether a step is
   good, and a step that was to gain less than that and than GAIN, and lost, is the last.
E. Where columns are many and rows few, coefficients are sought in the span of the rows: at once, or where
   LATE steps have not been enough.
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
from threadpoolctl import ThreadpoolController

from fastce.sklearn._preconditioners import (
    EARLY,
    LATE,
    PATIENCE,
    SAMPLE_BYTES,
    WHOLE,
    Preconditioner,
    Problem,
    of_hessian,
)
from fastce.sklearn._span import Span

__all__ = ["Limits", "Solution", "descend", "limited_blas", "minimize"]

GAIN, BEYOND, SHARE = 1e-7, 8, 0.05
FEW_ROWS, MOST_ROWS = 300, 1200  # of X with twice as many columns
NOISE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
MEMORY, LARGE = 10, 1 << 17  # steps that are remembered; as many numbers are kept in the features' precision
EXACT = 1e7  # operations of a Hessian that each step can have
SAMPLED, PER_COEFFICIENT = 16, 16  # a sample is one of so many rows, and so many times the coefficients


class Limits(NamedTuple):
    """Where to stop: at a largest gradient element of `tol`, but up to so many steps `beyond` while a share
    `gain` of the objective is to be gained, and after `max_iter` steps in any case; who is told of each."""

    tol: float
    max_iter: int
    callback: Callable[[NDArray], Any] | None = None
    beyond: int = BEYOND
    gain: float = GAIN


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
    limits: Limits,
) -> Solution:
    """Coefficients of form (K, D + fit_intercept) that minimise the objective, from `coef` on."""
    if n_classes > 2:  # that changes no probability and lessens the penalty
        coef = coef - coef.mean(axis=0)

    def problem(X: Any) -> Problem:
        return Problem(X, target, n_classes, sample_weight, fit_intercept, l2)

    is_wide = not sparse.issparse(X) and X.shape[0] <= min(MOST_ROWS, X.shape[1] // 2)
    if is_wide and 8 * X.size <= SAMPLE_BYTES and not _is_tiny(X, coef.size):
        return _minimum_of_wide(problem, X, coef, l2, limits)
    with limited_blas(X, coef.size):
        return _minimum(problem(X), coef, limits)


def _is_tiny(X: Any, size: int) -> bool:
    """Whether each step can have the Hessian of all rows and coefficients."""
    return size <= WHOLE and X.shape[0] * size**2 <= EXACT


def _minimum_of_wide(
    problem: Callable[[NDArray], Problem],
    X: NDArray,
    coef: NDArray,
    l2: float,
    limits: Limits,
) -> Solution:
    (n_rows, n_columns), n_iter = X.shape, 0
    if n_rows > FEW_ROWS:
        whole = problem(X)
        with limited_blas(X, coef.size):
            at_first = limits._replace(max_iter=min(limits.max_iter, LATE))
            found = descend(whole.objective, [coef], whole.best, at_first)
        if found.n_iter < LATE or found.n_iter == limits.max_iter:
            return found
        coef, n_iter = found.coef.reshape(coef.shape), LATE
    with limited_blas(X, 0):
        span = Span(X, coef[:, :n_columns], stays_beside=not l2)
        few = problem(span.rows)

        def outside(u: NDArray) -> NDArray:
            u = u.reshape(len(coef), -1)
            return np.hstack([span.coef(u[:, :n_rows]), u[:, n_rows:]]).ravel()

        told = limits.callback and (lambda u: limits.callback(outside(u)))
        left = limits._replace(max_iter=limits.max_iter - n_iter, callback=told)
        start = np.hstack([span.start, coef[:, n_columns:]])
        best = few.of_blocks if len(coef) == 1 else few.of_columns  # of one row of coefficients the Hessian
        found = descend(few.objective, [start], lambda u, _: best(u), left, EARLY)
        return found._replace(coef=outside(found.coef), n_iter=n_iter + found.n_iter)


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


def _minimum(problem: Problem, coef: NDArray, limits: Limits) -> Solution:
    f, n_rows = problem.objective, problem.n_used
    many = n_rows >= SAMPLED * PER_COEFFICIENT * f.size and not sparse.issparse(problem.X)
    if many and (part := problem.sample(n_rows // SAMPLED)):
        starts = [*given(coef), _minimum(part, coef, limits._replace(callback=None)).coef]
        solution = descend(f, starts, part.best, limits)
        if solution.converged or solution.n_iter == limits.max_iter:
            return solution  # else the sample has led astray
    if _is_tiny(problem.X, f.size):
        return descend(f, [coef], lambda w, _: of_hessian(f, w), limits, patience=1)
    enough = SHARE * f.size / (2 * n_rows) if problem.n_rows > n_rows else 0.0
    return descend(f, [coef], problem.best, limits, enough=enough)


def given(coef: NDArray) -> list[NDArray]:
    """Coefficients that may be better than a sample's minimum, which zeros never are."""
    return [coef] if coef.any() else []


@np.errstate(over="ignore", invalid="ignore")  # a step that leads nowhere is refused
def descend(
    f: Any,
    starts: list[NDArray],
    preconditioner: Callable[[NDArray, int], Preconditioner],
    limits: Limits,
    patience: int = PATIENCE,
    enough: float = 0.0,
) -> Solution:
    """As `minimize`, from the best of `starts` on; the preconditioner is made again, where the steps have
    led, each `patience` of them. Steps that are expected to gain no more than `enough` are not taken."""
    tol, max_iter, callback, beyond, least = limits
    vectors = [np.array(coef, np.float64).ravel() for coef in starts]
    w, loss, g = min(((w, *f.loss_and_grad(w)) for w in vectors), key=lambda start: start[1])
    noise, settled, gained, solve = NOISE[f.dtype], 0, 0.0, None
    pairs: list[tuple[NDArray, NDArray, float]] = []
    most, beyond = (0, 3 * beyond) if patience == 1 else (MEMORY, beyond)
    kept = f.dtype if f.size > LARGE else np.dtype(np.float64)
    for n_iter in range(max_iter + 1):
        if n_iter == max_iter:
            return Solution(w, loss, n_iter, settled > 0 or _flat(g) <= tol)
        settled += _flat(g) <= tol
        is_due = settled % EARLY == 0 and (n_iter % patience == 0 or (settled and gained > 10 * least * loss))
        if solve is None or is_due:
            solve = preconditioner(w, n_iter)
        d = _direction(g.astype(kept, copy=False), pairs, solve)
        slope = g @ d
        gain = -slope / 2
        if 0 <= gain <= enough or (settled and (settled > beyond or gain <= least * abs(loss))):
            return Solution(w, loss, n_iter, True)
        # Losses end at 0: of a direction that promises more, the curvature is more than was thought.
        step = first = loss / gain if gain > loss > 0 else 1.0
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
            if not step >= 1e-6 * first or not np.isfinite(slope):
                return Solution(w, loss, n_iter, bool(settled) or -slope <= noise * abs(loss))
        gained = loss - new_loss
        if most and (product := step * (new_slope - slope)) > 0:
            change = np.subtract(new_g, g, dtype=kept, casting="same_kind")
            pairs = [*pairs[1 - most :], (step * d, change, 1 / product)]
        w, loss, g = new, new_loss, new_g
        if callback:
            callback(w)
        # scikit-learn's second criterion; and what is left to gain is less than rounding errors have taken.
        is_noise = gained < 0 and gain <= min(least, noise) * abs(loss)
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
