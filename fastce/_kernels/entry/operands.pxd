# elements/operands.h, for modules whose own header includes it.

cimport numpy as cnp

from fastce._kernels.entry.arrays cimport FORMAT_NONE, format_of, is_swapped

cdef extern from *:
    enum: MAX_DIMS, STRIP
    enum: INTEGER_8, INTEGER_16, INTEGER_32, INTEGER_64
    ctypedef struct Operand:
        char *data
        int format, swapped, flat, n_dims
        Py_ssize_t *shape
        Py_ssize_t *stride


cdef inline void set_elements(Operand *o, cnp.ndarray a) noexcept:
    """Where they begin and how each is stored: as a floating-point number, an integer or a bool."""
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(a)
    o.data = <char *>cnp.PyArray_DATA(a)
    o.swapped = is_swapped(a)
    o.format = format_of(a)
    if o.format == FORMAT_NONE:
        o.format = INTEGER_8 if item == 1 else INTEGER_16 if item == 2 else INTEGER_32 if item == 4 else INTEGER_64
