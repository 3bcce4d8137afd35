# Labels, as the kernels of rows read them. A part of kernels.pyx and of scoring.pyx.

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport UINT64_MAX, uint64_t

cdef extern from * nogil:
    ctypedef struct Labels:
        int size
        bint is_signed, swapped, has_ignore
        int64_t ignore_index, n_classes
    ctypedef struct LabelCounts:
        int64_t used, bad
    void read_labels(const Labels *, const char *, Py_ssize_t stride, Py_ssize_t n, int64_t *, LabelCounts *) noexcept


cdef int set_labels(Labels *labels, cnp.ndarray target, object ignore_index, Py_ssize_t n_classes) except -1:
    cdef int number = cnp.PyArray_TYPE(target), beyond = 0
    labels.size = <int>cnp.PyArray_ITEMSIZE(target)
    labels.is_signed = cnp.PyTypeNum_ISSIGNED(number)
    labels.swapped = is_swapped(target)
    labels.n_classes = n_classes
    labels.ignore_index = 0
    labels.has_ignore = ignore_index is not None
    if labels.has_ignore:
        labels.ignore_index = PyLong_AsLongLongAndOverflow(ignore_index, &beyond)
        labels.has_ignore = labels.is_signed or labels.ignore_index >= 0
        if beyond:
            labels.has_ignore = not labels.is_signed and 0 < ignore_index <= UINT64_MAX
            if labels.has_ignore:
                labels.ignore_index = <int64_t><uint64_t>ignore_index
    return 0
