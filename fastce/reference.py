"""The NumPy twin of fastce: the same names, plain formulas, wide precision.

It is the oracle of the tests and the place to read what fastce computes. For one row of logits
``x`` with label ``y``::

    m = max x        e_j = exp(x_j - m)        r = sum of e_j over j != y        s = r + e_y

    loss   = log1p(r)                 where the target is the maximum
             (m - x_y) + log(s)       elsewhere
    grad_j = e_j / s                  off the target
    grad_y = -r / s

``r`` is summed without the target, so neither the loss nor the target's gradient is ever a
difference of nearly equal numbers. Everything runs in ``np.longdouble`` where that is wider than
float64, else in 113-bit mpmath numbers in object arrays (mpmath is needed on such platforms only,
and only for this module). Results stay in that wide precision; nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["cross_entropy", "cross_entropy_and_grad", "ulp_distance"]

# Stored mantissa bits, exponent of the smallest normal number, exponent of the largest number.
_FORMATS = {
    "float16": (10, -14, 15),
    "bfloat16": (7, -126, 127),
    "float32": (23, -126, 127),
    "float64": (52, -1022, 1023),
}


class _Arithmetic(NamedTuple):
    """A number type wider than float64: its converter, frexp's exponent, elementary functions."""

    wide: Callable[[Any], np.ndarray]
    exponent: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    log1p: Callable[[Any], Any]


def _longdouble_arithmetic() -> _Arithmetic:
    def wide(a: Any) -> np.ndarray:
        return np.asarray(a).astype(np.longdouble)

    return _Arithmetic(wide, lambda a: np.frexp(a)[1], np.exp, np.log, np.log1p)


