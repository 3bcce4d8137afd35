"""scikit-learn's logistic regression, fitted by fastce."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import linear_model
from sklearn.base import _fit_context
from sklearn.utils.validation import check_is_fitted

import fastce
from fastce.sklearn._substituted import logistic_regression_cv_fit, logistic_regression_fit

__all__ = ["LogisticRegression", "LogisticRegressionCV"]


class _Probabilities:
    """Probabilities and their logarithms to the last digits, of all classes."""

    def predict_proba(self, X: Any) -> NDArray:
        """Probability of each class, in the order of ``classes_``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return fastce.softmax(self._logits(X), axis=1)

    def predict_log_proba(self, X: Any) -> NDArray:
        """Logarithm of each class's probability, also where that is too small for a number.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return fastce.log_softmax(self._logits(X), axis=1)

    def _logits(self, X: Any) -> NDArray:
        check_is_fitted(self)
        logits = self.decision_function(X)
        if logits.ndim == 2:
            return logits
        return np.stack([np.zeros_like(logits), logits], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = False
        return tags


class LogisticRegression(_Probabilities, linear_model.LogisticRegression):
    """scikit-learn's class of this name, fitted by fastce.

    Parameters and attributes are those of ``sklearn.linear_model.LogisticRegression``, of which this is a
    subclass. The solvers ``lbfgs``, ``newton-cg`` and ``newton-cholesky`` are one here; others are its own.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastce.sklearn import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression().fit(X, y)
    >>> round(model.score(X, y), 2)
    0.97
    """

    fit = _fit_context(prefer_skip_nested_validation=True)(logistic_regression_fit)


class LogisticRegressionCV(_Probabilities, linear_model.LogisticRegressionCV):
    """scikit-learn's class of this name, fitted by fastce.

    Parameters and attributes are those of ``sklearn.linear_model.LogisticRegressionCV``, of which this is a
    subclass. The solvers ``lbfgs``, ``newton-cg`` and ``newton-cholesky`` are one here; others are its own.
    """

    fit = _fit_context(prefer_skip_nested_validation=True)(logistic_regression_cv_fit)
