"""The twin of the special functions: logsumexp, softmax, log_softmax, as `scipy.special` has them.

With ``m = max x``, ``e_j = exp(x_j - m)`` and ``s = sum of e_j``::

    logsumexp     = m + log s        log s = log1p(sum of e_j without one maximum)
    softmax_j     = e_j / s
    log_softmax_j = (x_j - m) - log s

A maximum that is not finite is not subtracted, but for softmax.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import as_exact_float64, exp, log, log1p, wide

__all__ = ["log_softmax", "logsumexp", "softmax"]

Axis = int | tuple[int, ...] | None


@np.errstate(all="ignore")
def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
) -> Any:
    """Logarithm of ``sum(b * exp(a))``, in wide precision.

    Parameters
    ----------
    a : array_like
        Real numbers.
    axis : int or tuple of int, optional
        Axes of the sum; all by default.
    b : array_like, optional
        Factors of the exponentials, of any sign, broadcast against `a`. A term with a factor of 0 is
        left out, whatever `a` holds there.
    keepdims : bool, default False
        Keep the axes of the sum, with length 1.
    return_sign : bool, default False
        Return the logarithm of the sum's magnitude and its sign; else a negative sum gives NaN.

    Returns
    -------
    result : wide scalar or ndarray
    sign : wide scalar or ndarray
        Only with `return_sign`.
    """
    a, b = np.broadcast_arrays(as_exact_float64(a, "a"), as_exact_float64(1.0 if b is None else b, "b"))
    axes = _axes(a.ndim, axis)
    x, factor = _rows(a, axes, -np.inf), _rows(b, axes, 0.0)
    x, factor = np.where(factor == 0, -np.inf, x), wide(factor)
    shift = x.max(axis=1)
    finite = np.isfinite(shift)
    x = np.where(finite[:, None] | ~np.isfinite(x), x, 0)  # terms that are nothing beside an infinity
    shift = wide(np.where(finite, shift, 0))
    terms = np.where(factor == 0, 0 * factor, factor * exp(wide(x) - shift[:, None]))
    # The sum, and what it has above 1: exact in the maximum's term, however small the others are.
    total = terms.sum(axis=1)
    row, top = np.arange(len(x)), x.argmax(axis=1)
    terms[row, top] = terms[row, top] - 1
    above_one = terms.sum(axis=1)
    near_one = abs(above_one) < 0.5
    result = shift + np.where(near_one, log1p(np.where(near_one, above_one, 0 * shift)), log(abs(total)))
    sign = np.where(total > 0, 1 + 0 * shift, np.where(total < 0, -1 + 0 * shift, total))
    if not return_sign:
        result = np.where(sign < 0, wide(np.nan)[()], result)
    elif 0 in (a.shape[i] for i in axes):
        sign = np.sign(result)  # of a sum of nothing: as SciPy has it
    shape = tuple(1 if i in axes else n for i, n in enumerate(a.shape) if keepdims or i not in axes)
    result, sign = (wide(values).reshape(shape)[()] for values in (result, sign))
    return (result, sign) if return_sign else result


@np.errstate(all="ignore")
def softmax(x: ArrayLike, axis: Axis = None) -> Any:
    """Softmax over one or several axes, in wide precision.

    Parameters
    ----------
    x : array_like
        Real numbers.
    axis : int or tuple of int, optional
        Axes over which the results sum to 1; all by default.

    Returns
    -------
    p : wide ndarray of the shape of `x`
    """
    x = as_exact_float64(x, "x")
    axes = _axes(x.ndim, axis)
    rows = _rows(x, axes, -np.inf)
    e = exp(wide(rows) - wide(rows.max(axis=1, keepdims=True)))
    return _unrows(e / e.sum(axis=1, keepdims=True), x.shape, axes)


@np.errstate(all="ignore")
def log_softmax(x: ArrayLike, axis: Axis = None) -> Any:
    """Logarithm of the softmax, in wide precision; it keeps its digits near 0.

    Parameters
    ----------
    x, axis
        As in `softmax`.

    Returns
    -------
    log_p : wide ndarray of the shape of `x`

    Examples
    --------
    >>> from fastce import reference
    >>> print(reference.log_softmax([float("inf"), 1.0]).astype(float))
    [ nan -inf]
    """
    x = as_exact_float64(x, "x")
    axes = _axes(x.ndim, axis)
    rows = _rows(x, axes, -np.inf)
    row, top = np.arange(len(rows)), rows.argmax(axis=1)
    m = rows[row, top]
    shifted = wide(rows) - wide(np.where(np.isfinite(m), m, 0))[:, None]
    e = exp(shifted)
    e[row, top] = e[row, top] - 1
    return _unrows(shifted - log1p(e.sum(axis=1, keepdims=True)), x.shape, axes)


def _axes(n_axes: int, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(n_axes))
    given = axis if isinstance(axis, tuple) else (axis,)
    for one in given:
        if not -n_axes <= one < n_axes:
            raise ValueError(f"axis {one} is outside of {n_axes} dimensions")
    return tuple(one % n_axes for one in given)


def _rows(a: np.ndarray, axes: tuple[int, ...], nothing: float) -> np.ndarray:
    """The given axes as the columns of a matrix; one column of `nothing` where they have no elements."""
    last = np.moveaxis(a, axes, range(-len(axes), 0))
    n_columns = int(np.prod([a.shape[i] for i in axes]))
    n_rows = int(np.prod([n for i, n in enumerate(a.shape) if i not in axes]))
    return last.reshape(n_rows, n_columns) if n_columns else np.full((n_rows, 1), nothing)


def _unrows(rows: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    if 0 in shape:
        return wide(np.zeros(shape))
    moved = np.moveaxis(np.empty(shape, bool), axes, range(-len(axes), 0)).shape
    return np.moveaxis(rows.reshape(moved), range(-len(axes), 0), axes)
