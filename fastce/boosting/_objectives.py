"""What objectives for all libraries share: options, the arrays they write into, the call of the kernel."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import fastce
from fastce import _kernels
from fastce._kernels.entry import advice, arrays, options

#: The kernel's way to a Hessian, and the factor of U p (1 - p) in it, for C classes.
CURVATURES = {
    "exact": ("whole", lambda n_classes: 1.0),
    "upper": ("multiple", lambda n_classes: 2.0),
    "friedman": ("multiple", lambda n_classes: n_classes / (n_classes - 1)),
    "abs": ("magnitude", lambda n_classes: 1.0),
    "gauss-newton": ("multiple", lambda n_classes: 1.0),
}


def checked_number(value: Any, name: str, most: float = math.inf) -> float:
    """Return `value` as a float in [0, most]."""
    number = options.number_of(value, name, "a number")
    if not (0 <= number <= most and math.isfinite(number)):
        expected = f"in [0, {most:g}]" if most < math.inf else "that is finite and not negative"
        raise ValueError(f"{name} is {advice.shown(value)}; expected a number {expected}")
    return number


def class_weights(given: Mapping[int, float] | ArrayLike | None, n_classes: int) -> NDArray | None:
    """Weights of all classes, of a sequence or of a mapping; what the latter does not name has weight 1."""
    if given is None:
        return None
    if isinstance(given, str):
        raise ValueError(
            f"class_weight is {given!r}; expected a number for each class: for 'balanced' "
            "len(y) / (n_classes * numpy.bincount(y))"
        )
    if isinstance(given, Mapping):
        weights = np.ones(n_classes)
        for label, weight in given.items():
            if label not in range(n_classes):
                raise ValueError(f"class_weight names class {label!r}; expected classes in [0, {n_classes})")
            weights[int(label)] = options.number_of(weight, f"class_weight[{label!r}]", "a number")
    else:
        weights = np.array(arrays.float_array(given, "class_weight"), np.float64)
        if weights.shape != (n_classes,):
            raise ValueError(f"class_weight has shape {weights.shape}; expected ({n_classes},)")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"class_weight is {given!r}; expected numbers that are finite and not negative")
    return weights


class Objective:
    """Options and arrays of an objective. Subclasses say what their library calls, and its curvature."""

    n_classes: int

    def __init__(self, gamma: float, label_smoothing: float, curvature: str | None) -> None:
        if curvature is not None and not (isinstance(curvature, str) and curvature in CURVATURES):
            known = ", ".join(map(repr, CURVATURES))
            raise ValueError(f"curvature is {advice.shown(curvature)}; expected None or one of {known}")
        self.gamma = checked_number(gamma, "gamma")
        self.label_smoothing = checked_number(label_smoothing, "label_smoothing", 1)
        self.curvature = curvature
        self._own = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own = threading.local()

    def __repr__(self) -> str:
        shown = (f"{n}={v!r}" for n, v in self.__getstate__().items() if v is not None and n[0] != "_")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _default_curvature(self) -> str:
        """Of the library whose objective this is."""
        raise NotImplementedError

    def _way(self) -> tuple[str, float]:
        """The kernel's curvature and factor."""
        default = self._default_curvature() if self.gamma == 0 else "gauss-newton"
        way, factor = CURVATURES[self.curvature or default]
        return way, factor(self.n_classes)

    def _arrays(self, shape: tuple[int, ...], order: str) -> tuple[NDArray, NDArray]:
        """Gradient and Hessian of this thread: made at its first call, written again at each later one.

        A booster is done with them before it calls again.
        """
        arrays = getattr(self._own, "arrays", None)
        if arrays is None or arrays[0].shape != shape:
            arrays = np.empty(shape, np.float32, order), np.empty(shape, np.float32, order)
            self._own.arrays = arrays
        return arrays


class Called(Objective):
    """An objective that is called, in either of two conventions that XGBoost and LightGBM share."""

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[NDArray, NDArray]:
        """Gradient and Hessian, of ``(labels, margins, weights)`` or of ``(margins, data set)``."""
        return self._derivatives(*in_order(y_true, y_pred, sample_weight))


def in_order(first: Any, second: Any, weight: ArrayLike | None) -> tuple[Any, Any, Any]:
    """Margins, labels and weights, of labels, margins and weights or of margins and a data set."""
    if hasattr(second, "get_label"):
        return first, second.get_label(), second.get_weight()
    return second, first, weight


