"""scikit-learn's logistic regression, fitted on dask arrays."""

from __future__ import annotations

import warnings
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_feature_names, _get_feature_names, check_is_fitted

from fastce.dask._objective import ChunkedObjective, Chunks, Terms
from fastce.dask.losses import as_rows, is_frame
from fastce.sklearn import LogisticRegression as _LogisticRegression
from fastce.sklearn._preconditioners import (
    EXACT_LATE,
    PATIENCE,
    ROWS_PER_COLUMN,
    SAMPLE_BYTES,
    WHOLE,
    Problem,
    of_hessian,
)
from fastce.sklearn._solver import PER_COEFFICIENT, SAMPLED, Limits, descend, given, limited_blas

__all__ = ["LogisticRegression"]

SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky")


class LogisticRegression(_LogisticRegression):
    """scikit-learn's class of this name, fitted on dask arrays where their chunks lie.

    Parameters and attributes are those of ``sklearn.linear_model.LogisticRegression``. The solvers ``lbfgs``,
    ``newton-cg`` and ``newton-cholesky`` are one here; others, and penalties other than the squared norm, are
    refused.

    Notes
    -----
    Each step is a task for each chunk of rows, which takes the coefficients and gives a loss and a gradient,
    and a tree of their sums. Chunks that are persisted stay where they are; others are made again at each
    step, and workers hold few of them at a time. Coefficients are those of
    `fastce.sklearn.LogisticRegression` within `tol`; their bits depend on the chunks, not on where these lie.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_iris
    >>> from fastce.dask import LogisticRegression
    >>> X, y = (da.from_array(a, chunks=40) for a in load_iris(return_X_y=True))
    >>> model = LogisticRegression().fit(X, y)
    >>> model.predict_proba(X)
    dask.array<_predict_proba, shape=(150, 3), dtype=float64, chunksize=(40, 3), chunktype=numpy.ndarray>
    >>> round(model.score(X, y), 2)
    0.97
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticRegression:
        """Fit the coefficients.

        Parameters
        ----------
        X : dask array or data frame (n_samples, n_features)
            Of NumPy arrays or SciPy sparse matrices in rows; columns that are split into chunks are joined. A
            data frame's partitions are chunks of rows of unknown number, and so are those of its columns.
        y : dask or NumPy array, or a column of a dask data frame, (n_samples,)
            Classes, of any dtype.
        sample_weight : dask or NumPy array, or a column of a dask data frame, (n_samples,), optional

        Returns
        -------
        self

        Raises
        ------
        TypeError
            `X` is no dask array or data frame, or one whose columns have names that are not all text.
        ValueError
            A solver or penalty that is not to be had; fewer than two classes; features that are not finite.
        """
        self._validate_params()
        C = self._checked_C()
        columns = X._meta if is_frame(X) else None
        _get_feature_names(columns)
        X = _as_array(X)
        if not isinstance(X, da.Array):
            raise TypeError(
                f"X is a {type(X).__name__}; expected a dask array or data frame: "
                "fastce.sklearn.LogisticRegression fits others"
            )
        X = _whole_rows(X)
        y = as_rows(y, X.chunks[:1], "y")
        if sample_weight is not None:
            sample_weight = as_rows(sample_weight, X.chunks[:1], "sample_weight")
        chunks = Chunks(X, y, sample_weight)

        labels, counts, n_rows = map(list, zip(*chunks.counts(), strict=True))
        self.classes_, index = np.unique(np.concatenate(labels), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has the classes {self.classes_.tolist()}; expected at least 2")
        counts = np.bincount(index, np.concatenate(counts), len(self.classes_))
        with np.errstate(divide="ignore"):
            class_weight = compute_class_weight(
                self.class_weight, classes=self.classes_, y=self.classes_, sample_weight=counts
            )
        class_weight[counts == 0] = 0  # "balanced" has infinity for a class whose rows weigh nothing
        if not (counts * class_weight).any():
            raise ValueError("weights of all rows are 0; expected at least one that is not")
        terms = Terms(self.classes_, class_weight, float(counts @ class_weight), self.fit_intercept)
        self._solve(chunks, terms, sum(n_rows), X.shape[1], C)
        _check_feature_names(self, columns, reset=True)
        return self

    def _solve(self, chunks: Chunks, terms: Terms, n_rows: int, n_features: int, C: float) -> None:
        n_classes, l2 = len(terms.classes), 1.0 / (C * terms.weight_sum)
        shape = (1 if n_classes == 2 else n_classes, n_features + self.fit_intercept)
        wanted = max(n_rows // SAMPLED, ROWS_PER_COLUMN * shape[1])
        part = _joined(chunks.samples(min(1.0, wanted / max(n_rows, 1)), SAMPLE_BYTES), terms, l2)
        dtype = part.objective.dtype
        coef = np.zeros(shape)
        if self.warm_start and hasattr(self, "coef_"):
            coef = np.column_stack([self.coef_, self.intercept_] if self.fit_intercept else [self.coef_])
        starts = [coef]
        f = ChunkedObjective(chunks, terms, l2, shape, dtype)
        limits = Limits(self.tol, self.max_iter)
        with limited_blas(part.X, coef.size):
            if part.X.shape[0] >= PER_COEFFICIENT * coef.size:  # the first steps see the sample alone
                found = descend(part.objective, [coef], part.best, limits).coef
                starts = [*given(coef), found]
            preconditioner, patience = part.best, PATIENCE
            if coef.size <= WHOLE and part.X.shape[0] * coef.size**2 <= EXACT_LATE:
                preconditioner, patience = lambda w, _: of_hessian(part.objective, w), 4
            options = preconditioner, limits, patience
            solution = descend(f, starts, *options)
            if not solution.converged and solution.n_iter < self.max_iter:  # the sample has led astray
                solution = descend(f, [coef], *options)
            coef, loss, n_iter, converged = solution
        if self.verbose:
            print(f"fastce: {n_iter} iterations, loss {loss:.10g}")
        if not converged:
            warnings.warn(
                f"{self.solver} failed to converge after {n_iter} iterations: "
                "increase max_iter, or scale the data",
                ConvergenceWarning,
                stacklevel=3,
            )
        coef = coef.reshape(shape)
        if n_classes > 2:  # all logits may rise together: the one of equal solutions whose sum over them is 0
            coef = coef - coef.mean(axis=0)
        coef = coef.astype(dtype)
        self.n_features_in_, self.n_iter_ = n_features, np.array([n_iter], np.int32)
        self.coef_ = coef[:, :n_features]
        self.intercept_ = coef[:, -1] if self.fit_intercept else np.zeros(len(coef), dtype)

    def _checked_C(self) -> float:
        """scikit-learn's `C`, of a penalty that is to be had."""
        if self.solver not in SOLVERS:
            raise ValueError(
                f"solver is {self.solver!r}; on dask arrays expected one of {', '.join(SOLVERS)}"
            )
        if self.penalty in ("l1", "elasticnet") or self.l1_ratio not in (0, None) or self.dual:
            raise ValueError(
                f"penalty is {self.penalty!r}, l1_ratio {self.l1_ratio!r} and dual {self.dual!r}; expected "
                "l1_ratio=0 and dual=False on dask arrays"
            )
        return np.inf if self.penalty is None else float(self.C)

    def decision_function(self, X: Any) -> Any:
        """Logits, as scikit-learn has them; lazily of a dask array."""
        n_classes = () if len(self._classes()) == 2 else (len(self._classes()),)
        return self._mapped("decision_function", X, n_classes)

    def predict(self, X: Any) -> Any:
        """The most probable class of each row; lazily of a dask array."""
        return self._mapped("predict", X, (), self._classes().dtype)

    def predict_proba(self, X: Any) -> Any:
        """Probability of each class, in the order of ``classes_``; lazily of a dask array."""
        return self._mapped("predict_proba", X, (len(self._classes()),))

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithm of each class's probability; lazily of a dask array."""
        return self._mapped("predict_log_proba", X, (len(self._classes()),))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of rows whose class is predicted."""
        if not (isinstance(X, da.Array) or is_frame(X)):
            return super().score(X, y, sample_weight)
        predicted = self.predict(X)
        right = predicted == as_rows(y, predicted.chunks, "y")
        if sample_weight is None:
            return float(right.mean().compute())
        weight = as_rows(sample_weight, predicted.chunks, "sample_weight")
        return float(((right * weight).sum() / weight.sum()).compute())

    def _classes(self) -> NDArray:
        check_is_fitted(self)
        return self.classes_

    def _mapped(self, method: str, X: Any, last: tuple[int, ...], dtype: Any = None) -> Any:
        if not (isinstance(X, da.Array) or is_frame(X)):
            return getattr(super(), method)(X)
        _check_feature_names(self, X._meta, reset=False)  # once, and not in each task
        fitted = _LogisticRegression(**self.get_params())
        attributes = vars(self).items()
        fitted.__dict__.update({k: v for k, v in attributes if k.endswith("_") and k != "feature_names_in_"})
        X = _whole_rows(_as_array(X))
        dtype = np.result_type(self.coef_.dtype, X.dtype) if dtype is None else dtype
        return da.map_blocks(
            _call,
            X,
            fitted,
            method,
            name=None,
            token=f"_{method}",
            dtype=dtype,
            chunks=(X.chunks[0], *((n,) for n in last)),
            drop_axis=() if last else 1,
            meta=np.empty((0,) * (1 + len(last)), dtype),
        )


def _call(block: Any, model: Any, method: str) -> NDArray:
    return getattr(model, method)(block)


def _as_array(X: Any) -> Any:
    """Numbers: columns of numbers and truth values together are objects to pandas."""
    if not is_frame(X):
        return X
    X = X.to_dask_array()
    return X.astype(np.float64) if X.dtype == object else X


def _whole_rows(X: Any) -> Any:
    if X.ndim != 2:
        raise ValueError(f"X has shape {X.shape}; expected (n_samples, n_features)")
    return X if X.numblocks[1] == 1 else X.rechunk({1: -1})


def _joined(samples: list[tuple], terms: Terms, l2: float) -> Problem:
    """The rows that chunks gave, as the solver has samples."""
    features, labels, weights = zip(*samples, strict=True)
    X = sparse.vstack(features, format="csr") if sparse.issparse(features[0]) else np.concatenate(features)
    weight = None if weights[0] is None else np.concatenate(weights)
    target, weight = terms.of(np.concatenate(labels), weight)
    weight = weight if weight.any() else np.ones_like(weight)
    return Problem(X, target, len(terms.classes), weight, terms.fit_intercept, l2)
