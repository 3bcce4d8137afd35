"""Objectives and metrics for XGBoost: ``xgboost.train(obj=...)`` and ``XGBClassifier(objective=...)``."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import xgboost
from numpy.typing import ArrayLike

from fastce.boosting import _objectives
from fastce.boosting._objectives import predict_proba

__all__ = [
    "LogisticObjective",
    "SoftmaxObjective",
    "base_score",
    "logistic_loss",
    "predict_proba",
    "softmax_loss",
]


FLOOR = 1e-16  # of a Hessian, XGBoost's own
RT_EPS = 1e-6  # its kRtEps


class SoftmaxObjective(_objectives.Called, _objectives.Softmax):
    """Cross-entropy of several classes, with the trees of ``multi:softprob`` where no option is set.

    Parameters
    ----------
    n_classes : int
        At least 2; XGBoost's ``num_class``.
    gamma : float, default 0
        Of the focal loss ``(1 - p)^gamma (-log p)``.
    label_smoothing : float, default 0
        In [0, 1]: labels count as ``(1 - label_smoothing) q + label_smoothing / n_classes``.
    class_weight : (n_classes,) array or mapping, optional
        Multiplies the terms of each class, as in `fastce.cross_entropy`.
    curvature : {None, "exact", "upper", "friedman", "abs", "gauss-newton"}
        What stands for the diagonal of the Hessian: p(1-p), 2p(1-p), C/(C-1) p(1-p), the size of the
        gradient; of a focal loss the exact second derivative, or multiples of its part that is never negative
        ("gauss-newton"). None: what the installed XGBoost takes itself, "upper" in 3.2; of a focal loss
        "gauss-newton". No Hessian is below 1e-16, as in XGBoost.

    Notes
    -----
    Labels may be a matrix of target probabilities, ``DMatrix(X, label=Q)``; leave ``num_class`` and
    ``objective`` out then, by which XGBoost would refuse it. The arrays that a call returns are written again
    by the next one in the same thread. XGBoost starts a custom objective from 0.5 instead of estimating a
    start: see `base_score`.

    Examples
    --------
    >>> import numpy as np
    >>> import xgboost
    >>> from fastce.boosting.xgboost import SoftmaxObjective, base_score
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 4))
    >>> y = np.argmax(X[:, :3], axis=1)
    >>> params = {"num_class": 3, "objective": "multi:softprob", "nthread": 1}
    >>> start = {"base_score": base_score(y, 3)}
    >>> model = xgboost.train(params | start, xgboost.DMatrix(X, y), 5, obj=SoftmaxObjective(3))
    >>> own = xgboost.train(params, xgboost.DMatrix(X, y), 5)
    >>> np.abs(model.predict(xgboost.DMatrix(X)) - own.predict(xgboost.DMatrix(X))).max() < 1e-5
    np.True_
    """

    _floor = FLOOR

    def _default_curvature(self) -> str:
        return _softprob_curvature()


class LogisticObjective(_objectives.Called, _objectives.Logistic):
    """Binary cross-entropy, with the trees of ``binary:logistic`` where no option is set.

    Parameters
    ----------
    gamma, label_smoothing, curvature
        As in `SoftmaxObjective`, of the classes 0 and 1; None is "exact", of a focal loss "gauss-newton".
    pos_weight : float, optional
        Multiplies the terms of class 1; XGBoost's ``scale_pos_weight``, which custom objectives do not see.
        Where XGBoost starts from depends on it: ``base_score(y, pos_weight=...)``.

    Examples
    --------
    >>> import numpy as np
    >>> from xgboost import XGBClassifier
    >>> from fastce.boosting.xgboost import LogisticObjective
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> y = (X[:, 0] > 0.5).astype(int)
    >>> objective = LogisticObjective(gamma=2.0, pos_weight=3.0)
    >>> model = XGBClassifier(n_estimators=20, objective=objective).fit(X, y)
    >>> float(model.score(X, y))
    1.0
    """

    _floor = FLOOR


def base_score(
    y: ArrayLike,
    n_classes: int | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    pos_weight: float | None = None,
) -> Any:
    """Where XGBoost starts its own objective from, to be passed as ``base_score``: others start from 0.5.

    Parameters
    ----------
    y : (N,) array
        Labels.
    n_classes : int, optional
        Of a softmax; None for a logistic objective.
    sample_weight : (N,) array, optional
    pos_weight : float, optional
        The objective's own, for the start with ``scale_pos_weight``.

    Returns
    -------
    list of n_classes floats, or float
        Centred logarithms of the classes' shares; or the share of class 1.

    Raises
    ------
    IndexError, ValueError
        A label that is no class, or not in [0, 1] without `n_classes`; no rows, or none that weighs anything;
        a `pos_weight` of several classes.

    Notes
    -----
    With a ``scale_pos_weight`` that is not 1, XGBoost 3 takes a step of Newton's method from margin 0 [1]_:
    labels of 1 weigh `pos_weight` times as much, and where :math:`s` is their share in all weights the start
    is the margin :math:`4 s - 2`, of which this is the probability. Without, it is the share itself.

    References
    ----------
    .. [1] ``RegLossObj::InitEstimation`` in ``src/objective/regression_obj.cu``, ``FitIntercept`` in
       ``src/objective/init_estimation.cc``, of XGBoost 3.2.
    """
    if pos_weight is not None:
        pos_weight = _objectives.checked_number(pos_weight, "pos_weight")
        if n_classes is not None:
            raise ValueError(
                f"pos_weight is {pos_weight} with n_classes={n_classes}; expected None: leave n_classes out "
                "for two classes of one margin, as LogisticObjective has them"
            )
        if abs(pos_weight - 1) > RT_EPS:
            share = _objectives.positive_share(y, sample_weight, pos_weight)
            return 1 / (1 + math.exp(2 - 4 * share))
    if n_classes is None:
        return _objectives.positive_share(y, sample_weight)
    margin = np.log(_objectives.class_shares(y, n_classes, sample_weight) + RT_EPS)
    return (margin - margin.mean()).tolist()


@cache
def _softprob_curvature() -> str:
    """The Hessian of the installed version: 2p(1-p), or since some version |p - y|.

    Asked of a tree with a single leaf: -gradient / Hessian of a class with p = 1/3 is -3/4 or -1.
    """
    data = xgboost.DMatrix(np.zeros((1, 1)), label=[0])
    params = {"objective": "multi:softprob", "num_class": 3, "base_score": 0.0, "eta": 1.0, "lambda": 0.0}
    params |= {"min_child_weight": 0.0, "nthread": 1, "verbosity": 0}
    leaf = xgboost.train(params, data, 1).predict(data, output_margin=True)[0, 1]
    return "abs" if leaf < -0.9 else "upper"


def _metric(loss: Any, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None) -> Any:
    value = loss(*_objectives.in_order(y_true, y_pred, sample_weight))
    return (f"fastce_{loss.__name__}", value) if hasattr(y_pred, "get_label") else value


def softmax_loss(y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None) -> Any:
    """Mean cross-entropy of margins: ``xgboost.train(custom_metric=...)``, ``XGBClassifier``.

    With objectives of this module, where metrics get margins; with XGBoost's own they may get probabilities.
    """
    return _metric(_objectives.softmax_loss, y_true, y_pred, sample_weight)


def logistic_loss(y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None) -> Any:
    """Mean binary cross-entropy of the margins; else as `softmax_loss`."""
    return _metric(_objectives.logistic_loss, y_true, y_pred, sample_weight)
