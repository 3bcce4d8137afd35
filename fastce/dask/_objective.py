"""The objective of a linear classifier as a sum over chunks of rows, each where it lies.

An evaluation is one graph: the coefficients, a task for each chunk, and a tree of sums whose form depends on the
number of chunks alone. Results have the same bits wherever chunks lie. The coefficients are a part of the graph,
which the scheduler keeps: whatever a lost worker held is made again.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import dask
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets

from fastce.linear import objective

FAN_IN = 8  # terms of a sum in the tree
Sum = tuple[float, NDArray]


class Terms(NamedTuple):
    """What chunks know of the whole."""

    classes: NDArray
    class_weight: NDArray
    weight_sum: float
    fit_intercept: bool

    def of(self, y: Any, sample_weight: Any) -> tuple[NDArray, NDArray]:
        """Indices of the rows' classes, and their weights."""
        target = np.searchsorted(self.classes, y)
        weight = self.class_weight[target]
        return target, weight if sample_weight is None else weight * np.asarray(sample_weight, np.float64)

    def objective(self, X: Any, y: Any, sample_weight: Any) -> Any:
        target, weight = self.of(y, sample_weight)
        return objective(
            X,
            target,
            len(self.classes),
            sample_weight=weight,
            fit_intercept=self.fit_intercept,
            normalizer=self.weight_sum,
            n_threads=1,
        )


class Chunks:
    """Chunks of rows: features, labels and weights or None, each delayed."""

    def __init__(self, rows: list[tuple[Any, Any, Any]]) -> None:
        self.rows = rows

    def _each(self, function: Any, *arguments: Any, **by_chunk: list[Any]) -> list[Any]:
        call = dask.delayed(function, pure=False, traverse=False)
        return [
            call(*row, *arguments, **{name: values[i] for name, values in by_chunk.items()})
            for i, row in enumerate(self.rows)
        ]

    def counts(self) -> list[tuple[NDArray, NDArray, int]]:
        """Classes of each chunk, the sums of their weights, and rows; features are not looked at."""
        call = dask.delayed(_counts, pure=False, traverse=False)
        return list(_computed(*[call(y, w) for _, y, w in self.rows]))

    def samples(self, share: float, n_bytes: int) -> list[tuple[Any, NDArray, NDArray | None]]:
        """Rows of each chunk, the same ones each time, all of which are checked to be finite."""
        seeds = list(range(len(self.rows)))
        return list(_computed(*self._each(_sample, share, n_bytes // len(seeds), seed=seeds)))

    def loss_and_grad(self, w: NDArray, terms: Terms) -> Sum:
        coef = dask.delayed(w, name=f"coef-{dask.base.tokenize(w)}", traverse=False)
        sums = self._each(_term, coef, terms)
        add = dask.delayed(_added, pure=False)
        while len(sums) > 1:
            sums = [add(sums[i : i + FAN_IN]) for i in range(0, len(sums), FAN_IN)]
        return _computed(sums[0])[0]


class ChunkedObjective:
    """What the solver of `fastce.sklearn` asks of an objective; see `fastce.linear.Objective`."""

    def __init__(self, chunks: Chunks, terms: Terms, l2: float, shape: tuple[int, int], dtype: Any) -> None:
        self.chunks, self.terms, self.l2, self.shape, self.dtype = chunks, terms, l2, shape, dtype
        self.size = shape[0] * shape[1]

    def loss_and_grad(self, w: NDArray) -> Sum:
        loss, grad = self.chunks.loss_and_grad(w, self.terms)
        penalised = w.reshape(self.shape)[:, : self.shape[1] - self.terms.fit_intercept]
        grad = grad.reshape(self.shape).copy()
        grad[:, : penalised.shape[1]] += self.l2 * penalised
        return loss + 0.5 * self.l2 * float(np.square(penalised).sum()), grad.ravel()


def _computed(*tasks: Any) -> tuple:
    with warnings.catch_warnings():
        # Coefficients travel with the graph on purpose.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        return dask.compute(*tasks)


# ---- Tasks -------------------------------------------------------------------------------------------


def _counts(y: Any, sample_weight: Any) -> tuple[NDArray, NDArray, int]:
    y = np.asarray(y)
    if len(y):
        check_classification_targets(y)
    classes, target = np.unique(y, return_inverse=True)
    return classes, np.bincount(target.ravel(), sample_weight, len(classes)), len(y)


def _sample(
    X: Any, y: Any, sample_weight: Any, share: float, n_bytes: int, *, seed: int
) -> tuple[Any, NDArray, NDArray | None]:
    try:
        X = check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32], ensure_min_samples=0)
    except ValueError as error:
        raise ValueError(f"chunk {seed} of the rows: {error}") from None
    n_rows = X.shape[0]
    row_bytes = (X.data.nbytes + X.indices.nbytes if sparse.issparse(X) else X.nbytes) / max(n_rows, 1)
    n = min(int(np.ceil(n_rows * share)), int(n_bytes // max(row_bytes, 1)))
    rows = np.sort(np.random.default_rng(seed).choice(n_rows, n, replace=False, shuffle=False))
    return X[rows], np.asarray(y)[rows], None if sample_weight is None else np.asarray(sample_weight)[rows]


def _term(X: Any, y: Any, sample_weight: Any, coef: NDArray, terms: Terms) -> Sum:
    if X.shape[0] == 0:
        return 0.0, np.zeros(coef.size)
    return terms.objective(X, y, sample_weight).loss_and_grad(coef)


def _added(sums: list[Sum]) -> Sum:
    (loss, first), *others = sums
    grad = first.copy()
    for term, other in others:
        loss += term
        grad += other
    return loss, grad
