# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Options that are not arrays: how losses are reduced, and the parameters of a loss. Shared by all levels."""

from operator import index

import numpy as np

from libc.math cimport INFINITY, NAN, isfinite

from fastce._kernels.entry import advice


# 1 / normalizer is to be finite, also times the square of a temperature's or softcap's largest factor.
cdef double SMALLEST_NORMALIZER = 1e-270


cdef int reduction_of(object reduction) except -1:
    if isinstance(reduction, str):
        if reduction == "mean":
            return MEAN
        if reduction == "sum":
            return SUM
        if reduction == "none":
            return NONE
    raise ValueError(f"reduction is {advice.shown(reduction)}; expected 'mean', 'sum' or 'none'")


cdef double checked_normalizer(object normalizer, int reduction) except? -1:
    """The given normalizer, or NaN for None. SMALLEST_NORMALIZER stands for 0: gradients of rows without weight are 0
    then, not NaN, and only `mean` is to know."""
    cdef double value
    if normalizer is None:
        return NAN
    value = number_of(normalizer, "normalizer", "a number or None")
    if reduction != MEAN:
        raise ValueError(
            f"normalizer is {advice.shown(normalizer)} with reduction={('mean', 'sum', 'none')[reduction]!r}; "
            "expected reduction='mean', whose denominator it replaces"
        )
    if value == 0:
        return SMALLEST_NORMALIZER
    if not (value > SMALLEST_NORMALIZER and isfinite(value)):
        raise ValueError(
            f"normalizer is {advice.shown(normalizer)}; "
            f"expected a finite number that is 0 or above {SMALLEST_NORMALIZER:g}"
        )
    return value


cpdef double number_of(object given, str name, str expected) except? -1:
    """A real number; infinite for an int beyond float64. Complex numbers, text and what is under a mask, all of which
    may have a __float__, are none."""
    cdef double value
    if type(given) is not int:
        dtype = getattr(given, "dtype", None)
        is_numpys = isinstance(dtype, np.dtype)
        if (isinstance(given, np.ma.MaskedArray) or (is_numpys and dtype.kind in "cmMOSTU")
                or (not is_numpys and "complex" in str(dtype))):
            raise TypeError(f"{name} is {advice.shown(given)}; expected {expected}")
    try:
        value = given
    except OverflowError:
        value = INFINITY
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {advice.shown(given)}; expected {expected}") from None
    return value


cdef double other_number(object given, str name, double least, double most) except? -1:
    """checked_number of what is no float, or not in range."""
    cdef double value = number_of(given, name, "a number")
    if not (least <= value <= most and isfinite(value)):
        expected = f"in [{least:g}, {most:g}]" if most < INFINITY else "that is finite"
        if most == INFINITY and least > -INFINITY:
            expected += f" and at least {least:g}"
        raise ValueError(f"{name} is {advice.shown(given)}; expected a number {expected}")
    return value


cpdef object checked_index(object given, str name, str expected):
    """An int. Neither a truth nor what is under a mask is one, though both have an __index__."""
    if type(given) is int:
        return given
    if not (isinstance(given, (bool, np.bool_, np.ma.MaskedArray)) or str(getattr(given, "dtype", "")) == "torch.bool"):
        try:
            return index(given)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"{name} is {advice.shown(given)}; expected {expected}")


cdef double mean(double total, double denominator, bint given) noexcept:
    """The quotient; a denominator of 0 that was given, the number of rows of an empty batch, makes it 0."""
    if given and denominator == SMALLEST_NORMALIZER:
        return 0 if total == 0 else total * INFINITY
    return total / denominator
