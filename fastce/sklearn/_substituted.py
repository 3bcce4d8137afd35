"""scikit-learn's own `fit`, with another minimiser.

Parameters, checks, encodings, warnings, callbacks and attributes are those of the installed version because
they are its code: its functions run here with a few names in their module replaced by ours, those of the
minimisers. What scikit-learn has in its module is not touched.
"""

from __future__ import annotations

import warnings
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import _logistic as theirs

from fastce.sklearn._solver import Limits, Solution, minimize

__all__ = ["logistic_regression_cv_fit", "logistic_regression_fit"]


# Of Newton's solvers: scikit-learn's own last step leads far below `tol`.
THOROUGH = {"beyond": 100, "gain": 1e-9}


def _solved(w0: NDArray, linear_loss: Any, args: tuple, limits: Limits) -> Solution:
    """The minimum of scikit-learn's linear loss; coefficients in its order, classes first, for the caller
    and back."""
    X, y, sample_weight, l2 = args[:4]
    callback = limits.callback
    n_classes = max(2, linear_loss.base_loss.n_classes)
    n_rows = 1 if n_classes == 2 and w0.size == X.shape[1] + linear_loss.fit_intercept else n_classes

    def as_theirs(w: NDArray) -> NDArray:
        w = w.reshape(n_rows, -1)
        if n_rows > 1:  # all logits may rise together: of equal solutions the one that sums to 0 over classes
            w = w - w.mean(axis=0)
        return w.ravel(order="F").astype(w0.dtype)

    solution = minimize(
        X,
        np.asarray(y).astype(np.intp),
        n_classes,
        w0.reshape(n_rows, -1, order="F"),
        sample_weight=sample_weight,
        fit_intercept=linear_loss.fit_intercept,
        l2=l2,
        limits=limits._replace(callback=callback and (lambda w: callback(as_theirs(w)))),
    )
    return solution._replace(coef=as_theirs(solution.coef))


def _scipy_minimize(
    fun: Any, x0: NDArray, *, method: str, jac: bool, args: tuple, options: dict, callback: Any = None
) -> optimize.OptimizeResult:
    """In place of ``scipy.optimize.minimize``, with what L-BFGS-B says."""
    max_iter = options["maxiter"]
    coef, loss, n_iter, converged = _solved(
        x0, fun.__self__, args, Limits(options["gtol"], max_iter, callback)
    )
    if callback and not max_iter:  # SciPy looks at the limit after its first iteration
        callback(coef)
    if options.get("iprint", -1) >= 1:
        print(f"fastce: {n_iter} iterations, loss {loss:.10g}")
    status = 0 if converged else 1 if n_iter == max_iter else 2
    message = ("CONVERGENCE", "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT", "ABNORMAL: ")[status]
    return optimize.OptimizeResult(
        x=coef, fun=loss, nit=n_iter, status=status, success=converged, message=message
    )


def _newton_cg(
    grad_hess: Any,
    func: Any,
    grad: Any,
    x0: NDArray,
    args: tuple,
    tol: float,
    maxiter: int,
    verbose: int = 0,
    **_: Any,
) -> tuple[NDArray, int]:
    coef, loss, n_iter, converged = _solved(x0, func.__self__, args, Limits(tol, maxiter, **THOROUGH))
    if verbose:
        print(f"fastce: {n_iter} iterations, loss {loss:.10g}")
    if not converged:
        warnings.warn(
            f"newton-cg failed to converge at loss = {loss}. Increase the number of iterations.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return coef, n_iter


class _NewtonCholeskySolver:
    def __init__(
        self,
        *,
        coef: NDArray,
        linear_loss: Any,
        l2_reg_strength: float,
        tol: float,
        max_iter: int,
        verbose: int,
        **_: Any,
    ) -> None:
        self.arguments = coef, linear_loss, l2_reg_strength, tol, max_iter
        self.verbose, self.iteration = verbose, 0

    def solve(self, X: Any, y: NDArray, sample_weight: NDArray | None) -> NDArray:
        coef, linear_loss, l2, tol, max_iter = self.arguments
        # At a singular Hessian scikit-learn's takes a step to find that out, and its lbfgs the others.
        n_columns = X.shape[1] + linear_loss.fit_intercept
        singular = X.shape[0] < n_columns and l2 < np.finfo(X.dtype).eps
        max_iter -= singular
        limits = Limits(tol, max_iter) if singular else Limits(tol, max_iter, **THOROUGH)
        coef, loss, self.iteration, converged = _solved(coef, linear_loss, (X, y, sample_weight, l2), limits)
        if self.verbose:
            print(f"fastce: {self.iteration} iterations, loss {loss:.10g}")
        if not converged or (singular and self.iteration == max_iter):  # nothing there ends at a minimum
            name = "lbfgs failed to" if singular else "Newton solver did not"
            warnings.warn(
                f"{name} converge after {self.iteration} iterations.", ConvergenceWarning, stacklevel=2
            )
        return coef


class _Encoder:
    """Of labels that `fit` has found the classes of: nothing is left to check."""

    def fit(self, classes: NDArray) -> _Encoder:
        self.transform = np.asarray(classes).searchsorted
        return self


def _with(function: Any, name: str, **names: Any) -> Any:
    """The function, looking up names of its module here first; importable from here under `name`."""
    copy = FunctionType(
        function.__code__,
        vars(theirs) | names,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__, copy.__doc__ = function.__kwdefaults__, function.__doc__
    copy.__module__, copy.__qualname__ = __name__, name
    return copy


logistic_regression_path = _with(
    theirs._logistic_regression_path,
    "logistic_regression_path",
    optimize=SimpleNamespace(minimize=_scipy_minimize),
    _newton_cg=_newton_cg,
    NewtonCholeskySolver=_NewtonCholeskySolver,
    LabelEncoder=_Encoder,
)
log_reg_scoring_path = _with(
    theirs._log_reg_scoring_path, "log_reg_scoring_path", _logistic_regression_path=logistic_regression_path
)
logistic_regression_fit = _with(
    theirs.LogisticRegression.fit.__wrapped__,
    "logistic_regression_fit",
    _logistic_regression_path=logistic_regression_path,
)
logistic_regression_cv_fit = _with(
    theirs.LogisticRegressionCV.fit.__wrapped__,
    "logistic_regression_cv_fit",
    _logistic_regression_path=logistic_regression_path,
    _log_reg_scoring_path=log_reg_scoring_path,
)
