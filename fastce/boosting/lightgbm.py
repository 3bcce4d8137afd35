"""Objectives and metrics for LightGBM: ``params["objective"]`` and ``LGBMClassifier(objective=...)``."""

from __future__ import annotations

from typing import Any

import lightgbm  # noqa: F401 (this module is of no use without it, and says so at once)
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce.boosting import _objectives
from fastce.boosting._objectives import predict_proba

__all__ = [
    "LogisticObjective",
    "SoftmaxObjective",
    "init_score",
    "logistic_loss",
    "predict_proba",
    "softmax_loss",
]


class SoftmaxObjective(_objectives.Called, _objectives.Softmax):
    """Cross-entropy of several classes, with the trees of ``multiclass`` where no option is set.

    Parameters
    ----------
    n_classes : int
        At least 2; LightGBM's ``num_class``, which has to be given to it as well.
    gamma : float, default 0
        Of the focal loss ``(1 - p)^gamma (-log p)``.
    label_smoothing : float, default 0
        In [0, 1]: labels count as ``(1 - label_smoothing) q + label_smoothing / n_classes``.
    class_weight : (n_classes,) array or mapping, optional
        Multiplies the terms of each class, as in `fastce.cross_entropy`.
    curvature : {None, "exact", "upper", "friedman", "abs", "gauss-newton"}
        What stands for the diagonal of the Hessian: p(1-p), 2p(1-p), C/(C-1) p(1-p), the size of the
        gradient; of a focal loss the exact second derivative, or multiples of its part that is never negative
        ("gauss-newton"). None: "friedman", as LightGBM itself; of a focal loss "gauss-newton".

    Notes
    -----
    LightGBM starts a custom objective from 0: pass ``init_score(y, n_classes)`` to its data set for its own
    start, and add it to raw scores. The arrays that a call returns are written again by the next one in the
    same thread. Soft labels: `with_soft_labels`.

    Examples
    --------
    >>> import lightgbm
    >>> import numpy as np
    >>> from fastce.boosting.lightgbm import SoftmaxObjective, init_score, predict_proba
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 4))
    >>> y = np.argmax(X[:, :3], axis=1)
    >>> params = {"num_class": 3, "num_threads": 1, "verbose": -1}
    >>> start = init_score(y, 3)
    >>> data = lightgbm.Dataset(X, y, init_score=start)
    >>> model = lightgbm.train(params | {"objective": SoftmaxObjective(3)}, data, 5)
    >>> own = lightgbm.train(params | {"objective": "multiclass"}, lightgbm.Dataset(X, y), 5)
    >>> np.abs(predict_proba(model.predict(X) + start) - own.predict(X)).max() < 1e-5
    np.True_
    """

    _order = "F"

    def _default_curvature(self) -> str:
        return "friedman"


class LogisticObjective(_objectives.Called, _objectives.Logistic):
    """Binary cross-entropy, with the trees of ``binary`` where no option is set.

    Parameters
    ----------
    gamma, label_smoothing, curvature
        As in `SoftmaxObjective`, of the classes 0 and 1; None is "exact", of a focal loss "gauss-newton".
    pos_weight : float, optional
        Multiplies the terms of class 1; LightGBM's ``scale_pos_weight``, which custom objectives do not see.

    Examples
    --------
    >>> import numpy as np
    >>> from lightgbm import LGBMClassifier
    >>> from fastce.boosting.lightgbm import LogisticObjective, predict_proba
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> y = (X[:, 0] > 0.5).astype(int)
    >>> model = LGBMClassifier(n_estimators=20, objective=LogisticObjective(gamma=2.0), verbose=-1).fit(X, y)
    >>> predict_proba(model.predict(X, raw_score=True)).shape
    (200, 2)
    """


def init_score(
    y: ArrayLike, n_classes: int | None = None, *, sample_weight: ArrayLike | None = None
) -> NDArray:
    """Where LightGBM starts its own objective from, for ``Dataset(init_score=...)``.

    Parameters
    ----------
    y : (N,) array
        Labels.
    n_classes : int, optional
        Of a softmax; None for a logistic objective.
    sample_weight : (N,) array, optional

    Returns
    -------
    (N, n_classes) or (N,) array of float64
        The logarithm of each class's share in all rows; or the logit of class 1's. It is no part of the
        model: add a row of it to raw scores that the model predicts.

    Raises
    ------
    IndexError, ValueError
        A label that is no class, or not in [0, 1] without `n_classes`; no rows, or none that weighs anything.
    """
    labels = np.asarray(y)
    least = 1e-15  # LightGBM's kEpsilon
    if n_classes is None:
        share = min(max(_objectives.positive_share(labels, sample_weight), least), 1 - least)
        return np.full(labels.shape, np.log(share / (1 - share)))
    start = np.log(np.maximum(_objectives.class_shares(labels, n_classes, sample_weight), least))
    scores = np.empty((len(labels), n_classes), order="F")
    scores[:] = start
    return scores


def _metric(loss: Any, y_true: Any, y_pred: Any, weight: ArrayLike | None) -> tuple[str, float, bool]:
    return f"fastce_{loss.__name__}", loss(*_objectives.in_order(y_true, y_pred, weight)), False


def softmax_loss(y_true: Any, y_pred: Any, weight: ArrayLike | None = None) -> tuple[str, float, bool]:
    """Mean cross-entropy of raw scores: ``lightgbm.train(feval=...)``, ``LGBMClassifier``.

    With objectives of this module, where metrics get raw scores; with LightGBM's own they get probabilities.
    """
    return _metric(_objectives.softmax_loss, y_true, y_pred, weight)


def logistic_loss(y_true: Any, y_pred: Any, weight: ArrayLike | None = None) -> tuple[str, float, bool]:
    """Mean binary cross-entropy of raw scores; else as `softmax_loss`."""
    return _metric(_objectives.logistic_loss, y_true, y_pred, weight)
