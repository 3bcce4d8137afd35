# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Options that are not arrays: how losses are reduced, and the parameters of a loss. Shared by all levels."""

from libc.math cimport INFINITY, NAN, isfinite


cdef int reduction_of(object reduction) except -1:
    if isinstance(reduction, str):
        if reduction == "mean":
            return MEAN
        if reduction == "sum":
            return SUM
        if reduction == "none":
            return NONE
    raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")


cdef double checked_normalizer(object normalizer, int reduction) except? -1:
    """The given normalizer, or NaN for None."""
    cdef double value = NAN
    if normalizer is None:
        return value
    try:
        value = normalizer
    except TypeError:
        raise TypeError(f"normalizer is {normalizer!r}; expected a number or None") from None
    except OverflowError:                  # an int beyond float64
        value = INFINITY
    if reduction != MEAN:
        raise ValueError(
            f"normalizer is {normalizer!r} with reduction={('mean', 'sum', 'none')[reduction]!r}; "
            "expected reduction='mean', whose denominator it replaces"
        )
    if not (value >= 0 and isfinite(value)):
        raise ValueError(f"normalizer is {normalizer!r}; expected a finite number that is not negative")
    return value


cdef double other_number(object given, str name, double least, double most) except? -1:
    """checked_number of what is no float, or not in range."""
    cdef double value
    try:
        value = given
    except TypeError:
        raise TypeError(f"{name} is {given!r}; expected a number") from None
    except OverflowError:                  # an int beyond float64
        value = INFINITY
    if not (least <= value <= most and isfinite(value)):
        expected = f"in [{least:g}, {most:g}]" if most < INFINITY else "that is finite"
        if most == INFINITY and least > -INFINITY:
            expected += f" and at least {least:g}"
        raise ValueError(f"{name} is {given!r}; expected a number {expected}")
    return value


cdef double mean(double total, double denominator, bint given) noexcept:
    """The quotient; a denominator of 0 that was given, the number of rows of an empty batch, makes it 0."""
    return 0 if given and total == 0 and denominator == 0 else total / denominator
