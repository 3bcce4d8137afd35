"""scikit-learn's logistic regression, fitted by fastce."""

from __future__ import annotations

from sklearn import linear_model
from sklearn.base import _fit_context

from fastce.sklearn._probabilities import Probabilities
from fastce.sklearn._substituted import logistic_regression_cv_fit, logistic_regression_fit

__all__ = ["LogisticRegression", "LogisticRegressionCV"]


class LogisticRegression(Probabilities, linear_model.LogisticRegression):
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


class LogisticRegressionCV(Probabilities, linear_model.LogisticRegressionCV):
    """scikit-learn's class of this name, fitted by fastce.

    Parameters and attributes are those of ``sklearn.linear_model.LogisticRegressionCV``, of which this is a
    subclass. The solvers ``lbfgs``, ``newton-cg`` and ``newton-cholesky`` are one here; others are its own.
    """

    fit = _fit_context(prefer_skip_nested_validation=True)(logistic_regression_cv_fit)
