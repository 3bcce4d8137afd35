cdef enum Reduction:
    MEAN, SUM, NONE

cdef int reduction_of(object reduction) except -1
cdef double checked_normalizer(object normalizer, int reduction) except? -1
cdef double checked_number(object given, str name, double least, double most) except? -1
cdef double mean(double total, double denominator, bint given) noexcept
