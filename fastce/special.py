"""logsumexp, softmax and log_softmax with the signatures and answers of scipy.special."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernels
from fastce._kernels import computed_by
from fastce._kernels.entry import arrays
from fastce._kernels.machine import threads

__all__ = ["log_softmax", "logsumexp", "softmax"]

Axis = int | tuple[int, ...] | None


@computed_by("kernels", "usual_logsumexp")
def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    *,
    out: NDArray | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Logarithm of a sum of exponentials, with factors if there are any.

    .. math::
        \log \sum_j b_j e^{a_j} = m + \log \sum_j b_j e^{a_j - m}, \qquad m = \max_j a_j

    where the maximum's own term stays out of the sum, for log1p. A drop-in for
    :func:`scipy.special.logsumexp`.

    Parameters
    ----------
    a : array_like
        Exponents of any shape. Integers and bools convert to float64.
    axis : int or tuple of int, optional
        The axes to sum over; None: all of them.
    b : array_like, optional
        Factors, broadcast with `a`. An exponent whose factor is 0 counts nothing, whatever it is.
    keepdims : bool, default False
        Keep the axes summed over, with length 1.
    return_sign : bool, default False
        Return the logarithm of the sum's size and its sign. Without it that of a negative sum is NaN.
    out : ndarray, optional
        Where to write the result: its shape and dtype, writable, apart from `a` and `b`.
    n_threads : int, optional
        At most that many threads; default :func:`fastce.get_num_threads`.

    Returns
    -------
    result : scalar or ndarray
        Of the dtype that `a` and `b` promote to, float64 if both are integers; a Python number is of the
        other's dtype.
    sign : scalar or ndarray
        With `return_sign`: 1, -1, 0 or NaN, of the same dtype.

    Raises
    ------
    TypeError
        A dtype that is neither floating up to float64 nor integer nor bool; complex numbers without SciPy,
        which computes those.
    ValueError
        `out` does not fit, or overlaps an input.

    Notes
    -----
    Within 4 ULP, of the largest term where the result is a small difference: near 0, or with `b` of both
    signs. Axes that can't be joined without a copy, such as the first and the last of three, are copied.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> float(fastce.logsumexp([0.0, -50.0]))
    1.9287498479639178e-22
    >>> fastce.logsumexp(np.array([[1.0, 2.0], [0.0, 0.0]]), axis=1, b=[1, -1], return_sign=True)
    (array([1.54132485,       -inf]), array([-1.,  0.]))
    """
    given = {"a": a, "b": b}
    a, b = arrays.any_array(a, "a"), None if b is None else arrays.any_array(b, "b")
    inputs = {"a": a, "b": b}
    if a.dtype.kind == "c" or (b is not None and b.dtype.kind == "c"):
        _check_shapes(a, b)
        _normalised(axis, max(a.ndim, np.ndim(b)))
        options = {"axis": axis, "keepdims": keepdims, "return_sign": return_sign}
        return _of_scipy("logsumexp", out, n_threads, "", inputs, options, given)
    exponents, factors = np.atleast_1d(arrays.float_array(a, "a")), None
    dtype = _native(exponents)
    if b is not None:
        factors = arrays.float_array(b, "b")
        _check_shapes(a, b)
        dtype = _promoted([x.dtype for name, x in inputs.items() if not _is_weak(given[name])])
        with np.errstate(all="ignore"):  # a signalling NaN, or a Python number beyond the dtype
            exponents = arrays.with_dtype(exponents, dtype)
            if factors.dtype != dtype and not np.can_cast(factors.dtype, dtype):
                factors = arrays.with_dtype(factors, dtype)
        if exponents.shape != factors.shape:
            exponents, factors = np.broadcast_arrays(exponents, factors)
    axes = _normalised(axis, exponents.ndim)
    kept = tuple(1 if k in axes else n for k, n in enumerate(exponents.shape))
    shape = kept if keepdims else tuple(n for k, n in enumerate(exponents.shape) if k not in axes)
    if out is not None:
        _check_out(out, shape, dtype, a=a, b=b)

    if exponents.size == 0 and 0 in (exponents.shape[k] for k in axes):
        _check_n_threads(n_threads)
        result = np.full(shape, -np.inf, dtype)
        sign = np.sign(result)  # as SciPy has it
    else:
        axes = _as_in_memory(axes, exponents)
        joined = _classes_last(exponents, axes)
        factors = None if factors is None else _classes_last(factors, axes)
        result, sign = _kernels.kernels.logsumexp(joined, joined.ndim - 1, factors, n_threads)
        if factors is not None and not return_sign:
            result[sign < 0] = np.nan
        result, sign = result.reshape(shape), sign.reshape(shape)
        if result.dtype != dtype:
            with np.errstate(over="ignore", under="ignore"):  # to a half
                result, sign = arrays.with_dtype(result, dtype), arrays.with_dtype(sign, dtype)
    if out is None:
        result = result[()]
    else:
        out[...] = result
        result = out
    return (result, sign[()]) if return_sign else result