def _mpmath_arithmetic() -> _Arithmetic:
    try:
        import mpmath
    except ImportError as error:
        raise ImportError(
            "np.longdouble is no wider than float64 on this platform, so fastce.reference "
            "needs mpmath: pip install mpmath"
        ) from error
    context = mpmath.mp.clone()
    context.prec = 113  # as IEEE binary128

    def each(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        vectorized = np.frompyfunc(function, 1, 1)

        def quiet(a: Any) -> Any:
            with np.errstate(all="ignore"):  # NumPy warns of every NaN that it takes from an object
                return vectorized(a)

        return quiet

    def exponent(a: Any) -> int:
        return context.frexp(a)[1] if context.isfinite(a) else 0

    def log1p(r: Any) -> Any:
        return r if context.isnan(r) else context.log1p(r)

    def wide(a: Any) -> np.ndarray:
        a = np.asarray(a)
        if a.dtype != object:
            a = a.astype(np.float64).astype(object)  # exact: longdouble is float64 here
        return np.asarray(each(context.mpf)(a), dtype=object)

    return _Arithmetic(wide, each(exponent), each(context.exp), each(context.log), each(log1p))


@cache
def _arithmetic() -> _Arithmetic:
    if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant:
        return _longdouble_arithmetic()
    return _mpmath_arithmetic()


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> Any:
    """Cross-entropy of integer targets, in wide precision.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities; float16, bfloat16, float32 and float64 are read exactly,
        integers and booleans become float64.
    target : array_like of int
        One label per row: the shape of `logits` without `axis`.
    axis : int, default -1
        The class axis of `logits`.
    sample_weight : array_like, optional
        One factor per row, of the shape of `target`.
    ignore_index : int or None, default -100
        Rows with this label are not read; their loss and gradient are 0 and the mean leaves them
        out.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean is weighted: ``sum(s * loss) / sum(s)`` over the rows that are not ignored.
    normalizer : float, optional
        Replaces the denominator of the mean.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of `target` for ``reduction="none"``

    See Also
    --------
    cross_entropy_and_grad : the loss together with its gradient.
    """
    return cross_entropy_and_grad(
        logits,
        target,
        axis=axis,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        normalizer=normalizer,
    )[0]


def cross_entropy_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[Any, np.ndarray]:
    """Cross-entropy of integer targets and its gradient, in wide precision.

    Parameters
    ----------
    logits, target, axis, sample_weight, ignore_index, reduction, normalizer
        As in `cross_entropy`.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of `target` for ``reduction="none"``
    grad : wide ndarray of the shape of `logits`
        Gradient of the reduced loss with respect to the logits; for ``reduction="none"`` that of
        the sum.

    Examples
    --------
    >>> from fastce import reference
    >>> loss, grad = reference.cross_entropy_and_grad([20.0, 0.0, 0.0], 0)
    >>> f"{loss:.10e}"
    '4.1223072363e-09'
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    wide = _arithmetic().wide
    classes_last = np.moveaxis(_as_exact_float64(logits), axis, -1)
    labels = np.asarray(target)
    n_classes, shape = classes_last.shape[-1], classes_last.shape[:-1]
    _check_labels(labels, shape, n_classes, ignore_index)

    # From here on a batch is a list of rows, and only the rows that are not ignored are looked at.
    y = labels.reshape(-1)
    kept = np.ones(y.shape, bool) if ignore_index is None else y != ignore_index
    weight = np.ones(shape) if sample_weight is None else sample_weight
    factor = wide(_as_rows(weight, shape))[kept]
    row_loss, row_grad = wide(np.zeros(y.size)), wide(np.zeros((y.size, n_classes)))
    with np.errstate(all="ignore"):
        loss, grad = _rows(classes_last.reshape(y.size, n_classes)[kept], y[kept].astype(np.intp))
        row_loss[kept] = factor * loss
        if reduction == "mean" and kept.any():
            factor = factor / (wide(normalizer) if normalizer is not None else factor.sum())
        row_grad[kept] = factor[:, None] * grad

        result: Any = row_loss.reshape(shape)
        if reduction == "sum" or (reduction == "mean" and normalizer is not None):
            result = row_loss.sum() / wide(1.0 if reduction == "sum" else normalizer)[()]
        elif reduction == "mean":
            result = (factor * loss).sum() if kept.any() else wide(np.nan)[()]
    return result, np.moveaxis(row_grad.reshape(classes_last.shape), -1, axis)


def ulp_distance(actual: ArrayLike, exact: ArrayLike, scale: ArrayLike | None = None) -> np.ndarray:
    """Error of `actual` in units in the last place (ULP) of the exact result.

    The unit is the spacing, in the dtype of `actual`, of the numbers in the binade of `exact`; in
    the subnormal range it is the constant spacing there.

    Parameters
    ----------
    actual : array_like of float16, bfloat16, float32 or float64
        Computed values.
    exact : array_like
        True values, as wide as they come.
    scale : array_like, optional
        Take the unit at this number instead: the largest term, where a result is a difference of
        terms.

    Returns
    -------
    ndarray of float64
        0 where NaN meets NaN or an infinity meets the exact result that rounds to it; `inf` where
        only one of the two is NaN or infinite.
    """
    actual = np.asarray(actual)
    bits, lowest, highest = _FORMATS[actual.dtype.name]
    wide, exponent, *_ = _arithmetic()
    shape = np.broadcast_shapes(actual.shape, np.shape(exact), np.shape(scale))
    given, exact = wide(np.atleast_1d(actual.astype(np.float64))), wide(np.atleast_1d(exact))
    unit_at = abs(exact if scale is None else wide(np.atleast_1d(scale)))

    binade = np.where(unit_at == 0, lowest, exponent(unit_at).astype(int) - 1)
    ulp = wide(np.ldexp(1.0, np.clip(binade, lowest, highest) - bits))
    # The middle between the largest number and the next power of two is where rounding gives
    # infinity.
    overflow = (wide(2.0) - wide(2.0 ** -(bits + 1))) * wide(2.0**highest)

    zero = wide(0.0)[()]
    with np.errstate(all="ignore"):
        nan_given, nan_exact = (np.isnan(a.astype(np.float64)) for a in (given, exact))
        inf_given, inf_exact = np.isinf(given.astype(np.float64)), abs(exact) >= overflow
        same = (nan_given & nan_exact) | (inf_given & inf_exact & ((given > 0) == (exact > 0)))
        special = nan_given | nan_exact | inf_given | inf_exact
        error = abs(np.where(special, zero, given) - np.where(special, zero, exact)) / ulp
        distance = np.where(special, np.where(same, 0.0, np.inf), error.astype(np.float64))
    return distance.reshape(shape)


def _rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient of each row of the (N, C) float64 array `x` with labels `y`."""
    wide, _, exp, log, log1p = _arithmetic()
    if not y.size:
        return wide(np.zeros(0)), wide(np.zeros(x.shape))
    row = np.arange(y.size)
    m = x.max(axis=1)
    # NaN or +inf somewhere, or -inf everywhere: the whole row becomes NaN.
    m = wide(np.where(np.isfinite(m), m, np.nan))
    x = wide(x)
    e = exp(x - m[:, None])
    gap, e_y = m - x[row, y], e[row, y]
    e[row, y] = 0 * m
    r = e.sum(axis=1)
    s = r + e_y
    loss = np.where(gap == 0, log1p(r), gap + log(s))
    grad = e / s[:, None]
    grad[row, y] = -r / s
    return loss, grad


def _as_exact_float64(logits: ArrayLike) -> np.ndarray:
    x = np.asarray(logits)
    if x.dtype.kind not in "biu" and x.dtype.name not in _FORMATS:
        raise TypeError(f"logits must be real numbers no wider than float64, got {x.dtype}")
    return x.astype(np.float64)


def _as_rows(sample_weight: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    weight = np.asarray(sample_weight)
    if weight.shape != shape:
        raise ValueError(f"sample_weight must have the target's shape {shape}, got {weight.shape}")
    return weight.astype(np.float64).reshape(-1)


def _check_labels(
    labels: np.ndarray, shape: tuple[int, ...], n_classes: int, ignore_index: int | None
) -> None:
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target must hold integers, got {labels.dtype}")
    if labels.shape != shape:
        raise ValueError(f"target must have the shape {shape}, got {labels.shape}")
    if n_classes == 0 and labels.size:
        raise ValueError("logits have no classes: the class axis has length 0")
    wrong = (labels < 0) | (labels >= n_classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise IndexError(f"label {labels[position]} at {position} is outside [0, {n_classes})")
