cimport numpy as cnp

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, void *descr, int subok)

cdef extern from "vector/common.h":
    ctypedef enum Format: FORMAT_F64, FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_NONE
    ctypedef struct Layout:
        Format format
        bint swapped
        Py_ssize_t class_stride, row_stride
    ctypedef struct Temperature:
        double factor, divisor

cdef int other_format(cnp.ndarray a) except -1
cdef bint is_swapped(cnp.ndarray a) noexcept
cdef cnp.ndarray new_array(object a, str name)
cdef cnp.ndarray as_floats(object given, str name)
cdef cnp.ndarray as_labels(object given, str name=*)
cdef cnp.ndarray labels_of(cnp.ndarray a, bint has_dtype, str name=*)
cdef int normalised_axis(object axis, int n_dims, str name=*) except -1
cdef int check_batch_shape(cnp.ndarray a, str name, cnp.ndarray logits, int axis) except -1
cdef int check_out(object given, cnp.ndarray logits, str name=*, str of=*) except -1
cdef int check_apart(cnp.ndarray out, cnp.ndarray a, str name, str out_name=*) except -1
cdef bint same_memory(cnp.ndarray a, cnp.ndarray b) noexcept
cdef bint are_apart(cnp.ndarray a, cnp.ndarray b) noexcept


cdef inline cnp.ndarray as_array(object a, str name):
    return a if type(a) is cnp.ndarray else new_array(a, name)


cdef inline int format_of(cnp.ndarray a) except -1:
    cdef int number = cnp.PyArray_TYPE(a)
    return FORMAT_F32 if number == cnp.NPY_FLOAT else FORMAT_F64 if number == cnp.NPY_DOUBLE else other_format(a)