@computed_by("kernels", "usual_softmax", False)
def softmax(
    x: ArrayLike, axis: Axis = None, *, out: NDArray | None = None, n_threads: int | None = None
) -> Any:
    r"""Softmax: exponentials over their sum.

    .. math::
        p_j = \frac{e^{x_j}}{\sum_k e^{x_k}}

    A drop-in for :func:`scipy.special.softmax`.

    Parameters
    ----------
    x : array_like
        Numbers of any shape. Integers and bools convert to float64.
    axis : int or tuple of int, optional
        The axes over which probabilities sum to 1; None: all of them.
    out : ndarray, optional
        Where to write the result: the shape and dtype of `x`, writable; `x` itself or apart from it.
    n_threads : int, optional
        At most that many threads; default :func:`fastce.get_num_threads`.

    Returns
    -------
    ndarray
        `out`, or a new array of the shape of `x`; a scalar for a scalar.

    Raises
    ------
    TypeError, ValueError
        As :func:`logsumexp`.

    Notes
    -----
    Every element above the subnormal range is within 4 ULP of the exact value.

    Examples
    --------
    >>> import fastce
    >>> fastce.softmax([1.0, 2.0, 3.0])
    array([0.09003057, 0.24472847, 0.66524096])
    """
    return _softmax(x, axis, out, n_threads, "softmax")


@computed_by("kernels", "usual_softmax", True)
def log_softmax(
    x: ArrayLike, axis: Axis = None, *, out: NDArray | None = None, n_threads: int | None = None
) -> Any:
    r"""Logarithm of the softmax, :math:`x_j - \log \sum_k e^{x_k}`, also right near 0.

    A drop-in for :func:`scipy.special.log_softmax`.

    Parameters
    ----------
    x, axis, out, n_threads
        As in :func:`softmax`.

    Returns
    -------
    ndarray
        `out`, or a new array of the shape of `x`; a scalar for a scalar.

    Raises
    ------
    TypeError, ValueError
        As :func:`logsumexp`.

    Notes
    -----
    Every element is within 4 ULP of the exact value, those near 0 included, where SciPy and PyTorch return 0
    or lose digits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> fastce.log_softmax(np.array([20, 0, 0], dtype=np.float32))
    array([-4.1223074e-09, -2.0000000e+01, -2.0000000e+01], dtype=float32)
    """
    return _softmax(x, axis, out, n_threads, "log_softmax")


def _softmax(x: ArrayLike, axis: Axis, out: NDArray | None, n_threads: int | None, name: str) -> Any:
    given = arrays.any_array(x, "x")
    if given.dtype.kind == "c":
        _normalised(axis, given.ndim)
        return _of_scipy(name, out, n_threads, "x", {"x": given}, {"axis": axis}, {"x": x})
    as_given, given = given, arrays.float_array(given, "x")
    axes = _as_in_memory(_normalised(axis, given.ndim), given)
    if out is None:
        result = np.empty_like(given, _native(given))
    else:
        _check_out(out, given.shape, _native(given), in_place="x" if given is as_given else "", x=as_given)
        result = np.asarray(out)  # a subclass may have a reshape of its own, as matrices do
    if not given.size:
        _check_n_threads(n_threads)
    else:
        classes, into = _classes_last(given, axes), _classes_last(result, axes)
        _kernels.kernels.softmax(classes, classes.ndim - 1, into, n_threads, name == "log_softmax")
        if len(axes) > 1 and not np.may_share_memory(into, result):  # axes that only a copy could join
            ordered = _in_order(result, axes)
            ordered[...] = into.reshape(ordered.shape)
    return result[()] if out is None else out


