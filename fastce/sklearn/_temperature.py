"""A fitted classifier whose probabilities can be believed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
    has_fit_parameter,
    indexable,
)

from fastce.calibration import fit_temperature
from fastce.sklearn._probabilities import Probabilities, as_floats, of_all_classes

__all__ = ["TemperatureScaling"]


def _has(method: str) -> Any:
    return lambda self: hasattr(getattr(self, "estimator_", self.estimator), method) or self.estimator is None


class TemperatureScaling(Probabilities, ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    r"""Divide a classifier's logits by the temperature that fits its probabilities to a calibration set.

    .. math::
        p(y \mid x) = \mathrm{softmax}(z(x) / T)_y

    Classes and their order of likelihood stay as they are.

    Parameters
    ----------
    estimator : classifier, optional
        A fitted one is used as it is, and the data given to `fit` are the calibration set: not those it was
        fitted on. One that is not fitted yet is cloned and fitted on the same data, which makes it look surer
        than it will be. Default: scikit-learn's ``LogisticRegression()``.
    logits : {'auto', 'decision_function', 'log_proba'}, default 'auto'
        Where logits come from: of `decision_function`, one column (class 0 has logit 0 then) or one for each
        class; or the logarithm of `predict_proba`, by `predict_log_proba` where there is one. ``'auto'``
        takes the first of these that the classifier has.

    Attributes
    ----------
    estimator_ : classifier
        The fitted one.
    temperature_ : float
        Above 1: the classifier was too sure of itself.
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
        Of the classifier, if it has that.

    See Also
    --------
    fastce.calibration.fit_temperature : of given logits.
    sklearn.calibration.CalibratedClassifierCV : with ``method="temperature"`` and cross-validation.

    Notes
    -----
    Where scikit-learn turns a single column x into the logits (-x, x), it is (0, x) here, as the classifier
    means it: the temperature is half scikit-learn's. Probabilities of 0 are logits of -inf and stay 0.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from fastce.calibration import calibration_error
    >>> from fastce.sklearn import LogisticRegression, TemperatureScaling
    >>> X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    >>> X, X_calibration, y, y_calibration = train_test_split(X, y, random_state=0)
    >>> model = LogisticRegression(C=100).fit(X, y)
    >>> calibrated = TemperatureScaling(model).fit(X_calibration, y_calibration)
    >>> bool(calibrated.temperature_ > 1)
    True
    >>> errors = [
    ...     calibration_error(m.predict_proba(X_test), y_test, from_logits=False) for m in (model, calibrated)
    ... ]
    >>> errors[1] < errors[0]
    True
    """

    def __init__(self, estimator: Any = None, *, logits: str = "auto") -> None:
        self.estimator = estimator
        self.logits = logits

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TemperatureScaling:
        """Fit the temperature, and the classifier if it is not fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            What the classifier takes.
        y : array-like of shape (n_samples,)
            Classes, all of which the classifier knows.
        sample_weight : array-like of shape (n_samples,), optional
            Also of the classifier's own fit, if that has this parameter; else there is a warning.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            `logits` is not one of the three; a class that the classifier does not know; a classifier whose
            logits are not of its classes; and what :func:`fastce.calibration.fit_temperature` refuses.
        """
        if self.logits not in ("auto", "decision_function", "log_proba"):
            raise ValueError(
                f"logits is {self.logits!r}; expected 'auto', 'decision_function' or 'log_proba'"
            )
        X, y = indexable(X, y)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        estimator = LogisticRegression() if self.estimator is None else self.estimator
        try:
            check_is_fitted(estimator)
        except NotFittedError:
            estimator = clone(estimator)
            given = {} if sample_weight is None else {"sample_weight": sample_weight}
            if given and not has_fit_parameter(estimator, "sample_weight"):
                warnings.warn(
                    f"{type(estimator).__name__}.fit has no parameter sample_weight: weights serve the "
                    "temperature alone, and its logits are those of unweighted rows",
                    stacklevel=2,
                )
                given = {}
            estimator.fit(X, y, **given)
        self.estimator_ = estimator
        self.classes_ = estimator.classes_
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        order = np.argsort(self.classes_)  # which a classifier may have in any
        label = order.take(np.searchsorted(self.classes_, y, sorter=order), mode="clip")
        known = self.classes_[label] == y
        if not known.all():
            raise ValueError(
                f"y[{int(known.argmin())}] is {y[known.argmin()]!r}; expected one of the classifier's "
                f"classes, {self.classes_}"
            )
        z = self._own_logits(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, z)
        impossible = np.isneginf(np.take_along_axis(z, label[:, None], axis=1)[:, 0])
        if sample_weight is not None:
            impossible &= sample_weight != 0
        if impossible.any():
            i = int(impossible.argmax())
            raise ValueError(
                f"the classifier gives y[{i}], {y[i]!r}, a probability of 0, which no temperature changes; "
                "expected one that excludes no class: of trees with larger leaves, of more neighbours, say"
            )
        self.temperature_ = fit_temperature(z, label, sample_weight=sample_weight)
        return self

    def _logits(self, X: Any) -> NDArray:
        check_is_fitted(self)
        z = self._own_logits(X)
        return z / z.dtype.type(self.temperature_)

    def _own_logits(self, X: Any) -> NDArray:
        """The classifier's, of all classes."""
        estimator, source = self.estimator_, self.logits
        if source == "auto":
            source = "decision_function" if hasattr(estimator, "decision_function") else "log_proba"
        with np.errstate(divide="ignore"):  # logarithms of 0
            if source == "decision_function":
                z = of_all_classes(estimator.decision_function(X))
            elif hasattr(estimator, "predict_log_proba"):
                z = as_floats(estimator.predict_log_proba(X))
            else:
                z = np.log(as_floats(estimator.predict_proba(X)))
        last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        n_classes, shape = len(self.classes_), getattr(last, "decision_function_shape", None)
        of_pairs = shape == "ovo" and source == "decision_function" and n_classes > 2  # 3 have 3 pairs
        if z.ndim != 2 or z.shape[1] != n_classes or of_pairs:
            raise ValueError(
                f"the classifier's logits{' of pairs of classes' if of_pairs else ''} have shape {z.shape}; "
                f"expected a column for each of its {n_classes} classes: of a support vector classifier, "
                "decision_function_shape='ovr'"
            )
        return z

    def predict(self, X: Any) -> NDArray:
        """What the classifier predicts.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        return self.estimator_.predict(X)

    @available_if(_has("decision_function"))
    def decision_function(self, X: Any) -> NDArray:
        """The classifier's own, divided by the temperature.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self.estimator_.decision_function(X) / self.temperature_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = get_tags(
            LogisticRegression() if self.estimator is None else self.estimator
        ).input_tags.sparse
        return tags
