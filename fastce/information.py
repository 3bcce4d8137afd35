"""Information measures of given distributions: probabilities in, nats or bits out. Plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce._kernels.entry import advice, arrays

__all__ = ["cross_entropy", "entropy", "kl_divergence", "self_information"]

# 1/3, 1/5, 1/7, ...: R of `_kl_terms`. |s| <= 1/3 there, so what is left out is below 9^-17 / 37 = 2^-59.
_ATANH_TAIL = [1 / (2 * k + 3) for k in range(17)]


def self_information(p: ArrayLike, *, base: float | None = None) -> Any:
    r"""Information content of events of given probabilities, elementwise.

    .. math::
        I(p) = -\log p

    Parameters
    ----------
    p : array_like
        Probabilities, of any shape. float64, or float32, float16 and bfloat16 (of ``ml_dtypes``), which are
        computed in float64; integers and bools convert to float64.
    base : float, optional
        Of the logarithm: 2 for bits, 10 for hartleys. Default: e, nats.

    Returns
    -------
    ndarray or NumPy scalar
        Of the shape of `p`; float64, or float32 for float32, float16 and bfloat16. +inf where p is 0.

    Raises
    ------
    TypeError
        A dtype that is not listed above; a masked array; a `base` that is not a number.
    ValueError
        A value that is negative, infinite or NaN, which is named with its place; a `base` that is not
        positive and finite, or is 1.

    See Also
    --------
    entropy : its mean over a distribution.

    Notes
    -----
    Values above 1 are taken as they are and have negative information. Defined in [1]_.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27 (1948),
       379-423 and 623-656.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce import information
    >>> information.self_information([1.0, 0.5, 0.125, 0.0], base=2)
    array([ 0.,  1.,  3., inf])
    """
    log, unit = _logarithm(base)
    p, dtype = _probabilities(p, "p")
    return _rounded(-_log(log, p), dtype, unit)


def entropy(p: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    r"""Entropy of distributions.

    .. math::
        H(p) = -\sum_j p_j \log p_j, \qquad 0 \log 0 = 0

    Parameters
    ----------
    p : array_like
        Probabilities, of any shape with at least one axis and of the dtypes of :func:`self_information`.
        They are not renormalised.
    axis : int, default -1
        The axis of the events; all others are batch axes.
    base : float, optional
        Of the logarithm: 2 for bits. Default: e, nats.

    Returns
    -------
    ndarray or NumPy scalar
        Of the shape of `p` without `axis`; float64, or float32 for float32, float16 and bfloat16.

    Raises
    ------
    TypeError, ValueError
        As in :func:`self_information`; and ``numpy.exceptions.AxisError``, a ValueError, for an `axis` that
        `p` does not have.

    Notes
    -----
    Within 4 ULP of the exact value where no probability is above 1: the terms are summed in twice float64's
    precision. Defined in [1]_, theorem 2.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27 (1948),
       379-423 and 623-656.

    Examples
    --------
    >>> from fastce import information
    >>> information.entropy([0.5, 0.25, 0.25, 0.0], base=2)
    np.float64(1.5)
    """
    log, unit = _logarithm(base)
    p, dtype = _probabilities(p, "p")
    p = _events_last(p, axis)
    return _rounded(_total(_expected(p, -_log(log, p))), dtype, unit)


def cross_entropy(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    r"""Cross-entropy of distributions q relative to p.

    .. math::
        H(p, q) = -\sum_j p_j \log q_j, \qquad 0 \log 0 = 0

    Parameters
    ----------
    p, q : array_like
        Probabilities, of the dtypes of :func:`self_information`. Their shapes are broadcast as NumPy does.
        They are not renormalised.
    axis : int, default -1
        The axis of the events in the broadcast shape; all others are batch axes.
    base : float, optional
        Of the logarithm: 2 for bits. Default: e, nats.

    Returns
    -------
    ndarray or NumPy scalar
        Of the broadcast shape without `axis`; float64, or float32 if neither input is float64, integer or
        bool. +inf where some p is above 0 at q = 0.

    Raises
    ------
    TypeError, ValueError
        As in :func:`entropy`; and ValueError for shapes that do not broadcast.

    See Also
    --------
    fastce.cross_entropy : from logits, with its gradient.

    Notes
    -----
    Within 4 ULP of the exact value where no q is above 1. The expected length of a code made for q
    where p is true: [1]_, section 5.4.

    References
    ----------
    .. [1] T. M. Cover, J. A. Thomas, "Elements of Information Theory", 2nd edition, Wiley 2006.

    Examples
    --------
    >>> from fastce import information
    >>> information.cross_entropy([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], base=2)
    np.float64(1.75)
    >>> information.cross_entropy([0.5, 0.5], [1.0, 0.0])
    np.float64(inf)
    """
    log, unit = _logarithm(base)
    p, q, dtype = _pair(p, q, axis)
    return _rounded(_total(_expected(p, -_log(log, q))), dtype, unit)


def kl_divergence(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    r"""Kullback-Leibler divergence of distributions p from q, without cancellation.

    .. math::
        D(p \,\|\, q) = \sum_j p_j \log \frac{p_j}{q_j} = H(p, q) - H(p)
        = \sum_j \Bigl( p_j \log \frac{p_j}{q_j} - p_j + q_j \Bigr) + \sum_j (p_j - q_j)

    Parameters
    ----------
    p, q, axis, base
        As in :func:`cross_entropy`.

    Returns
    -------
    ndarray or NumPy scalar
        As in :func:`cross_entropy`. Exactly 0 where p and q are equal, +inf where some p is above 0
        at q = 0.

    Raises
    ------
    TypeError, ValueError
        As in :func:`cross_entropy`.

    Notes
    -----
    The terms :math:`p_j \log (p_j / q_j)` have both signs and cancel where p is close to q. Those of the
    first sum on the right are not negative, and each is computed to a few ULP; the second sum, 0 for exact
    distributions, is added up in twice float64's precision. The result is within 12 ULP of the larger of the
    two sums (of float64's smallest normal number per term, if they are smaller): NumPy's logarithm and what
    is done with it are off by 4, and of :math:`p_j \log (p_j / q_j)` two thirds may cancel. As inputs are not
    renormalised, it holds what their rounding adds to or takes from their total, and may be negative by
    that. Defined in [1]_.

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical Statistics 22
       (1951), 79-86.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce import information
    >>> information.kl_divergence([1.0, 0.0], [0.5, 0.5], base=2)
    np.float64(1.0)
    >>> p, q = np.array([0.5, 0.5]), np.array([0.5 + 2**-40, 0.5 - 2**-40])
    >>> information.kl_divergence(p, q) == 2.0**-79  # and the next term of the series, 2**-157
    np.True_
    >>> np.sum(p * np.log(p / q)) == 2.0**-79
    np.False_
    """
    unit = math.log(_checked(base))
    p, q, dtype = _pair(p, q, axis)
    with np.errstate(all="ignore"):
        difference, rest = _two_sum(p, -q)
        excess, excess_low = _sum(difference)
        total, total_low = _sum(terms := _kl_terms(p, q, difference))
        high, low = _two_sum(total, excess)
        result = high + (low + (total_low + (excess_low + rest.sum(axis=-1))))
        plain = terms.sum(axis=-1)
    return _rounded(np.where(np.isfinite(plain), result, plain), dtype, unit)


def _kl_terms(p: NDArray, q: NDArray, d: NDArray) -> NDArray:
    """The terms p log(p/q) - p + q >= 0, given d = p - q.

    With s = (p - q) / (p + q), log(p/q) = 2 atanh(s) = 2 (s + s^3 R(s^2)), R(z) = 1/3 + z/5 + z^2/7 + ...,
    and the terms of first order drop out: what remains is d s (1 + s (1 + s) R). That is used where p and q
    are within a factor of 2, so that d is exact; elsewhere at most two thirds of the larger part cancel.
    """
    near = (p <= 2 * q) & (q <= 2 * p) & (p > 0)
    u = np.where(near, d, 0.0) / np.where(near, q, 1.0)
    s = u / (2 + u)  # p + q could overflow
    z, tail = s * s, np.zeros_like(s)
    for coefficient in reversed(_ATANH_TAIL):
        tail = tail * z + coefficient
    ratio = p / q
    usual = (ratio > np.finfo(np.float64).tiny) & (ratio < np.inf)
    log = np.where(usual, np.log(ratio), np.log(p) - np.log(q))
    return np.where(near, d * s * (1 + s * (1 + s) * tail), _expected(p, log) - d)


# --- arguments and results --------------------------------------------------------------------------


def _checked(base: float | None) -> float:
    if base is None:
        return math.e  # math.log(math.e) is exactly 1
    if not isinstance(base, Real) or isinstance(base, bool):
        raise TypeError(f"base is {advice.shown(base)}; expected a number, or None for e")
    try:
        value = float(base)
    except OverflowError:  # an int beyond float64
        value = math.inf
    if not (0 < value < math.inf and value != 1):
        raise ValueError(
            f"base is {advice.shown(base)}; expected a finite number above 0 other than 1, or None for e"
        )
    return value


def _logarithm(base: float | None) -> tuple[Callable[[NDArray], NDArray], float]:
    """A logarithm and what to divide it by: powers of 2 and 10 have whole logarithms in their own base."""
    own = {2: np.log2, 10: np.log10}.get(_checked(base))
    return (own, 1.0) if own else (np.log, math.log(_checked(base)))


def _probabilities(given: ArrayLike, name: str) -> tuple[NDArray, np.dtype]:
    """The values in float64, and the dtype of the result."""
    a = arrays.any_array(given, name)
    narrow = a.dtype.name in ("float32", "float16", "bfloat16")
    if not narrow and a.dtype.kind not in "iub" and a.dtype.name != "float64":
        raise TypeError(
            f"{name} has dtype {a.dtype}; expected float32, float64, float16, bfloat16 (of ml_dtypes), "
            "an integer dtype or bool" + advice.to_convert(a)
        )
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is refused below
        values = a.astype(np.float64)
    if (wrong := ~((values >= 0) & (values < np.inf))).any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f" at {place}" if place else ""
        raise ValueError(
            f"{name} is {values[place]}{where}; expected finite probabilities of at least 0"
            + advice.to_be_inside("probs", values[place])
        )
    return values, np.dtype(np.float32 if narrow else np.float64)


def _pair(p: ArrayLike, q: ArrayLike, axis: int) -> tuple[NDArray, NDArray, np.dtype]:
    p, p_dtype = _probabilities(p, "p")
    q, q_dtype = _probabilities(q, "q")
    try:
        p, q = np.broadcast_arrays(p, q)
    except ValueError:
        raise ValueError(
            f"p has shape {p.shape} and q has shape {q.shape}; expected shapes that broadcast"
        ) from None
    return _events_last(p, axis), _events_last(q, axis), np.promote_types(p_dtype, q_dtype)


def _events_last(a: NDArray, axis: int) -> NDArray:
    return np.moveaxis(a, arrays.normalized_axis(axis, a.ndim), -1)


def _rounded(a: NDArray, dtype: np.dtype, unit: float) -> Any:
    """In that unit, whose size may take it beyond the numbers, and that dtype."""
    with np.errstate(over="ignore", under="ignore"):
        return (a / unit + 0.0).astype(dtype)[()]  # + 0.0: no -0.0


# --- arithmetic ---------------------------------------------------------------------------------------


def _log(log: Callable[[NDArray], NDArray], a: NDArray) -> NDArray:
    with np.errstate(divide="ignore"):
        return log(a)


def _expected(p: NDArray, information: NDArray) -> NDArray:
    """p times information, 0 where p is 0 whatever the other is."""
    with np.errstate(all="ignore"):
        return np.where(p == 0, 0.0, p * information)


def _total(terms: NDArray) -> NDArray:
    """The sum along the last axis; where that is infinite, the error terms of `_sum` are NaN."""
    with np.errstate(all="ignore"):
        high, low = _sum(terms)
        plain = terms.sum(axis=-1)
        return np.where(np.isfinite(plain), high + low, plain)


def _sum(terms: NDArray) -> tuple[NDArray, NDArray]:
    """The sum along the last axis and its rounding error: a tree of pairs, each with its error kept."""
    high, low = terms, np.zeros_like(terms)
    if not terms.shape[-1]:
        return terms.sum(axis=-1), terms.sum(axis=-1)
    while (n := high.shape[-1]) > 1:
        paired, half = n // 2, n - n // 2
        total, error = _two_sum(high[..., :paired], high[..., half:])
        low = np.concatenate([low[..., :paired] + low[..., half:] + error, low[..., paired:half]], axis=-1)
        high = np.concatenate([total, high[..., paired:half]], axis=-1)
    return high[..., 0], low[..., 0]


def _two_sum(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    """a + b rounded, and the rounding error, which is exact (Knuth, TAOCP 2, section 4.2.2)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
