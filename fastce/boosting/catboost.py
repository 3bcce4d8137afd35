"""Objectives and metrics for CatBoost: ``CatBoostClassifier(loss_function=..., eval_metric=...)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from catboost import MultiTargetCustomMetric, MultiTargetCustomObjective
from numpy.typing import ArrayLike, NDArray

import fastce
from fastce.boosting import _objectives
from fastce.boosting._objectives import predict_proba

__all__ = [
    "LogisticObjective",
    "SoftLabelObjective",
    "SoftmaxObjective",
    "logistic_loss",
    "predict_proba",
    "soft_label_loss",
    "softmax_loss",
]


class LogisticObjective(_objectives.Logistic):
    """Binary cross-entropy, with the trees of ``Logloss`` where no option is set.

    Parameters
    ----------
    gamma : float, default 0
        Of the focal loss ``(1 - p)^gamma (-log p)``.
    label_smoothing : float, default 0
        In [0, 1]: labels count as ``(1 - label_smoothing) y + label_smoothing / 2``.
    pos_weight : float, optional
        Multiplies the terms of class 1.
    curvature : {None, "exact", "upper", "friedman", "abs", "gauss-newton"}
        What stands for the second derivative: p(1-p), 2p(1-p), the same, the size of the gradient; of a focal
        loss the exact one, or multiples of its part that is never negative ("gauss-newton"). None: "exact",
        as CatBoost itself; of a focal loss "gauss-newton".

    Notes
    -----
    CatBoost asks for a metric: pass one of its own by name, or `logistic_loss`. It knows of no classes where
    the objective is not its own: predict raw values, and `predict_proba` of them. It estimates leaves by
    Newton's method for its own objective and by gradients for others: ``leaf_estimation_method="Newton"`` is
    what it takes itself, with ``leaf_estimation_iterations=10``, for ``Logloss``.

    Examples
    --------
    >>> import numpy as np
    >>> from catboost import CatBoostClassifier
    >>> from fastce.boosting.catboost import LogisticObjective, logistic_loss, predict_proba
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> y = (X[:, 0] > 0.5).astype(int)
    >>> model = CatBoostClassifier(
    ...     iterations=20, loss_function=LogisticObjective(gamma=2.0), eval_metric=logistic_loss, verbose=0,
    ...     leaf_estimation_method="Newton", allow_writing_files=False,
    ... )
    >>> raw = model.fit(X, y).predict(X, prediction_type="RawFormulaVal")
    >>> bool((predict_proba(raw).argmax(axis=1) == y).mean() > 0.95)
    True
    """

    no_jit = True  # CatBoost would have numba compile the methods

    def calc_ders_range(
        self, approxes: Sequence[float], targets: Sequence[float], weights: Sequence[float] | None
    ) -> NDArray:
        """Derivatives of minus the loss: an array of rows (first, second), written again by the next call."""
        n = len(approxes)
        ders = getattr(self._own, "ders", None)
        if ders is None or len(ders) < n:
            ders = self._own.ders = np.empty((n, 2))
        ders = ders[:n]
        self._write(approxes, targets, weights, -1.0, ders[:, 0], ders[:, 1])
        return ders

    def calc_ders_multi(self, approx: Sequence[float], target: Any, weight: float) -> NoReturn:
        """Refuse: this is what CatBoost calls where rows have several raw values."""
        n = len(approx)
        raise ValueError(
            f"a row has {n} raw values; expected one: use SoftmaxObjective({n}), or for two classes leave "
            "classes_count out and pass eval_metric=logistic_loss"
        )


class SoftmaxObjective(_objectives.Softmax):
    """Cross-entropy of several classes, with the trees of ``MultiClass`` where no option is set.

    Parameters
    ----------
    n_classes : int
        At least 2.
    gamma, label_smoothing
        As in `LogisticObjective`, smoothed with ``label_smoothing / n_classes``.
    class_weight : (n_classes,) array or mapping, optional
        Multiplies the terms of each class, as in `fastce.cross_entropy`.
    curvature : {None, "exact", "upper", "friedman", "abs", "gauss-newton"}
        CatBoost takes the whole matrix of second derivatives: None and "exact" give that of cross-entropy,
        diag(p) - p p'; of a focal loss "exact" is its own and None its part that is never negative,
        "gauss-newton". The others are diagonal matrices: 2p(1-p), C/(C-1) p(1-p), the size of the gradient.

    Notes
    -----
    CatBoost gives a row one raw value, unless it is told that there are more: ``classes_count=n_classes``.
    With a metric of its own for several classes, ``eval_metric="MultiClass"``, it counts them itself, and two
    classes have two raw values; else they have one, that of `LogisticObjective`.

    CatBoost calls the objective for every row and iteration, which takes 20 to 40 µs in Python, whoever
    computes: 100 iterations of 100,000 rows take some minutes, where its own loss takes seconds.

    Examples
    --------
    >>> import numpy as np
    >>> from catboost import CatBoostClassifier
    >>> from fastce.boosting.catboost import SoftmaxObjective, predict_proba, softmax_loss
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 4))
    >>> y = np.argmax(X[:, :3], axis=1)
    >>> model = CatBoostClassifier(
    ...     iterations=5, loss_function=SoftmaxObjective(3), eval_metric=softmax_loss, classes_count=3,
    ...     leaf_estimation_method="Newton", allow_writing_files=False, verbose=0,
    ... )
    >>> raw = model.fit(X, y).predict(X, prediction_type="RawFormulaVal")
    >>> bool((predict_proba(raw).argmax(axis=1) == y).mean() > 0.7)
    True
    """

    no_jit = True

    def _default_curvature(self) -> str:
        return "exact"

    def with_soft_labels(self, labels: ArrayLike) -> SoftmaxObjective:
        """Not for CatBoost, whose objectives do not see which row they are called for."""
        raise TypeError("CatBoost takes soft labels as several targets: use SoftLabelObjective")

    def calc_ders_range(self, approxes: Sequence[float], targets: Any, weights: Any) -> NoReturn:
        """Refuse: this is what CatBoost calls where rows have one raw value."""
        self._refuse(1)

    def _refuse(self, n: int) -> NoReturn:
        raw = "one raw value" if n == 1 else f"{n} raw values"
        raise ValueError(f"a row has {raw}; expected {self.n_classes}: {self._way_out()}")

    def _way_out(self) -> str:
        """To raw values of all classes."""
        if self.n_classes == 2:
            return "LogisticObjective takes one for two classes; eval_metric='MultiClass' makes two"
        return f"pass classes_count={self.n_classes} to CatBoost, and labels in [0, {self.n_classes})"

    def calc_ders_multi(
        self, approx: Sequence[float], target: float | Sequence[float], weight: float
    ) -> tuple[NDArray, NDArray]:
        """First derivatives of minus the loss of a row, and the matrix of second ones."""
        if len(approx) != self.n_classes:
            self._refuse(len(approx))
        q = np.asarray(target, np.float64)
        if q.ndim == 0:
            if not (0 <= target < self.n_classes and target == int(target)):
                raise IndexError(f"label {target}; expected a class, a whole number in [0, {self.n_classes})")
            q = np.zeros(self.n_classes)
            q[int(target)] = 1
        else:
            _objectives._checked_soft(q)
        if self.label_smoothing:
            q = (1 - self.label_smoothing) * q + self.label_smoothing / self.n_classes
        if self.class_weight is not None:
            q = q * self.class_weight
        u = q * weight
        x = np.asarray(approx)
        p, log_p = fastce.softmax(x, axis=0), fastce.log_softmax(x, axis=0)
        rest = -np.expm1(log_p)  # 1 - p would cancel in a sure row
        if self.gamma:
            above = np.maximum(rest, 1e-300)
            slope = rest**self.gamma * (1 - self.gamma * p * log_p / above)
            bend = -(2 + log_p) + (self.gamma - 1) * p * log_p / above
            v = u * self.gamma * p * rest**self.gamma / above * bend
            u = u * slope
        total = u.sum()
        first = u * rest - p * (total - u)
        name = self.curvature or self._default_curvature()
        diagonal = -(np.abs(first) if name == "abs" else self._way()[1] * total * p * rest)
        second = np.zeros((p.size, p.size))
        if name in ("exact", "gauss-newton"):
            second = np.outer(p * total, p)
        if name == "exact" and self.curvature and self.gamma:
            others = v @ (1 - np.eye(v.size))  # their sum would cancel in a sure row
            second += np.outer(p, p) * (others - v[:, None]) - np.outer(p, v * rest) - np.outer(v * rest, p)
            diagonal += p**2 * others + rest**2 * v
        np.fill_diagonal(second, diagonal)
        return first, second


class SoftLabelObjective(SoftmaxObjective, MultiTargetCustomObjective):
    """Cross-entropy of target probabilities: the labels are a matrix, ``fit(X, Q)`` or ``Pool(X, Q)``.

    Parameters and cost are those of `SoftmaxObjective`. For ``catboost.CatBoost`` or ``CatBoostRegressor``,
    whose labels may have several columns; `predict_proba` makes probabilities of what these predict.
    """

    def _way_out(self) -> str:
        return f"give labels of {self.n_classes} columns, the probability of each class"


class _Metric:
    """What CatBoost asks of a metric. `_loss` takes margins of shape (N, C) or (N,), targets and weights."""

    no_jit = True

    def is_max_optimal(self) -> bool:
        return False

    def get_final_error(self, error: float, weight: float) -> float:
        return error / weight if weight else 0.0


class LogisticLoss(_Metric):
    """Mean binary cross-entropy of raw values; an instance is ``eval_metric=logistic_loss``."""

    def evaluate(
        self, approxes: Sequence[ArrayLike], target: ArrayLike, weight: ArrayLike | None
    ) -> tuple[float, float]:
        """Sum of the losses and of the weights."""
        if len(approxes) != 1:
            raise ValueError(
                f"rows have {len(approxes)} raw values; expected one: softmax_loss takes those of classes"
            )
        total = float(len(target) if weight is None else np.sum(weight, dtype=np.float64))
        return total * _objectives.logistic_loss(approxes[0], target, weight), total


class SoftmaxLoss(_Metric):
    """Mean cross-entropy of raw values; an instance is ``eval_metric=softmax_loss``."""

    def evaluate(
        self, approxes: Sequence[ArrayLike], target: Any, weight: ArrayLike | None
    ) -> tuple[float, float]:
        """Sum of the losses and of the weights; `target` : labels, or arrays of probabilities."""
        y = np.stack(target, axis=1) if isinstance(target, (tuple, list)) else target
        total = float(len(y) if weight is None else np.sum(weight, dtype=np.float64))
        return total * _objectives.softmax_loss(np.stack(approxes, axis=1), y, weight), total


class SoftLabelLoss(SoftmaxLoss, MultiTargetCustomMetric):
    """`SoftmaxLoss` of a matrix of labels."""


logistic_loss = LogisticLoss()
softmax_loss = SoftmaxLoss()
soft_label_loss = SoftLabelLoss()
