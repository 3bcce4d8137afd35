"""Numbers wider than float64 with their elementary functions, and errors in units in the last place.

Everything runs in ``np.longdouble`` where that is wider than float64, else in 113-bit mpmath numbers
in object arrays (mpmath is needed on such platforms only, and only for this package).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Stored mantissa bits, exponent of the smallest normal number, exponent of the largest number.
FORMATS = {
    "float16": (10, -14, 15),
    "bfloat16": (7, -126, 127),
    "float32": (23, -126, 127),
    "float64": (52, -1022, 1023),
}

_ELEMENTARY = ("exp", "log", "log1p", "expm1", "sqrt", "acos", "cos", "sin", "floor")


class _Arithmetic(NamedTuple):
    """A number type wider than float64: its converter, frexp's exponent, elementary functions."""

    wide: Callable[[Any], np.ndarray]
    exponent: Callable[[Any], Any]
    power: Callable[[Any, Any], Any]
    elementary: dict[str, Callable[[Any], Any]]


def _longdouble_arithmetic() -> _Arithmetic:
    def wide(a: Any) -> np.ndarray:
        return np.asarray(a).astype(np.longdouble)

    functions = {name: getattr(np, {"acos": "arccos"}.get(name, name)) for name in _ELEMENTARY}
    return _Arithmetic(wide, lambda a: np.frexp(a)[1], np.power, functions)


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

    def each(function: Callable[..., Any], n_arguments: int = 1) -> Callable[..., Any]:
        vectorized = np.frompyfunc(function, n_arguments, 1)

        def quiet(*a: Any) -> Any:
            with np.errstate(all="ignore"):  # NumPy warns of every NaN that it takes from an object
                return vectorized(*a)

        return quiet

    def exponent(a: Any) -> int:
        return context.frexp(a)[1] if context.isfinite(a) else 0

    def nan_passes(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`function`, for those that turn NaN into an error."""
        return lambda a: a if context.isnan(a) else function(a)

    def wide(a: Any) -> np.ndarray:
        a = np.asarray(a)
        if a.dtype != object:
            a = a.astype(np.float64).astype(object)  # exact: longdouble is float64 here
        return np.asarray(each(context.mpf)(a), dtype=object)

    functions = {name: each(nan_passes(getattr(context, name))) for name in _ELEMENTARY}
    return _Arithmetic(wide, each(exponent), each(context.power, 2), functions)


@cache
def _arithmetic() -> _Arithmetic:
    if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant:
        return _longdouble_arithmetic()
    return _mpmath_arithmetic()


def wide(a: Any) -> Any:
    """`a`, exactly, as an array of wide numbers."""
    return _arithmetic().wide(a)


def power(a: Any, exponent: Any) -> Any:
    """`a` to the power `exponent`, element by element."""
    return _arithmetic().power(a, exponent)


def _elementary(name: str) -> Callable[[Any], Any]:
    # Looked up at each call, so that the tests can try either arithmetic.
    return lambda a: _arithmetic().elementary[name](a)


exp, log, log1p, expm1, sqrt, acos, cos, sin, floor = map(_elementary, _ELEMENTARY)


def as_exact_float64(a: ArrayLike, name: str = "logits") -> np.ndarray:
    """`a` as float64, where that is exact: integers, booleans, the four floating dtypes of fastce."""
    a = np.asarray(a)
    if a.dtype.kind not in "biu" and a.dtype.name not in FORMATS:
        raise TypeError(f"{name} must be real numbers no wider than float64, got {a.dtype}")
    return a.astype(np.float64)


def is_nan(a: np.ndarray) -> np.ndarray:
    """Where `a` is NaN, also among objects, which np.isnan refuses."""
    return np.asarray(a != a, dtype=bool)


def zero_wins(coefficient: Any, a: Any) -> Any:
    """``coefficient * a``, 0 where the coefficient is 0 and `a` infinite."""
    return np.where((coefficient == 0) & (abs(a) == np.inf), 0 * coefficient, coefficient * a)


def divided(a: Any, divisor: Any, is_given: bool) -> Any:
    """The quotient. By a sum of 0 it is NaN; by a 0 that was given, what is 0 stays so."""
    if divisor != 0:
        return a / divisor
    return np.where(a == 0, 0 * a, a / abs(divisor))[()] if is_given else wide(np.nan) * a


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
    bits, lowest, highest = FORMATS[actual.dtype.name]
    exponent = _arithmetic().exponent
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