# ---- Arrays and axes ------------------------------------------------------------------------------


def _of_scipy(
    name: str,
    out: NDArray | None,
    n_threads: int | None,
    in_place: str,
    inputs: dict[str, NDArray | None],
    options: dict[str, Any],
    given: dict[str, Any],
) -> Any:
    """Of complex numbers, which the kernels don't take; Python's own, which promote nothing, as given."""
    _check_n_threads(n_threads)
    for argument, a in inputs.items():
        if a is not None and a.dtype.kind not in "iufbc":
            arrays.float_array(a, argument)
    try:
        from scipy import special
    except ImportError:
        message = f"{name} of complex numbers is SciPy's: pip install scipy, or pass real ones"
        raise TypeError(message) from None
    function: Callable[..., Any] = getattr(special, name)
    result = function(**{k: given[k] if _is_weak(given[k]) else a for k, a in inputs.items()}, **options)
    if out is None:
        return result
    value = result[0] if options.get("return_sign") else result
    _check_out(out, np.shape(value), value.dtype, in_place, **inputs)
    out[...] = value
    return (out, result[1]) if options.get("return_sign") else out


def _native(a: NDArray) -> np.dtype:
    return a.dtype if a.dtype.isnative else np.promote_types(a.dtype, a.dtype)


def _is_weak(given: Any) -> bool:
    """A number of Python's own, which promotes nothing."""
    return isinstance(given, int | float | complex) and not isinstance(given, np.generic)


def _promoted(dtypes: list[np.dtype]) -> np.dtype:
    """As SciPy has it: float64 if there are no floats."""
    if all(dtype.kind in "iub" for dtype in dtypes):
        return np.dtype(np.float64)
    try:
        return reduce(np.promote_types, dtypes, dtypes[0])
    except TypeError:  # bfloat16 with what it does not know
        floats = (np.float64 if dtype.kind in "iub" else dtype for dtype in dtypes)
        return reduce(np.promote_types, floats, np.dtype(np.float32))


def _check_shapes(a: NDArray, b: NDArray | None) -> None:
    try:
        np.broadcast_shapes(a.shape, () if b is None else b.shape)
    except ValueError:
        raise ValueError(
            f"b has shape {b.shape} and a has shape {a.shape}; expected shapes that broadcast"
        ) from None


def _normalised(axis: Axis, n_dims: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(n_dims))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(arrays.normalized_axis(k, max(n_dims, 1)) for k in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}; expected each axis once")
    return axes if n_dims else ()  # a scalar is a row of one


def _as_in_memory(axes: tuple[int, ...], a: NDArray) -> tuple[int, ...]:
    """In the order of memory, in which they join where they can."""
    return tuple(sorted(axes, key=lambda k: -abs(a.strides[k]))) if len(axes) > 1 else axes


def _in_order(a: NDArray, axes: tuple[int, ...]) -> NDArray:
    """The given axes last."""
    kept = [k for k in range(a.ndim) if k not in axes]
    return a.transpose(*kept, *axes)


def _classes_last(a: NDArray, axes: tuple[int, ...]) -> NDArray:
    """The given axes as one, the last: a view where memory allows it."""
    if len(axes) == 1:
        return a if axes[0] == a.ndim - 1 else np.moveaxis(a, axes[0], -1)
    ordered, n_kept = _in_order(a, axes), a.ndim - len(axes)
    return ordered.reshape(*ordered.shape[:n_kept], prod(ordered.shape[n_kept:]))


def _check_n_threads(n_threads: int | None) -> None:
    """Where no kernel is called, which would."""
    if n_threads is not None:
        threads.checked(n_threads)


def _check_out(
    out: NDArray, shape: tuple[int, ...], dtype: np.dtype, in_place: str = "", **inputs: NDArray | None
) -> None:
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError("out is a masked array; expected a plain ndarray")
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a {type(out).__name__}; expected an ndarray to write into")
    if out.shape != shape or _native(out) != dtype:
        raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}; expected {shape} and {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; expected a writable array: use a copy")
    for name, a in inputs.items():
        if a is not None:
            arrays.check_out_apart(np.asarray(out), a, name, name == in_place)
