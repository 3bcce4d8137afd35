"""Rows out of arrays and reduced results back: what the softmax losses of the twin share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import FORMATS, as_exact_float64, divided, wide, zero_wins


class Batch:
    """The rows that are not ignored, and the way back to the caller's shapes.

    Attributes
    ----------
    x : (K, C) float64 ndarray
        The logits of these rows.
    y : (K,) ndarray of int
        The target; with probability targets the class of the largest coefficient.
    d : (K, C) wide ndarray
        Coefficient of ``-log p_j`` in the loss, class weights and label smoothing included.
    s : (K,) wide ndarray
        Sample weights.
    """

    def __init__(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        axis: int,
        weight: ArrayLike | None,
        sample_weight: ArrayLike | None,
        ignore_index: int | None,
        label_smoothing: float = 0.0,
        probabilities: bool = True,
    ) -> None:
        classes_last = np.moveaxis(as_exact_float64(logits), axis, -1)
        self._axis, self._classes_last = axis, classes_last.shape
        n_classes, self._shape = classes_last.shape[-1], classes_last.shape[:-1]
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing!r}")
        n_rows = int(np.prod(self._shape))
        if n_classes == 0 and n_rows:
            raise ValueError("logits have no classes: the class axis has length 0")
        columns = max(n_classes, 1)  # so that an empty batch needs no special case
        x = classes_last.reshape(n_rows, columns)
        w = _class_weights(weight, n_classes) if n_classes else wide(np.ones(columns))

        target = np.asarray(target)
        is_dense = probabilities and target.dtype.name in FORMATS
        self._kept = np.ones(n_rows, bool)
        if is_dense:
            q = _probabilities(target, axis, self._classes_last, ignore_index)
        else:
            _check_labels(target, self._shape, n_classes, ignore_index)
            if ignore_index is not None:
                self._kept = target.reshape(-1) != ignore_index

        s = np.ones(n_rows) if sample_weight is None else _as_rows(sample_weight, self._shape)
        self.x, self.s = x[self._kept], wide(s)[self._kept]
        self._row = np.arange(len(self.x))
        with np.errstate(all="ignore"):
            smooth = wide(label_smoothing)[()]
            if is_dense:
                self.d = ((1 - smooth) * wide(q.reshape(n_rows, columns)) + smooth / columns) * w
                self.y = np.asarray(self.d.astype(np.float64)).argmax(axis=1)
                mean_weight = self.s
            else:
                self.y = target.reshape(-1)[self._kept].astype(np.intp)
                self.d = wide(np.zeros(self.x.shape))
                if label_smoothing:
                    self.d = self.d + smooth / columns * w
                self.d[self._row, self.y] += (1 - smooth) * w[self.y]
                mean_weight = self.s * w[self.y]
            self._mean_weight = mean_weight.sum()

    def kept(self) -> np.ndarray:
        """Which rows of the batch these are, as a mask."""
        return self._kept

    def at_target(self, a: np.ndarray) -> np.ndarray:
        """The target's element of each row of `a`."""
        return a[self._row, self.y]

    def without_target(self, a: np.ndarray) -> np.ndarray:
        """`a`, with 0 for the target's element of each row."""
        a = a.copy()
        a[self._row, self.y] = wide(0.0)[()]
        return a

    def with_target(self, a: np.ndarray, value: np.ndarray) -> np.ndarray:
        """`a`, with the target's element of each row replaced."""
        a = a.copy()
        a[self._row, self.y] = value
        return a

    @np.errstate(all="ignore")
    def reduced(
        self, reduction: str, normalizer: float | None, loss: np.ndarray, *derivatives: np.ndarray
    ) -> tuple[Any, ...]:
        """Sample weights, the reduction and the caller's shapes, given to the results of rows."""
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        divisor = wide(1.0)[()]
        if reduction == "mean":
            divisor = self._mean_weight if normalizer is None else wide(normalizer)[()]
        is_given = normalizer is not None
        rows = wide(np.zeros(self._kept.size))
        rows[self._kept] = zero_wins(self.s, loss)
        of_rows = reduction == "none"
        result: Any = rows.reshape(self._shape) if of_rows else divided(rows.sum(), divisor, is_given)
        return result, *(self._whole(divided(self.s[:, None] * a, divisor, is_given)) for a in derivatives)

    def _whole(self, kept_rows: np.ndarray) -> np.ndarray:
        whole = wide(np.zeros((self._kept.size, self._classes_last[-1])))
        whole[self._kept] = kept_rows
        return np.moveaxis(whole.reshape(self._classes_last), -1, self._axis)


def _class_weights(weight: ArrayLike | None, n_classes: int) -> np.ndarray:
    if weight is None:
        return wide(np.ones(n_classes))
    w = as_exact_float64(weight, "weight")
    if w.shape != (n_classes,):
        raise ValueError(f"weight must have the shape ({n_classes},), got {w.shape}")
    return wide(w)


def _as_rows(sample_weight: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    weight = as_exact_float64(sample_weight, "sample_weight")
    if weight.shape != shape:
        raise ValueError(f"sample_weight must have the target's shape {shape}, got {weight.shape}")
    return weight.reshape(-1)


def _probabilities(
    target: np.ndarray, axis: int, classes_last: tuple[int, ...], ignore_index: int | None
) -> np.ndarray:
    q = np.moveaxis(target.astype(np.float64), axis, -1) if target.ndim else target
    if q.shape != classes_last:
        raise ValueError(f"probability targets must have the logits' shape, got {target.shape}")
    if ignore_index not in (-100, None):
        raise ValueError(f"ignore_index is for integer targets only, got {ignore_index!r}")
    return q


def _check_labels(
    labels: np.ndarray, shape: tuple[int, ...], n_classes: int, ignore_index: int | None
) -> None:
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target must hold integers or probabilities, got {labels.dtype}")
    if labels.shape != shape:
        raise ValueError(f"target must have the shape {shape}, got {labels.shape}")
    wrong = (labels < 0) | (labels >= n_classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise IndexError(f"label {labels[position]} at {position} is outside [0, {n_classes})")
