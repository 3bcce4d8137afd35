"""Losses and scores of dask arrays: lazy, a task for each chunk, sums in the order of the chunks.

Design
------
A. A task is one call of fastce on one chunk and one thread: dask runs as many at once as it has threads.
B. Losses of chunks are added as float64 in the order of the chunks: the result depends on the chunks, and
   neither on where they lie nor on when they are done.
C. Where the classes of a row are split into chunks, each chunk tells of its rows what `_parts` joins to their
   losses: chunks of logits never meet. Soft targets, smoothing and z-loss ask for all classes at once:
   there those of a chunk of rows are joined first.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import ArrayLike, NDArray

import fastce
from fastce import inference
from fastce.dask import _chunks, _parts
from fastce.inference import TokenLogprobs
from fastce.inference.scoring import perplexity_of

__all__ = ["cross_entropy", "cross_entropy_and_grad", "perplexity", "token_logprobs"]

#: What others of fastce's functions take and these do not, and what does it here.
ELSEWHERE = {
    "axis": "the last axis holds the classes, and dask.array.moveaxis(logits, axis, -1) has them there",
    "n_threads": "a task runs on one thread, and dask as many tasks as it was given threads",
}


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
        Chunked in any way. Of rows whose classes are split, sums of chunks are combined in float64; with soft
        targets, `label_smoothing` or `z_loss` their chunks are joined, chunk of rows by chunk of rows.
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
    batch.check(reduction=reduction, normalizer=normalizer)
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
        Lazy. The gradient has the chunks of the logits, where these are not joined. With
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
    batch.check(reduction=reduction, normalizer=normalizer)
    if reduction == "none":
        return batch.losses(), batch.grad(None)
    loss, denominator = batch.reduced(reduction, normalizer)
    return loss, batch.grad(denominator)


def perplexity(
    logits: Any, tokens: Any, *, sample_weight: Any = None, ignore_index: int | None = -100, **options: Any
) -> Any:
    r"""`fastce.inference.perplexity` of dask arrays: :math:`\exp(-\frac{1}{n} \sum_i \log p_{y_i})`.

    Parameters
    ----------
    logits, tokens, sample_weight, ignore_index
        As in `cross_entropy`.
    **options
        `temperature` and `softcap`.

    Returns
    -------
    dask array
        Lazy, of no axis.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastce.dask import perplexity
    >>> float(perplexity(da.zeros((6, 8), chunks=(2, 4)), da.arange(6, chunks=2)).compute().round(6))
    8.0
    """
    _refuse_unknown(options, {"temperature", "softcap"})
    batch = _Batch(logits, tokens, None, sample_weight, ignore_index, options, "tokens")
    batch.check()
    return batch.reduced("mean", None)[0].map_blocks(_perplexity, dtype=np.float64)


def token_logprobs(
    logits: Any,
    tokens: Any,
    *,
    top_k: int = 0,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
) -> TokenLogprobs:
    """`fastce.inference.token_logprobs` of dask arrays, whose last axis holds the classes.

    Parameters
    ----------
    logits : dask array (..., C)
        Chunked in any way; where classes are split, the scores of chunks are combined in float64.
    tokens : dask or NumPy array (...) of integers
    top_k, temperature, softcap, ignore_index
        As in `fastce.inference.token_logprobs`.

    Returns
    -------
    TokenLogprobs
        Named tuple of lazy dask arrays with the chunks of the rows; `dask.compute` of several of them at once
        reads the logits once.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastce.dask import token_logprobs
    >>> logits = da.from_array(np.eye(4), chunks=(2, 2))
    >>> scores = token_logprobs(logits, np.arange(4), top_k=1)
    >>> logprob, rank = dask.compute(scores.logprob, scores.rank)
    >>> logprob.round(6).tolist()
    [-0.743668, -0.743668, -0.743668, -0.743668]
    >>> rank.tolist()
    [1, 1, 1, 1]
    """
    options = {"temperature": temperature, "softcap": softcap}
    batch = _Batch(logits, tokens, None, None, ignore_index, options, "tokens")
    batch.check_scores(top_k)
    return batch.scores(top_k)


def _perplexity(loss: float) -> np.float64:
    return np.float64(perplexity_of(loss))


def _refuse_unknown(options: dict, known: set[str]) -> None:
    if unknown := options.keys() - known:
        ways = "".join(f": {ELSEWHERE[name]}" for name in sorted(unknown) if name in ELSEWHERE)
        raise TypeError(
            f"unexpected arguments: {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}{ways}"
        )


class _Batch:
    """Arrays with the same chunks of rows, and the options of the call."""

    def __init__(
        self,
        logits: Any,
        target: Any,
        weight: Any,
        sample_weight: Any,
        ignore_index: Any,
        options: dict,
        name: str = "target",
    ) -> None:
        _refuse_unknown(options, {"label_smoothing", "z_loss", "temperature", "softcap"})
        if not isinstance(logits, da.Array):
            way = "logits.to_dask_array(lengths=True)" if is_frame(logits) else "dask.array.from_array"
            raise TypeError(f"logits are a {type(logits).__name__}; expected a dask array: use {way}")
        if logits.ndim == 0 or np.isnan(logits.shape[-1]):
            raise ValueError(
                f"logits have shape {logits.shape}; expected (..., classes) with a known number of classes"
            )
        self.soft = soft = getattr(target, "ndim", np.ndim(target)) == logits.ndim
        if logits.numblocks[-1] > 1 and (
            soft or options.get("label_smoothing") or options.get("z_loss") or 0 in logits.chunks[-1]
        ):
            logits = logits.rechunk({logits.ndim - 1: -1})
        self.logits, self.rows = logits, logits.chunks[:-1]
        self.is_split = logits.numblocks[-1] > 1
        self.name = name
        target = as_rows(target, logits.chunks if soft else self.rows, name)
        if not soft and target.dtype.kind == "f":
            raise ValueError(
                f"{name} has shape {target.shape} and dtype {target.dtype}; expected class indices of an "
                f"integer dtype, or probabilities of shape {logits.shape}"
            )
        weights, self.weight_dtype = None, None
        if sample_weight is not None:
            sample_weight = as_rows(sample_weight, self.rows, "sample_weight")
            weights, self.weight_dtype = sample_weight.to_delayed(), sample_weight.dtype
        self.target_dtype = target.dtype
        self.options = options = options | {
            "weight": None if weight is None else np.asarray(weight),
            "ignore_index": ignore_index,
            "n_threads": 1,
        }
        self.chunks, targets = logits.to_delayed(), target.to_delayed()
        self.firsts = np.cumsum((0, *logits.chunks[-1][:-1])).tolist()
        starts = [np.cumsum((0, *sizes[:-1])) for sizes in self.rows]
        self.labels = {
            k: dask.delayed(_chunks.Labels, pure=True, traverse=False)(
                targets[(*k, 0) if soft else k],
                None if weights is None else weights[k],
                tuple(start[i] for start, i in zip(starts, k, strict=True)),
                logits.shape[-1],
                options,
                name,
            )
            for k in np.ndindex(logits.numblocks[:-1])
        }

    def _no_rows(self) -> tuple[NDArray, NDArray]:
        n_classes = self.logits.shape[-1]
        shape = (0, n_classes) if self.soft else (0,)
        return np.empty((0, n_classes), self.logits.dtype), np.empty(shape, self.target_dtype)

    def check(self, **further: Any) -> None:
        """Refuse, before there is a graph, what a batch without rows of these dtypes is refused for."""
        weight = None if self.weight_dtype is None else np.empty(0, self.weight_dtype)
        try:
            fastce.cross_entropy(*self._no_rows(), sample_weight=weight, **self.options, **further)
        except (TypeError, ValueError) as error:
            raise _chunks.retold(error, self.name) from None

    def check_scores(self, top_k: int) -> None:
        options = {name: value for name, value in self.options.items() if name != "weight"}
        inference.token_logprobs(*self._no_rows(), top_k=top_k, **options)

    def _call(self, whole: Any, joined: Any, k: tuple[int, ...], *further: Any) -> Any:
        """A task of the chunk of rows k: by its logits, or if these are split by what their parts tell."""
        if self.is_split:
            return _task(joined, self._rows_of(k)[0], self.labels[k], *further)
        return _task(whole, self.chunks[(*k, 0)], self.labels[k], *further)

    def _rows_of(self, k: tuple[int, ...], top_k: int | None = None) -> tuple[Any, list[Any]]:
        """What all parts of the chunk of rows k tell, and what each of them does."""
        given = [(self.chunks[(*k, j)], first, self.labels[k]) for j, first in enumerate(self.firsts)]
        anchors = None
        if top_k is not None:  # ranks count logits above the target's
            anchors = _task(_parts.picked, [_task(_parts.target_logits, *of) for of in given], traverse=True)
        parts = [_task(_parts.part, *of, top_k or 0, anchors) for of in given]
        return _task(_parts.joined, parts, self.labels[k], traverse=True), parts

    def reduced(self, reduction: str, normalizer: float | None) -> tuple[Any, Any]:
        """The loss, and what the gradient is to be divided by."""
        sums = [self._call(_chunks.sum_of_losses, _parts.sum_of_losses, k) for k in self.labels]
        denominator: Any = 1.0 if reduction == "sum" else normalizer
        given = denominator is not None
        if not given:
            sums_of_weights = [_task(_chunks.sum_of_weights, labels) for labels in self.labels.values()]
            denominator = _task(_added, sums_of_weights, traverse=True)
        loss = _task(_quotient, sums, denominator, given, traverse=True)
        if given and denominator == 0:  # gradients of rows without weight are 0, not 0 / 0
            denominator = 2e-270
        return da.from_delayed(loss, (), np.float64), denominator

    def losses(self) -> Any:
        tasks = {k: self._call(_chunks.losses, _parts.losses, k, self._row_dtype()) for k in self.labels}
        return _assembled(tasks, self.rows, self._row_dtype())

    def grad(self, denominator: Any) -> Any:
        dtype = np.dtype(np.float64) if self.logits.dtype.kind in "iub" else self.logits.dtype
        tasks = {}
        for k, labels in self.labels.items():
            if not self.is_split:
                tasks[(*k, 0)] = _task(_chunks.gradient, self.chunks[(*k, 0)], labels, denominator)
                continue
            rows, parts = self._rows_of(k)
            for j, (first, part) in enumerate(zip(self.firsts, parts, strict=True)):
                given = (self.chunks[(*k, j)], j, first, labels, part, rows, denominator, dtype)
                tasks[(*k, j)] = _task(_parts.gradient, *given)
        return _assembled(tasks, self.logits.chunks, dtype)

    def scores(self, top_k: int) -> TokenLogprobs:
        whole = {
            k: _task(_parts.scores, self._rows_of(k, top_k)[0], labels, top_k, self._row_dtype())
            if self.is_split
            else _task(_chunks.scores, self.chunks[(*k, 0)], labels, top_k)
            for k, labels in self.labels.items()
        }
        fields = []
        for name in TokenLogprobs._fields:
            dtype = self._row_dtype() if "log" in name or name == "entropy" else np.dtype(np.int64)
            last = ((top_k,),) if name.startswith("top") else ()
            tasks = {(*k, *(0,) * len(last)): getattr(task, name) for k, task in whole.items()}
            fields.append(_assembled(tasks, (*self.rows, *last), dtype))
        return TokenLogprobs(*fields)

    def _row_dtype(self) -> Any:
        wide = self.logits.dtype.itemsize == 8 or self.logits.dtype.kind in "iub"
        return np.dtype(np.float64 if wide else np.float32)


def _task(function: Any, *arguments: Any, traverse: bool = False) -> Any:
    if not traverse:
        return dask.delayed(function, pure=True, traverse=False)(*arguments)
    return dask.delayed(function, pure=True)(*arguments)


def _assembled(tasks: dict[tuple, Any], chunks: tuple[tuple[int, ...], ...], dtype: Any) -> Any:
    """A dask array of one task a chunk."""
    name = f"fastce-{dask.base.tokenize(*tasks.values())}"
    keys = {(name, *k): task.key for k, task in tasks.items()}
    graph = HighLevelGraph.from_collections(name, keys, dependencies=list(tasks.values()))
    return da.Array(graph, name, chunks, dtype=dtype)


def is_frame(data: Any) -> bool:
    """Whether this is a data frame of dask's, or a column of one."""
    return hasattr(type(data), "to_dask_array")  # an instance of Delayed has whatever it is asked for


def as_rows(array: Any, chunks: tuple, name: str) -> Any:
    """A dask array with these chunks."""
    sizes = tuple(sum(axis) for axis in chunks)
    if is_frame(array):  # a column
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*extension dtypes", UserWarning)  # text becomes objects
            array = array.to_dask_array()
    if not isinstance(array, da.Array):
        array = np.asarray(array)
        if np.isnan(sizes).any():
            raise ValueError(
                f"{name} is no dask array, and the rows have chunks of unknown sizes; expected a dask array "
                "in the same chunks, or compute_chunk_sizes() of the rows first"
            )
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
                f"{name} has {array.numblocks} chunks; expected those of the rows, of unknown sizes"
            )
        return array
    if array.chunks == chunks:
        return array
    if 0 in sizes:  # dask leaves the chunks of such arrays as they are
        return da.empty(sizes, dtype=array.dtype, chunks=chunks)
    return array.rechunk(chunks)


def _added(terms: list[float]) -> float:
    return math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)


def _quotient(sums: list[float], denominator: float, given: bool) -> float:
    total = _added(sums)
    if given and total == 0 and denominator == 0:
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.divide(total, denominator))
