"""The objective of a linear classifier as a sum over chunks of rows, each where it lies.

An evaluation is one graph: the coefficients, a task for each chunk, and a tree of sums whose form depends on
the number of chunks alone. Results have the same bits wherever chunks lie. The coefficients are a part of the
graph, which the scheduler keeps: whatever a lost worker held is made again.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple
from uuid import uuid4

import dask
import numpy as np
from dask import core
from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import assert_all_finite, check_array
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
    """Chunks of rows: dask arrays of features, labels, and weights or None, with the same chunks."""

    def __init__(self, X: Any, y: Any, sample_weight: Any) -> None:
        self.arrays = dask.optimize(*(a for a in (X, y, sample_weight) if a is not None))
        features, *others = (list(core.flatten(a.__dask_keys__())) for a in self.arrays)
        keys = zip(features, *others, strict=True)
        self.refs = [tuple(map(TaskRef, of)) + (None,) * (2 - len(others)) for of in keys]

    def _computed(self, tasks: dict[str, GraphNode], wanted: list[str]) -> list[Any]:
        name = f"fastce-{uuid4()}"
        graph = HighLevelGraph.from_collections(name, tasks, dependencies=self.arrays)
        with warnings.catch_warnings():
            # Coefficients travel with the graph on purpose.
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            return list(dask.compute(*(Delayed(key, graph, layer=name) for key in wanted)))

    def _each(self, name: str, function: Any, arguments: list[tuple]) -> list[Any]:
        tasks = {f"{name}-{i}": Task(f"{name}-{i}", function, *given) for i, given in enumerate(arguments)}
        return self._computed(tasks, list(tasks))

    def counts(self) -> list[tuple[NDArray, NDArray, int]]:
        """Classes of each chunk, the sums of their weights, and rows."""
        name = f"counts-{uuid4()}"
        return self._each(name, _counts, [of[1:] for of in self.refs])

    def samples(self, share: float, n_bytes: int) -> list[tuple[Any, NDArray, NDArray | None]]:
        """Rows of each chunk, the same ones each time, all of which are checked to be finite."""
        name = f"samples-{uuid4()}"
        given = [(share, n_bytes // len(self.refs), i, *of) for i, of in enumerate(self.refs)]
        return self._each(name, _sample, given)

    def loss_and_grad(self, w: NDArray, terms: Terms) -> Sum:
        name = f"coef-{uuid4()}"
        sums = [f"term-{name}-{i}" for i in range(len(self.refs))]
        tasks: dict[str, GraphNode] = {name: DataNode(name, w)}
        for key, of in zip(sums, self.refs, strict=True):
            tasks[key] = Task(key, _term, terms, TaskRef(name), *of)
        while len(sums) > 1:
            groups = [sums[i : i + FAN_IN] for i in range(0, len(sums), FAN_IN)]
            sums = [f"sum-{group[0]}" for group in groups]
            for key, group in zip(sums, groups, strict=True):
                tasks[key] = Task(key, _added, *map(TaskRef, group))
        return self._computed(tasks, sums)[0]


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


# ---- Tasks -------------------------------------------------------------------------------------------


def _counts(y: Any, sample_weight: Any) -> tuple[NDArray, NDArray, int]:
    y = np.asarray(y)
    if len(y):
        check_classification_targets(y)
    if sample_weight is not None:
        assert_all_finite(sample_weight, input_name="sample_weight")
    classes, target = np.unique(y, return_inverse=True)
    return classes, np.bincount(target.ravel(), sample_weight, len(classes)), len(y)


def _sample(
    share: float, n_bytes: int, seed: int, X: Any, y: Any, sample_weight: Any
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


def _term(terms: Terms, coef: NDArray, X: Any, y: Any, sample_weight: Any) -> Sum:
    if X.shape[0] == 0:
        return 0.0, np.zeros(coef.size)
    return terms.objective(X, y, sample_weight).loss_and_grad(coef)


def _added(first: Sum, *others: Sum) -> Sum:
    loss, grad = first
    grad = grad.copy()
    for term, other in others:
        loss += term
        grad += other
    return loss, grad
