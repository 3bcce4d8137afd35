"""Metrics under scikit-learn's names: it validates and encodes, fastce computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce._kernels.entry import advice, arrays

__all__ = ["log_loss"]


def log_loss(
    y_true: ArrayLike,
    y_proba: ArrayLike | None = None,
    *,
    normalize: bool = True,
    sample_weight: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    eps: float | str = "auto",
    y_pred: ArrayLike | None = None,
) -> float:
    r"""Log loss of predicted probabilities: ``sklearn.metrics.log_loss`` with float64 sums and all digits.

    .. math::
        \ell_i = -\log p_{i, y_i}

    and their mean, or their sum. scikit-learn, an optional dependency imported at the first call, checks the
    arguments and encodes the labels, so what it accepts, its errors and its warnings are those of the
    installed version.

    Parameters
    ----------
    y_true : array_like of n labels
        Numbers or strings; or an indicator matrix of n rows.
    y_proba : array_like of float
        Of shape (n, C), columns in sorted order of the labels; or (n,) or (n, 1), the probabilities of
        the greater of two labels.
    normalize : bool, default True
        The mean over the rows; False: the sum.
    sample_weight : array_like, optional
        Weight of each row. The mean divides by their sum.
    labels : array_like, optional
        All the labels, where `y_true` may lack some.
    eps : float or 'auto', default 'auto'
        Probabilities are clipped to ``[eps, 1 - eps]``; ``'auto'`` is the machine epsilon of their dtype.
        0 does not clip: a probability of 0 then is a loss of +inf.
    y_pred : array_like, optional
        What `y_proba` was called before scikit-learn 1.9. Which of the two names are right, deprecated or
        wrong is up to the installed version.

    Returns
    -------
    float

    Raises
    ------
    ImportError
        scikit-learn is not installed.
    TypeError, ValueError
        Those of scikit-learn; and for an `eps` that is not ``'auto'`` or a number in [0, 0.5].

    See Also
    --------
    fastce.cross_entropy : from logits, which keep the digits that probabilities near 1 have lost.

    Notes
    -----
    What differs from scikit-learn: only the labels' probabilities are read, and float32 and float16 are
    computed in float64. From a single column, the other label's loss is ``-log1p(-p)``, where scikit-learn
    rounds ``1 - p`` first. `eps` still exists, without a warning. As in scikit-learn 1.5 and later, rows are
    not renormalised.

    Examples
    --------
    >>> import fastce
    >>> y_true = ["ham", "spam", "spam", "ham"]
    >>> round(fastce.log_loss(y_true, [[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.6, 0.4]]), 6)
    0.236173
    >>> round(fastce.log_loss(y_true, [0.1, 0.8, 0.9, 0.4], normalize=False), 6)
    0.94469
    """
    eps = _checked(eps)
    given = {"y_true": y_true, "y_proba": y_proba, "y_pred": y_pred, "sample_weight": sample_weight}
    for name, a in given.items():
        arrays.refuse_masked(a, name, 2)
    p, indicators = _validated(y_true, y_proba, y_pred, normalize, sample_weight, labels)
    loss = _row_losses(p, indicators, float(np.finfo(p.dtype).eps) if eps is None else eps)
    if normalize:
        return float(np.average(loss, weights=sample_weight))
    return float(np.sum(loss if sample_weight is None else loss * np.asarray(sample_weight, np.float64)))


def _checked(eps: Any) -> float | None:
    if isinstance(eps, str) and eps == "auto":
        return None
    if isinstance(eps, str | bytes) or not np.isscalar(eps) or not np.isrealobj(eps):
        raise TypeError(f"eps is {advice.shown(eps)}; expected 'auto' or a number in [0, 0.5]")
    if not 0 <= eps <= 0.5:
        raise ValueError(f"eps is {advice.shown(eps)}; expected 'auto' or a number in [0, 0.5]")
    return float(eps)


def _validated(
    y_true: Any, y_proba: Any, y_pred: Any, normalize: Any, sample_weight: Any, labels: Any
) -> tuple[NDArray, NDArray]:
    """The probabilities as an array of 1 or 2 dimensions, and the (n, C) matrix of 0 and 1 of the labels."""
    try:
        from sklearn import preprocessing, utils
        from sklearn.metrics import _classification, get_scorer
    except ImportError as error:
        raise ImportError(
            "fastce.log_loss needs scikit-learn, which checks its arguments: pip install scikit-learn"
        ) from error
    # scikit-learn's, also where ours was put in its place: `sklearn.metrics.log_loss = fastce.log_loss`.
    original = _classification.log_loss
    if original is log_loss:
        original = get_scorer("neg_log_loss")._score_func
    options = {"normalize": normalize, "sample_weight": sample_weight, "labels": labels}
    floats = [np.float64, np.float32, np.float16]
    validators = _private_validators()
    if validators is None or y_pred is not None:
        # Its checks can't be had without its result, which is thrown away.
        given = (y_true,) if y_proba is None else (y_true, y_proba)
        renamed = {} if y_pred is None else {"y_pred": y_pred}
        original(*given, **renamed, **options)
        p = utils.check_array(y_proba if y_pred is None else y_pred, ensure_2d=False, dtype=floats)
        encoder = preprocessing.LabelBinarizer().fit(y_true if labels is None else labels)
        indicators = encoder.transform(y_true)
        if indicators.shape[1] == 1:
            indicators = np.hstack([1 - indicators, indicators])
        return p, indicators

    check_parameters, check_probabilities = validators
    constraints = original._skl_parameter_constraints
    name = "y_proba" if "y_proba" in constraints else "y_pred"
    check_parameters(constraints, {"y_true": y_true, name: y_proba, **options}, caller_name="log_loss")
    p = utils.check_array(y_proba, ensure_2d=False, dtype=floats)
    return p, check_probabilities(y_true, p, sample_weight, labels)[0]


def _private_validators() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """What scikit-learn's log_loss calls first; None before 1.7, which has no such functions."""
    try:
        from sklearn.metrics._classification import _validate_multiclass_probabilistic_prediction
        from sklearn.utils._param_validation import validate_parameter_constraints
    except ImportError:
        return None
    return validate_parameter_constraints, _validate_multiclass_probabilistic_prediction


def _row_losses(p: NDArray, indicators: NDArray, eps: float) -> NDArray:
    row, label = np.nonzero(indicators != 0)  # bools are found faster
    single = p.ndim == 1 or p.shape[1] == 1
    p = np.clip((p.reshape(-1)[row] if single else p[row, label]).astype(np.float64), eps, 1 - eps)
    with np.errstate(divide="ignore"):
        loss = -np.where(label == 0, np.log1p(-p), np.log(p)) if single else -np.log(p)
    return np.bincount(row, weights=loss, minlength=len(indicators))
