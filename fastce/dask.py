"""Losses of dask arrays: lazy, a task for each chunk of rows, sums in the order of the chunks.

Design
------
A. A task is one call of fastce on one chunk and one thread: dask runs as many at once as it has threads.
B. Losses of chunks are added as float64 in the order of the chunks: the result depends on the chunks, and
   neither on where they lie nor on when they are done.
C. The classes of a row belong together: where they are split into chunks, those of a chunk of rows are joined
   first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import ArrayLike

import fastce

__all__ = ["cross_entropy", "cross_entropy_and_grad"]


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: ArrayLike | None = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
    **options: Any,
) -> Any:
    """`fastce.cross_entropy` of dask arrays, whose last axis holds the classes.

    Parameters
    ----------
    logits : dask array (..., C)
        Chunked in any way; classes that are split are joined chunk of rows by chunk of rows.
    target : dask array (...) of integers or (..., C) of floats
        Rechunked to the rows of `logits` where its chunks differ; NumPy arrays are taken as well.
    sample_weight : dask array (...), optional
    weight, ignore_index, reduction, normalizer, **options
        As in `fastce.cross_entropy`.

    Returns
    -------
    dask array
        Lazy: of no axis, or with ``reduction="none"`` of the shape (...).

    Raises
    ------
    IndexError
        When it is computed, of a label that is no class: names its place in the whole array.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastce.dask import cross_entropy
    >>> logits = da.zeros((6, 4), chunks=(2, 4))
    >>> float(np.round(cross_entropy(logits, da.arange(6, chunks=2) % 4).compute(), 6))
    1.386294
    """
    batch = _Batch(logits, target, weight, sample_weight, ignore_index, options)
    if reduction == "none":
        return batch.losses()
    return batch.reduced(reduction, normalizer)[0]


def cross_entropy_and_grad(
    logits: Any,
    target: Any,
    *,
    weight: ArrayLike | None = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """`fastce.cross_entropy_and_grad` of dask arrays: the loss of `cross_entropy`, and a gradient.

    Parameters and errors are those of `cross_entropy`.

    Returns
    -------
    loss, grad : dask arrays
        Lazy. The gradient has the chunks of the logits, but for classes that were split. With
        ``reduction="mean"`` every chunk of it waits for the sum of the weights, which reads the labels alone.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> from fastce.dask import cross_entropy_and_grad
    >>> loss, grad = cross_entropy_and_grad(da.zeros((4, 2), chunks=(2, 2)), da.zeros(4, dtype=int, chunks=2))
    >>> dask.compute(loss, grad)[1][0].tolist()
    [-0.125, 0.125]
    """
    batch = _Batch(logits, target, weight, sample_weight, ignore_index, options)
    if reduction == "none":
        return batch.losses(), batch.grad(None)
    loss, denominator = batch.reduced(reduction, normalizer)
    return loss, batch.grad(denominator)


class _Batch:
    """Arrays with the same chunks of rows, and the options of the call."""

    def __init__(
        self, logits: Any, target: Any, weight: Any, sample_weight: Any, ignore_index: Any, options: dict
    ) -> None:
        if unknown := options.keys() - {"label_smoothing", "z_loss", "temperature", "softcap"}:
            raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
        if not isinstance(logits, da.Array):
            raise TypeError(
                f"logits are a {type(logits).__name__}; expected a dask array: use dask.array.from_array"
            )
        if logits.ndim == 0 or np.isnan(logits.shape[-1]):
            raise ValueError(
                f"logits have shape {logits.shape}; expected (..., classes) with a known number of classes"
            )
        if logits.numblocks[-1] > 1:
            logits = logits.rechunk({logits.ndim - 1: -1})
        self.logits, rows = logits, logits.chunks[:-1]
        self.soft = getattr(target, "ndim", np.ndim(target)) == logits.ndim
        target = _alike(target, logits.chunks if self.soft else rows, "target")
        self.options = options | {"weight": None if weight is None else np.asarray(weight), "n_threads": 1}
        self.ignore_index = ignore_index
        self.shape = logits.numblocks[:-1]
        starts = [np.cumsum((0, *sizes[:-1])) for sizes in rows]
        weights = None
        if sample_weight is not None:
            weights = _alike(sample_weight, rows, "sample_weight").to_delayed()
        chunks, targets = logits.to_delayed(), target.to_delayed()
        self.arguments = {
            k: (
                chunks[(*k, 0)],
                targets[(*k, 0) if self.soft else k],
                None if weights is None else weights[k],
                tuple(start[i] for start, i in zip(starts, k, strict=True)),
            )
            for k in np.ndindex(self.shape)
        }

    def _call(self, function: Any, k: tuple[int, ...], *further: Any) -> Any:
        given = dask.delayed(function, pure=True, traverse=False)
        return given(*self.arguments[k], *further, self.ignore_index, self.options)

    def reduced(self, reduction: str, normalizer: float | None) -> tuple[Any, Any]:
        """The loss, and what the gradient is to be divided by."""
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
        if normalizer is not None and reduction == "sum":
            raise ValueError("normalizer is given with reduction='sum'; expected reduction='mean'")
        sums = [self._call(_sum_of_losses, k) for k in self.arguments]
        denominator: Any = 1.0 if reduction == "sum" else normalizer
        given = denominator is not None
        if not given:
            sums_of_weights = [self._call(_sum_of_weights, k) for k in self.arguments]
            denominator = dask.delayed(_added, pure=True)(sums_of_weights)
        loss = dask.delayed(_quotient, pure=True)(sums, denominator, given)
        return da.from_delayed(loss, (), np.float64), denominator

    def losses(self) -> Any:
        dtype = (
            np.float64 if self.logits.dtype.itemsize == 8 or self.logits.dtype.kind in "iub" else np.float32
        )
        return self._assembled(lambda k: self._call(_losses, k), self.logits.chunks[:-1], dtype)

    def grad(self, denominator: Any) -> Any:
        dtype = np.float64 if self.logits.dtype.kind in "iub" else self.logits.dtype
        return self._assembled(lambda k: self._call(_gradient, k, denominator), self.logits.chunks, dtype)

    def _assembled(self, task: Any, chunks: tuple[tuple[int, ...], ...], dtype: Any) -> Any:
        """A dask array of one task a chunk."""
        tasks = {}
        dependencies = []
        name = f"fastce-{dask.base.tokenize(*(task(k) for k in self.arguments))}"
        for k in self.arguments:
            one = task(k)
            dependencies.append(one)
            tasks[(name, *k, *(0,) * (len(chunks) - len(k)))] = one.key
        graph = HighLevelGraph.from_collections(name, tasks, dependencies=dependencies)
        return da.Array(graph, name, chunks, dtype=dtype)


def _alike(array: Any, chunks: tuple, name: str) -> Any:
    """A dask array with these chunks."""
    sizes = tuple(sum(axis) for axis in chunks)
    if not isinstance(array, da.Array):
        array = np.asarray(array)
        if array.shape != sizes:
            raise ValueError(f"{name} has shape {array.shape}; expected {sizes}")
        return da.from_array(array, chunks=chunks)
    if array.ndim != len(sizes) or any(
        a != b for a, b in zip(array.shape, sizes, strict=True) if not (np.isnan(a) or np.isnan(b))
    ):
        raise ValueError(f"{name} has shape {array.shape}; expected {sizes}")
    if any(np.isnan(size) for size in (*sizes, *array.shape)):
        if array.numblocks != tuple(len(axis) for axis in chunks):
            raise ValueError(
                f"{name} has {array.numblocks} chunks; expected those of the logits, of unknown sizes"
            )
        return array
    return array if array.chunks == chunks else array.rechunk(chunks)


# ---- Tasks ---------------------------------------------------------------------------------------------


def _sum_of_losses(x: Any, y: Any, w: Any, start: tuple, ignore_index: Any, options: dict) -> float:
    with _places(x, y, start, ignore_index):
        return fastce.cross_entropy(
            x, y, sample_weight=w, ignore_index=ignore_index, reduction="sum", **options
        )


def _losses(x: Any, y: Any, w: Any, start: tuple, ignore_index: Any, options: dict) -> Any:
    with _places(x, y, start, ignore_index):
        return fastce.cross_entropy(
            x, y, sample_weight=w, ignore_index=ignore_index, reduction="none", **options
        )


def _gradient(
    x: Any, y: Any, w: Any, start: tuple, denominator: float | None, ignore_index: Any, options: dict
) -> Any:
    reduction = {"reduction": "sum"} if denominator is None else {"normalizer": denominator}
    with _places(x, y, start, ignore_index):
        return fastce.cross_entropy_and_grad(
            x, y, sample_weight=w, ignore_index=ignore_index, **reduction, **options
        )[1]


def _sum_of_weights(x: Any, y: Any, w: Any, start: tuple, ignore_index: Any, options: dict) -> float:
    """The chunk's part of the mean's denominator."""
    weight = options["weight"]
    if np.ndim(y) == np.ndim(x):
        return float(np.size(y) / np.shape(x)[-1] if w is None else np.sum(w, dtype=np.float64))
    live = np.ones(np.shape(y), bool) if ignore_index is None else np.asarray(y) != ignore_index
    with _places(x, y, start, ignore_index):
        if ((y < 0) | (y >= np.shape(x)[-1]))[live].any():
            raise IndexError
    if weight is None and w is None:
        return float(live.sum())
    terms = np.ones(int(live.sum())) if w is None else np.asarray(w, np.float64)[live]
    return float(np.sum(terms if weight is None else terms * weight[y[live]].astype(np.float64)))


def _added(terms: list[float]) -> float:
    return math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)


def _quotient(sums: list[float], denominator: float, given: bool) -> float:
    total = _added(sums)
    if given and total == 0 and denominator == 0:
        return 0.0
    return total / denominator if denominator else float("nan")


@contextmanager
def _places(x: Any, y: Any, start: tuple, ignore_index: Any) -> Iterator[None]:
    """A label that is no class is named by its place in the whole array."""
    try:
        yield
    except IndexError:
        n_classes = np.shape(x)[-1]
        wrong = (y < 0) | (y >= n_classes)
        if ignore_index is not None:
            wrong &= y != ignore_index
        place = np.argwhere(wrong)[0]
        where = ", ".join(str(int(a + b)) for a, b in zip(place, start, strict=True))
        raise IndexError(
            f"target[{where}] is {y[tuple(place)]}; expected a class in [0, {n_classes})"
            + ("" if ignore_index is None else f" or ignore_index={ignore_index}")
        ) from None
