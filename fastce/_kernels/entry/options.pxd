from libc.math cimport isfinite

cdef enum Reduction:
    MEAN, SUM, NONE

cdef int reduction_of(object reduction) except -1
cdef double checked_normalizer(object normalizer, int reduction) except? -1
cdef double other_number(object given, str name, double least, double most) except? -1
cpdef object checked_index(object given, str name, str expected)
cdef double mean(double total, double denominator, bint given) noexcept


cdef inline double checked_number(object given, str name, double least, double most) except? -1:
    """A finite parameter in [least, most]; most may be infinite."""
    cdef double value
    if type(given) is float:
        value = given
        if least <= value <= most and isfinite(value):
            return value
    return other_number(given, name, least, most)
