"""The objective of a linear classifier, as solvers see it: coefficients to loss, gradient and Hessian products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import fastce

__all__ = ["Objective", "Point", "objective"]


def objective(
    X: Any,
    target: ArrayLike,
    n_classes: int,
    *,
    sample_weight: ArrayLike | None = None,
    fit_intercept: bool = True,
    l2: float = 0.0,
    binary: bool | None = None,
    normalizer: float | None = None,
    n_threads: int | None = None,
) -> Objective:
    """Return the objective of a linear classifier on `X` and `target`."""
    return Objective(X, target, n_classes, sample_weight, fit_intercept, l2, binary, normalizer, n_threads)


class Objective:
    """Loss, gradient and Hessian products as functions of coefficients; see `objective`."""

    def __init__(self, X, target, n_classes, sample_weight, fit_intercept, l2, binary, normalizer, n_threads):
        if hasattr(X, "tocsr"):
            X = X.tocsr()
        else:
            X = np.asarray(X)
        self.dtype = np.dtype(np.float64 if X.dtype == np.float64 or X.dtype.kind in "iub" else np.float32)
        self._X = X.astype(self.dtype, copy=False)
        self._target = np.asarray(target)
        bad = (self._target < 0) | (self._target >= n_classes)
        if bad.any():
            place = int(np.argmax(bad))
            raise IndexError(f"target[{place}] is {self._target[place]}; expected a class index in [0, {n_classes})")
        n_rows, self.n_features = X.shape
        self._s = np.ones(n_rows) if sample_weight is None else np.asarray(sample_weight, np.float64)
        self.n_classes, self.fit_intercept, self.l2, self.n_threads = n_classes, fit_intercept, l2, n_threads
        self.binary = n_classes == 2 if binary is None else binary
        self.shape = (1 if self.binary else n_classes, self.n_features + fit_intercept)
        self.size = self.shape[0] * self.shape[1]
        self.weight_sum = float(self._s.sum())
        self.normalizer = self.weight_sum if normalizer is None else normalizer

    def _whole(self, coef):
        return np.asarray(coef, np.float64).reshape(self.shape)

    def _product(self, coef):
        coef = self._whole(coef).astype(self.dtype)
        z = np.asarray(self._X @ coef[:, : self.n_features].T)
        return z + coef[:, -1] if self.fit_intercept else z

    def _back(self, g, coef, by):
        """X' g / normalizer + l2 by, in the form of coef."""
        g = g.astype(self.dtype, copy=False)
        grad = np.empty(self.shape)
        grad[:, : self.n_features] = np.asarray(self._X.T @ g).T / self.normalizer
        grad[:, : self.n_features] += self.l2 * self._whole(by)[:, : self.n_features]
        if self.fit_intercept:
            grad[:, -1] = g.sum(axis=0, dtype=np.float64) / self.normalizer
        return grad.reshape(np.shape(coef))

    def _penalty(self, coef):
        return 0.5 * self.l2 * float(np.square(self._whole(coef)[:, : self.n_features]).sum())

    def logits(self, coef: ArrayLike) -> NDArray:
        """The logits of all rows, (N, 1) or (N, C)."""
        return self._product(coef)

    def loss(self, coef: ArrayLike) -> float:
        """The objective at `coef`."""
        return self.loss_and_grad(coef)[0]

    def loss_and_grad(self, coef: ArrayLike) -> tuple[float, NDArray]:
        """The objective at `coef` and its gradient."""
        z = self._product(coef)
        if self.binary:
            y = self._target.astype(z.dtype)[:, None]
            loss, g = fastce.binary_cross_entropy_with_logits_and_grad(
                z, y, weight=self._s[:, None], reduction="sum", n_threads=self.n_threads
            )
        else:
            loss, g = fastce.cross_entropy_and_grad(
                z, self._target, sample_weight=self._s, reduction="sum", n_threads=self.n_threads
            )
        return loss / self.normalizer + self._penalty(coef), self._back(g, coef, coef)

    def _probabilities(self, coef):
        z = self._product(coef)
        if self.binary:
            return np.concatenate([fastce.softmax(np.concatenate([z, 0 * z], axis=1), axis=1)], axis=1)
        return fastce.softmax(z, axis=1)

    def hessian_product(self, coef: ArrayLike, V: ArrayLike) -> NDArray:
        """The Hessian at `coef` times `V`."""
        t, p, s = self._product(V), self._probabilities(coef), self._s[:, None]
        if self.binary:
            return self._back(s * (p[:, :1] * p[:, 1:]) * t, coef, V)
        return self._back(s * p * (t - (p * t).sum(axis=1, keepdims=True)), coef, V)

    def at(self, coef: ArrayLike) -> Point:
        """The objective near `coef`."""
        return Point(self, coef)

    def _extended(self):
        X = self._X.toarray() if hasattr(self._X, "toarray") else self._X
        X = X.astype(np.float64)
        return np.concatenate([X, np.ones((len(X), 1))], axis=1) if self.fit_intercept else X

    def hessian(self, coef: ArrayLike) -> NDArray:
        """The whole Hessian, (size, size): classes by features on both sides, in C order."""
        X, p = self._extended(), self._probabilities(coef).astype(np.float64)
        if self.binary:
            h = (p[:, 0] * p[:, 1])[:, None, None]
        else:
            h = p[:, :, None] * (np.eye(self.shape[0]) - p[:, None, :])
        h = h * (self._s / self.normalizer)[:, None, None]
        whole = np.einsum("ikl,id,ie->kdle", h, X, X, optimize=True).reshape(self.size, self.size)
        penalised = np.ones(self.shape)
        penalised[:, self.n_features :] = 0
        whole[np.diag_indices(self.size)] += self.l2 * penalised.ravel()
        return whole

    def hessian_diagonal(self, coef: ArrayLike) -> NDArray:
        """The diagonal of the Hessian, in the form of `coef`."""
        p = self._probabilities(coef).astype(np.float64)
        h = (p[:, :1] * p[:, 1:]) if self.binary else p * (1 - p)
        diagonal = (self._s[:, None] / self.normalizer * h).T @ np.square(self._extended())
        diagonal[:, : self.n_features] += self.l2
        return diagonal.reshape(np.shape(coef))

    def gram(self) -> NDArray:
        """Sums of s x x' over the rows, x with a 1 appended where there is an intercept, by `normalizer`."""
        X = self._extended()
        return (X * (self._s / self.normalizer)[:, None]).T @ X

    def moments(self) -> tuple[NDArray, NDArray]:
        """Sums of s x and s x² of each column, by `normalizer`."""
        X = self._extended()[:, : self.n_features]
        return self._s @ X / self.normalizer, self._s @ np.square(X) / self.normalizer


class Point:
    """An objective near one `coef`."""

    def __init__(self, f: Objective, coef: ArrayLike) -> None:
        self.objective, self.coef = f, np.array(coef, np.float64)
        self.loss, self.grad = f.loss_and_grad(self.coef)

    def hessian_product(self, V: ArrayLike) -> NDArray:
        """The Hessian there times `V`."""
        return self.objective.hessian_product(self.coef, V)
