"""Probabilities of a classifier that has logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

import fastce

__all__ = ["Probabilities", "as_floats", "of_all_classes"]


def as_floats(logits: Any) -> NDArray:
    """Logits in a precision that the kernels have: integers and long doubles in float64."""
    logits = np.asarray(logits)
    known = logits.dtype.kind == "f" and logits.dtype.itemsize <= 8
    return logits if known else logits.astype(np.float64)


def of_all_classes(logits: NDArray) -> NDArray:
    """Logits (N, C) of such, or of a single column, that of class 1, where class 0 has 0."""
    logits = as_floats(logits)
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits
    column = logits.reshape(-1)
    both = np.stack([np.zeros_like(column), column], axis=1)
    both[column == np.inf] = -np.inf, 0  # a row with +inf has no probabilities
    return both


class Probabilities:
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
        return of_all_classes(self.decision_function(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = False
        return tags
