"""Coordinates of coefficients where columns are many and rows few: beside the span of the rows they change no
logit, and in it they are as few as rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.linalg import lapack

__all__ = ["Span"]

_LEAST = 1e-6  # of a row's square that may be left of it beside the rows before: X X' knows 1e-16 of that


class Span:
    """Coordinates u of coefficients w = Q u, X = L Q' with orthonormal columns of Q: logits are L u, and |u|
    is |w|, which is what a penalty asks for. L is a factor of X X' and Q' = L^-1 X; where that would cost
    digits, both are made by QR. Columns of L are from the most to the least that they have of X.

    Attributes
    ----------
    rows : ndarray
        L.
    start : ndarray
        Coordinates of the coefficients given.
    """

    def __init__(self, X: NDArray, coef: NDArray, stays_beside: bool) -> None:
        X = X.astype(np.float64, copy=False)
        squares = X @ X.T
        factor, pivots, rank, _ = lapack.dpstrf(squares.T, lower=True)
        pivots -= 1
        factor = np.tril(factor)
        is_exact = rank == len(X) and (np.square(np.diag(factor)) > _LEAST * np.diag(squares)[pivots]).all()
        if is_exact:
            self._chosen, self._factor = X[pivots], factor
        else:
            self._basis, R, pivots = linalg.qr(X.T, mode="economic", pivoting=True, check_finite=False)
            factor = R.T
        self._is_exact = is_exact
        self.rows = np.empty_like(factor, order="C")
        self.rows[pivots] = factor
        self.start, self._beside = np.zeros((len(coef), len(X))), 0.0
        if coef.any():
            self.start = self._solve(self._chosen @ coef.T).T if is_exact else coef @ self._basis
            self._beside = coef - self.coef(self.start) if stays_beside else 0.0

    def coef(self, u: NDArray) -> NDArray:
        """Coefficients that have the coordinates `u`, with what the given ones have beside the span."""
        inside = self._solve(u.T, transposed=True).T @ self._chosen if self._is_exact else u @ self._basis.T
        return inside + self._beside

    def _solve(self, given: NDArray, transposed: bool = False) -> NDArray:
        return lapack.dtrtrs(self._factor, given, lower=True, trans=transposed)[0]
