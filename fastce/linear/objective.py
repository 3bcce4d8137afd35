"""The objective of a linear classifier as solvers see it, a function of its coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernels
from fastce._kernels.entry import arrays, options
from fastce.linear import arguments, blocks, sparse
from fastce.linear.arguments import MEMORY, as_csr

__all__ = ["Objective", "Point", "objective"]


def objective(
    X: Any,
    target: ArrayLike,
    n_classes: int,
    *,
    sample_weight: ArrayLike | None = None,
    fit_intercept: bool = True,
    l2: float = 0.0,
    binary: bool | None = None,
    normalizer: float | None = None,
    n_threads: int | None = None,
) -> Objective:
    r"""The objective of a linear classifier, a function of its coefficients.

    .. math::
        f(W) = \frac{1}{n} \sum_i s_i \ell_i(W) + \frac{\lambda}{2} \lVert W \rVert^2

    with the cross-entropy :math:`\ell_i` of row i, its weight :math:`s_i` and :math:`n = \sum_i s_i`. The
    penalty leaves the intercept out.

    Parameters
    ----------
    X : array_like or SciPy sparse array
        Features of shape (N, D), as the `input` of :func:`fastce.linear_cross_entropy`. A dense array is
        used where it is.
    target : array_like
        Classes of shape (N,), integers in [0, `n_classes`).
    n_classes : int
    sample_weight : array_like, optional
        Weights of the rows, of shape (N,).
    fit_intercept : bool, default True
        Whether coefficients have an intercept, in a last column.
    l2 : float, default 0
        :math:`\lambda`.
    binary : bool, optional
        One row of coefficients: the logit of class 1 against 0. By default where there are two classes.
    normalizer : float, optional
        In place of n. Objectives of parts of the rows with one normalizer add up to that of all.
    n_threads : int, optional
        At most that many threads.

    Returns
    -------
    Objective

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.optimize import minimize
    >>> from fastce.linear import objective
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> f = objective(X, [0, 1, 0, 1], 2, l2=0.1)
    >>> solution = minimize(f.loss_and_grad, np.zeros(f.size), jac=True, method="L-BFGS-B")
    >>> solution.x.round(2)
    array([ 0.64, -0.96])
    """
    return Objective(X, target, n_classes, sample_weight, fit_intercept, l2, binary, normalizer, n_threads)


class Objective:
    """Loss, gradient and Hessian products as functions of coefficients; `objective` makes one.

    `coef` and `V` have the shape `shape`, or are its C-order ravel, in any dtype and layout. Results have
    their form and are float64. Results do not depend on the number of threads. Calls at the same time need
    an objective each.

    Attributes
    ----------
    shape : tuple of int
        Of coefficients: classes, or 1, by features and, if there is one, the intercept.
    size : int
        Their number.
    dtype : dtype
        What is computed in, float32 or float64.
    weight_sum : float
        The sum of the sample weights.
    l2, normalizer : float
        As in `objective`; both can be set.
    """

    def __init__(
        self,
        X: Any,
        target: ArrayLike,
        n_classes: int,
        sample_weight: ArrayLike | None,
        fit_intercept: bool,
        l2: float,
        binary: bool | None,
        normalizer: float | None,
        n_threads: int | None,
    ) -> None:
        self._is_sparse = hasattr(X, "tocsr")
        self._X = as_csr(X, "X") if self._is_sparse else arrays.float_array(X, "X")
        if self._X.ndim != 2:
            raise ValueError(f"X has shape {self._X.shape}; expected (N, D)")
        n_rows, self.n_features = self._X.shape
        n_classes = options.checked_index(n_classes, "n_classes", "an int")
        self.dtype = np.dtype(np.float64 if arguments.is_wide(self._X) else np.float32)
        self.binary = n_classes == 2 if binary is None else bool(binary)
        if self.binary and n_classes != 2:
            raise ValueError(f"binary is True with {n_classes} classes; expected 2")
        self.n_classes, self.fit_intercept, self.l2 = n_classes, bool(fit_intercept), l2
        self.shape = (1 if self.binary else n_classes, self.n_features + self.fit_intercept)
        self.size = self.shape[0] * self.shape[1]
        self._features = self._X
        if self._is_sparse and sparse.has_room(self._X, self.shape[0], self.dtype, MEMORY):
            self._features = sparse.Products(self._X, n_classes, self.dtype, self.binary)
        self._rows = _kernels.kernels.LinearRows(
            (n_rows, n_classes),
            self.dtype,
            target,
            None,
            sample_weight,
            None,
            0.0,
            0.0,
            1.0,
            None,
            "mean",
            None,
            n_threads,
        )
        self._rows.check()
        self._sample_weight = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        self.weight_sum = self.normalizer = self._rows.denominator
        if normalizer is not None:
            self.normalizer = normalizer

    @property
    def _is_small(self) -> bool:
        return not self._is_sparse and arguments.is_small(self.shape[0], self.n_features, MEMORY)

    def _split(self, coef: ArrayLike) -> tuple[NDArray, NDArray | None]:
        """Coefficients of the features, and the intercepts."""
        whole = arrays.float_array(coef, "coef")
        if whole.shape not in (self.shape, (self.size,)):
            raise ValueError(f"coef has shape {whole.shape}; expected {self.shape} or ({self.size},)")
        whole = whole.reshape(self.shape)
        if whole.dtype not in (np.float32, np.float64):
            whole = whole.astype(np.float64)
        return whole[:, : self.n_features], whole[:, -1] if self.fit_intercept else None

    def _penalty(self, w: NDArray) -> float:
        return 0.5 * self.l2 * float(np.square(w, dtype=np.float64).sum()) if self.l2 else 0.0

    def _sums(self, coef: ArrayLike, with_grad: bool) -> tuple[float, NDArray]:
        w, bias = self._split(coef)
        grad = np.empty(self.shape if with_grad else (0, 0))
        of_w, of_bias = (
            (grad[:, : self.n_features], None if bias is None else grad[:, -1]) if with_grad else (None, None)
        )
        self._rows.divide_by(self.normalizer)
        if self._is_small:
            self._rows.of_dense(self._X, w, bias, None, of_w, of_bias, False, self.binary, MEMORY)
        else:
            w = np.ascontiguousarray(w, self.dtype)
            grads = (None, of_w, of_bias)
            blocks.run(self._rows, self._features, w, bias, grads, False, self.dtype, MEMORY, self.binary)
        if with_grad and self.l2:
            of_w += self.l2 * w
        return self._rows.result() + self._penalty(w), grad

    def loss(self, coef: ArrayLike) -> float:
        """The objective at `coef`."""
        return self._sums(coef, False)[0]

    def loss_and_grad(self, coef: ArrayLike) -> tuple[float, NDArray]:
        """The objective at `coef` and its gradient."""
        loss, grad = self._sums(coef, True)
        return loss, grad.reshape(np.shape(coef))

    def hessian_product(self, coef: ArrayLike, V: ArrayLike) -> NDArray:
        """The Hessian at `coef` times `V`."""
        (w, bias), (v, v_bias) = self._split(coef), self._split(V)
        product = np.empty(self.shape)
        of_w, of_bias = product[:, : self.n_features], None if bias is None else product[:, -1]
        self._rows.divide_by(self.normalizer)
        if self._is_small:
            self._rows.hessian_product(self._X, w, bias, v, v_bias, of_w, of_bias, self.binary, MEMORY)
        else:
            at, out = ((w, bias), (v, v_bias)), (of_w, of_bias)
            blocks.hessian_product(self._rows, self._features, *at, *out, self.dtype, MEMORY, self.binary)
        if self.l2:
            of_w += self.l2 * v
        return product.reshape(np.shape(V))

    def at(self, coef: ArrayLike) -> Point:
        """The objective near `coef`."""
        return Point(self, coef)

    def logits(self, coef: ArrayLike) -> NDArray:
        """The logits of all rows, (N, 1) or (N, C)."""
        return blocks.product(self._X, *self._split(coef), self.dtype)

    def _probabilities(self, w: NDArray, bias: NDArray | None, width: int = 1) -> Any:
        """Blocks of rows: their features, probabilities, and weights by the normalizer."""
        n_entries = 2 * self._X.nnz // max(1, len(self._X.indptr) - 1) if self._is_sparse else self.n_features
        for x, s in self._blocks(4 * self.dtype.itemsize * max(self.n_classes, n_entries, width)):
            z = blocks.product(x, w, bias, self.dtype)
            if self.binary:
                z = np.concatenate([np.zeros_like(z), z], axis=1)
            _kernels.kernels.softmax(z, 1, z, None, False)
            yield x, z, s.astype(self.dtype)[:, None]

    def _extended(self, x: Any, dtype: Any = np.float64) -> NDArray:
        """Features of a block of rows, with a 1 for the intercept."""
        x = (x.toarray() if self._is_sparse else x).astype(dtype, copy=False)
        return np.concatenate([x, np.ones((len(x), 1), dtype)], axis=1) if self.fit_intercept else x

    def hessian(self, coef: ArrayLike) -> NDArray:
        """The whole Hessian, (size, size): classes by features on both sides, in C order."""
        return self._in_range(self._hessian, coef)

    def hessian_diagonal(self, coef: ArrayLike) -> NDArray:
        """The diagonal of the Hessian, in the form of `coef`."""
        return self._in_range(self._hessian_diagonal, coef)

    def _in_range(self, function: Any, coef: ArrayLike) -> NDArray:
        """In float64 where squares of features are beyond the range of float32."""
        with np.errstate(over="ignore", invalid="ignore"):
            result = function(coef, self.dtype)
            return result if np.isfinite(result).all() else function(coef, np.dtype(np.float64))

    def _hessian(self, coef: ArrayLike, dtype: Any) -> NDArray:
        n_rows, n_columns = self.shape
        whole = np.zeros((n_rows, n_columns, n_rows, n_columns))
        diagonal = np.zeros((n_rows, n_columns, n_columns))
        others = 1 - np.eye(self.n_classes, dtype=self.dtype)
        for x, p, s in self._probabilities(*self._split(coef), self.size):
            x = self._extended(x, dtype) * np.sqrt(np.abs(s))
            sign = np.sign(s) if s.min(initial=0) < 0 else None
            for k, h in enumerate((p * (p @ others)).T[:n_rows]):  # p (1 - p), whose 1 - p has all digits
                diagonal[k] += _squares(x * np.sqrt(h)[:, None], sign)
            if n_rows > 1:
                whole -= _squares((p[:, :, None] * x[:, None]).reshape(len(x), -1), sign).reshape(whole.shape)
        np.einsum("kikj->kij", whole)[...] = diagonal
        whole = whole.reshape(self.size, self.size)
        np.einsum("ii->i", whole)[...] += self.l2 * self._penalised().ravel()
        return whole

    def _hessian_diagonal(self, coef: ArrayLike, dtype: Any) -> NDArray:
        diagonal = self.l2 * self._penalised()
        for x, p, s in self._probabilities(*self._split(coef)):
            h = s * (p[:, :1] * p[:, 1:] if self.binary else p * (1 - p))
            squares = blocks.squared(x.astype(dtype, copy=False))
            diagonal[:, : self.n_features] += blocks.transposed_product(h.astype(dtype, copy=False), squares)
            if self.fit_intercept:
                diagonal[:, -1] += h.sum(axis=0, dtype=np.float64)
        return diagonal.reshape(np.shape(coef))

    def _penalised(self) -> NDArray:
        penalised = np.ones(self.shape)
        penalised[:, self.n_features :] = 0
        return penalised

    def gram(self) -> NDArray:
        """Sums of s x x' over the rows, x with a 1 appended where there is an intercept, by `normalizer`."""
        total = np.zeros((self.shape[1], self.shape[1]))
        for x, s in self._blocks(16 * self.n_features):
            x = self._extended(x)
            total += (x * s[:, None]).T @ x
        return total

    def moments(self) -> tuple[NDArray, NDArray]:
        """Sums of s x and s x² of each column, by `normalizer`."""
        first, second = np.zeros(self.n_features), np.zeros(self.n_features)
        for x, s in self._blocks(16 * self.n_features):
            weights = s.astype(self.dtype)[:, None]
            first += blocks.transposed_product(weights, x)[0]
            second += blocks.transposed_product(weights, blocks.squared(x))[0]
        return first, second

    def _blocks(self, row_bytes: int) -> Any:
        """Rows that take MEMORY bytes at a time: their features, and weights by the normalizer."""
        n_block = max(1, MEMORY // max(16, row_bytes))
        for i in range(0, self._X.shape[0], n_block):
            x = self._X[i : i + n_block]
            s = np.ones(x.shape[0]) if self._sample_weight is None else self._sample_weight[i : i + n_block]
            yield x, s / self.normalizer


def _squares(a: NDArray, sign: NDArray | None) -> NDArray:
    """a'a, of which BLAS computes one half, each row with its sign."""
    return a.T @ (a if sign is None else a * sign)


class Point:
    """An objective near one `coef`.

    Attributes
    ----------
    loss : float
    grad : ndarray
        Both there.
    """

    def __init__(self, f: Objective, coef: ArrayLike) -> None:
        self.objective, self.coef = f, np.array(coef)
        self.loss, self.grad = f.loss_and_grad(self.coef)

    def hessian_product(self, V: ArrayLike) -> NDArray:
        """The Hessian there times `V`."""
        return self.objective.hessian_product(self.coef, V)
