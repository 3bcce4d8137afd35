"""Coordinates of coefficients where columns are many and rows few: beside the span of the rows they change no
logit, and in it they are as few as rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

__all__ = ["Span"]

_BLOCK_BYTES = 1 << 22


class Span:
    """Coordinates u of coefficients w = X' V: with X X' = L L', of as many columns as X has independent rows,
    u = L' V. So logits are L u, and |u| is |w|, which is what a penalty asks for.

    Attributes
    ----------
    rows : ndarray
        L, in the order of X's rows.
    start : ndarray
        Coordinates of the coefficients given.
    """

    def __init__(self, X: NDArray, coef: NDArray, stays_beside: bool) -> None:
        self._X = X
        products = sum(x @ x.T for x in self._columns())
        factor, pivots, self.rank, _ = lapack.dpstrf(np.asarray(products).T, lower=True)
        factor, pivots = np.tril(factor)[:, : self.rank], pivots - 1
        self.rows = np.empty_like(factor, order="C")
        self.rows[pivots] = factor
        self._factor, self._pivots = factor[: self.rank], pivots[: self.rank]
        self.start, self._beside = np.zeros((len(coef), self.rank)), 0.0
        if coef.any():
            self.start = self._solve((X @ coef.T)[self._pivots]).T
            self._beside = coef - self.coef(self.start) if stays_beside else 0.0

    def coef(self, u: NDArray) -> NDArray:
        """Coefficients that have the coordinates `u`, with what the given ones have beside the span."""
        of_rows = np.zeros((len(u), len(self._X)))
        of_rows[:, self._pivots] = self._solve(u.T, transposed=True).T
        return np.hstack([of_rows @ x for x in self._columns()]) + self._beside

    def _solve(self, given: NDArray, transposed: bool = False) -> NDArray:
        if self.rank == 0:  # LAPACK would complain
            return given
        return lapack.dtrtrs(self._factor, given, lower=True, trans=transposed)[0]

    def _columns(self) -> Iterator[NDArray]:
        """Blocks of columns in float64."""
        n = self._X.shape[1] if self._X.dtype == np.float64 else max(1, _BLOCK_BYTES // (8 * len(self._X)))
        for start in range(0, self._X.shape[1], n):
            yield self._X[:, start : start + n].astype(np.float64, copy=False)