class Softmax(Objective):
    """The softmax of `n_classes` margins; `_order` is the memory order of its library's matrices."""

    _order = "C"
    _floor = -math.inf

    def __init__(
        self,
        n_classes: int,
        *,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        class_weight: Mapping[int, float] | ArrayLike | None = None,
        curvature: str | None = None,
    ) -> None:
        if isinstance(n_classes, bool) or not isinstance(n_classes, (int, np.integer)) or n_classes < 2:
            raise ValueError(f"n_classes is {n_classes!r}; expected an int of at least 2")
        self.n_classes = int(n_classes)
        super().__init__(gamma, label_smoothing, curvature)
        self.class_weight = class_weights(class_weight, self.n_classes)
        self._soft_labels: NDArray | None = None

    def with_soft_labels(self, labels: ArrayLike) -> Softmax:
        """Return a copy that takes the target probabilities of row i from ``labels[i]``.

        For data sets whose labels are one number a row. The labels of the data set itself are not used then.

        Parameters
        ----------
        labels : (N, n_classes) array of floats
            For the rows of the training data, in their order; not copied. An objective cannot know which of
            them a fold or a subset has: those, and cross-validation by the library, are refused.
        """
        soft = np.asarray(labels)
        if soft.dtype.kind != "f" or soft.ndim != 2 or soft.shape[1] != self.n_classes:
            raise ValueError(
                f"labels have shape {soft.shape} and dtype {soft.dtype}; "
                f"expected (N, {self.n_classes}) floats"
            )
        copy = type(self).__new__(type(self))
        copy.__setstate__(self.__getstate__() | {"_soft_labels": _checked_soft(soft)})
        return copy

    def _derivatives(
        self, margins: ArrayLike, target: ArrayLike, weight: ArrayLike | None
    ) -> tuple[NDArray, NDArray]:
        x = _rows(margins, self.n_classes)
        y = _targets(target, x) if self._soft_labels is None else self._soft_labels
        if len(y) != len(x) and y is self._soft_labels:
            raise ValueError(
                f"with_soft_labels was given {len(y)} rows, and this data set has {len(x)}; expected the "
                "rows that are trained on: an objective cannot follow folds and subsets, so train each with "
                "one of its own, with_soft_labels(labels[rows])"
            )
        grad, hess = self._arrays(x.shape, self._order)
        _kernels.boosting.softmax_derivatives(
            x, y, _weights(weight), self.class_weight, *self._way(), self._floor,
            self.gamma, self.label_smoothing, grad, hess,
        )  # fmt: skip
        return grad, hess


class Logistic(Objective):
    """One margin a row: the classes are 0 and 1, labels may be anything between."""

    n_classes = 2
    _floor = -math.inf

    def __init__(
        self,
        *,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        pos_weight: float | None = None,
        curvature: str | None = None,
    ) -> None:
        super().__init__(gamma, label_smoothing, curvature)
        self.pos_weight = None if pos_weight is None else checked_number(pos_weight, "pos_weight")

    def _default_curvature(self) -> str:
        return "exact"

    def _write(
        self,
        margins: ArrayLike,
        target: ArrayLike,
        weight: ArrayLike | None,
        scale: float,
        grad: NDArray,
        hess: NDArray,
    ) -> None:
        pos_weight = 1.0 if self.pos_weight is None else self.pos_weight
        _kernels.boosting.logistic_derivatives(
            np.asarray(margins), np.asarray(target), _weights(weight), pos_weight, scale, *self._way(),
            self._floor, self.gamma, self.label_smoothing, grad, hess,
        )  # fmt: skip

    def _derivatives(
        self, margins: ArrayLike, target: ArrayLike, weight: ArrayLike | None
    ) -> tuple[NDArray, NDArray]:
        x = np.asarray(margins)
        grad, hess = self._arrays(x.shape, "C")
        self._write(
            x.reshape(-1), np.asarray(target).reshape(-1), weight, 1.0, grad.reshape(-1), hess.reshape(-1)
        )
        return grad, hess


def _rows(margins: ArrayLike, n_classes: int | None = None) -> NDArray:
    """Margins of several classes. Libraries that know of one class hand out a vector."""
    x = np.asarray(margins)
    if x.ndim != 2 or x.shape[1] != (n_classes or max(x.shape[1], 2)):
        expected = n_classes or "at least 2"
        raise ValueError(
            f"the margins have shape {x.shape}; expected (rows, {expected}): "
            f"is the library's number of classes {expected}, too?"
        )
    return x


def _targets(target: ArrayLike, x: NDArray) -> NDArray:
    """Labels as they are, or a matrix of probabilities, perhaps given row by row."""
    y = np.asarray(target)
    return _checked_soft(y.reshape(x.shape)) if y.size == x.size else y


def _checked_soft(labels: NDArray) -> NDArray:
    """Soft labels. Two reads make sure of them, and no array of their size."""
    if labels.dtype.kind not in "biuf":
        raise TypeError(f"labels have dtype {labels.dtype}; expected numbers")
    with np.errstate(invalid="ignore"):
        if labels.min(initial=0) >= 0 and labels.max(initial=0) < math.inf:
            return labels
    place = np.argwhere(~((labels >= 0) & (labels < math.inf)))[0].tolist()
    raise ValueError(
        f"label {labels[tuple(place)]} at {place}; expected a number that is finite and not negative"
    )


def _weights(weight: ArrayLike | None) -> NDArray | None:
    """None for no weights, which some libraries tell by an empty array."""
    if weight is None:
        return None
    weight = np.asarray(weight)
    return weight if weight.size else None


# ---- Losses and probabilities of margins -------------------------------------------------------------------


def softmax_loss(margins: ArrayLike, target: ArrayLike, weight: ArrayLike | None) -> float:
    """Mean cross-entropy of rows of margins; `target` holds labels, of any dtype, or probabilities."""
    x = _rows(margins)
    y = _targets(target, x)
    if y.ndim == 2:
        return fastce.cross_entropy(x, y, sample_weight=_weights(weight))
    labels = _class_indices(y, x.shape[1])
    return fastce.cross_entropy(x, labels, sample_weight=_weights(weight), ignore_index=None)


def logistic_loss(margins: ArrayLike, target: ArrayLike, weight: ArrayLike | None) -> float:
    """Mean binary cross-entropy of margins."""
    x, y, w = np.asarray(margins).reshape(-1), np.asarray(target).reshape(-1), _weights(weight)
    if w is None:
        return fastce.binary_cross_entropy_with_logits(x, y)
    total = float(np.sum(w, dtype=np.float64))
    return fastce.binary_cross_entropy_with_logits(x, y, weight=w, normalizer=total)


def class_shares(y: ArrayLike, n_classes: int, sample_weight: ArrayLike | None) -> NDArray:
    """The share of each class in all rows, or in their weight."""
    labels = _class_indices(np.asarray(y).reshape(-1), n_classes)
    return _shares(np.bincount(labels, _row_weights(sample_weight, labels.size), n_classes))


def positive_share(y: ArrayLike, sample_weight: ArrayLike | None, of_ones: float = 1.0) -> float:
    """The share of class 1, of labels in [0, 1]; labels that are 1, in float32, weigh `of_ones` times."""
    labels = np.asarray(y, np.float64).reshape(-1)
    if (bad := ~((labels >= 0) & (labels <= 1))).any():
        row = int(bad.argmax())
        raise ValueError(
            f"label {labels[row]} at row {row}; expected a number in [0, 1]: more than 2 need n_classes"
        )
    weight = _row_weights(sample_weight, labels.size)
    if of_ones != 1:
        weight = np.where(labels.astype(np.float32) == 1, of_ones * weight, weight)
    return float(_shares(np.array([weight @ (1 - labels), weight @ labels]))[1])


def _row_weights(sample_weight: ArrayLike | None, n_rows: int) -> NDArray:
    if (weight := _weights(sample_weight)) is None:
        return np.ones(n_rows)
    weight = np.asarray(weight, np.float64).reshape(-1)
    if weight.size != n_rows:
        raise ValueError(f"sample_weight has {weight.size} numbers; expected {n_rows}, one for each label")
    if (bad := ~((weight >= 0) & (weight < math.inf))).any():
        row = int(bad.argmax())
        raise ValueError(
            f"sample_weight[{row}] is {weight[row]}; expected a number that is finite and not negative"
        )
    return weight


def _shares(weights: NDArray) -> NDArray:
    if not (total := weights.sum()):
        raise ValueError("y is empty, or all rows weigh 0; expected at least one row that counts")
    return weights / total


def _class_indices(labels: NDArray, n_classes: int) -> NDArray:
    """Labels of any dtype as integers. What is no class is refused, as objectives refuse it."""
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.intp, copy=False)
    if (bad := (labels != whole) | (whole < 0) | (whole >= n_classes)).any():
        row = int(bad.argmax())
        raise IndexError(
            f"label {labels[row]} at row {row}; expected a class, a whole number in [0, {n_classes})"
        )
    return whole


def predict_proba(raw: ArrayLike) -> NDArray:
    """Probabilities of raw margins, a column for each class.

    Parameters
    ----------
    raw : (N, C) or (N,) array
        Margins of C classes, or one for class 1 against class 0.

    Returns
    -------
    (N, C) or (N, 2) array
        Of the margins' dtype, float64 for integers.
    """
    x = arrays.float_array(raw, "raw")
    if x.ndim == 2 and x.shape[1] > 1:
        return fastce.softmax(x, axis=1)
    both = np.zeros((x.size, 2), x.dtype)
    both[:, 1] = x.reshape(-1)
    return fastce.softmax(both, axis=1, out=both)
