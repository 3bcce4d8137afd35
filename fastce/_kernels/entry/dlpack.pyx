# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Arrays of other libraries, through DLPack's exchange of C structs: NumPy's own does not know bfloat16.

The struct is that of DLPack 1.3, https://dmlc.github.io/dlpack/latest/c_api.html. Shared by all levels.
"""

import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewFromDescr(void *subtype, cnp.PyArray_Descr *, int n_dims, const cnp.npy_intp *shape,
                                     const cnp.npy_intp *strides, void *data, int flags, object)
    void *PyArray_Type_address "&PyArray_Type"

cdef enum:
    MAJOR = 1
    CPU = 1
    MAX_DIMS = 64                          # torch's most, and NumPy 2's

# The codes of dtypes.
cdef enum:
    INT, UINT, FLOAT, BFLOAT = 4, COMPLEX, BOOL

cdef struct Tensor:                        # DLTensor
    void *data
    int32_t device, device_id, n_dims
    uint8_t code, bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef struct Exchange:                      # DLPackExchangeAPI
    uint32_t major, minor
    void *older
    void *allocate
    void *managed_from_object
    void *object_from_managed
    int (*tensor_from_object)(void *, Tensor *) except -1
    void *current_stream

# For who has the numbers but not the dtype that ml_dtypes gives them.
BFLOAT16_BITS = np.dtype([("bfloat16", np.uint16)])
cdef dict kinds = {INT: "i", UINT: "u", FLOAT: "f", COMPLEX: "c"}
cdef dict dtypes = {(code, bits): np.dtype(f"{kind}{bits // 8}") for code, kind in kinds.items()
                    for bits in (8, 16, 32, 64, 128)
                    if bits <= (128 if code == COMPLEX else 64) and bits >= {FLOAT: 16, COMPLEX: 64}.get(code, 8)}
dtypes[BOOL, 8] = np.dtype(bool)
dtypes[BFLOAT, 16] = BFLOAT16_BITS


def has_exchange(a):
    return hasattr(type(a), "__dlpack_c_exchange_api__")


cpdef cnp.ndarray array_of(object a):
    """The memory of a tensor on the CPU as an array that keeps the tensor alive; bfloat16 as BFLOAT16_BITS."""
    cdef const Exchange *exchange = <const Exchange *>PyCapsule_GetPointer(
        type(a).__dlpack_c_exchange_api__, "dlpack_exchange_api")
    cdef Tensor t
    cdef cnp.npy_intp[MAX_DIMS] strides
    cdef cnp.dtype dtype
    cdef cnp.ndarray result
    cdef int dim
    if exchange.major != MAJOR:
        raise TypeError(f"{type(a).__name__} speaks DLPack {exchange.major}, not {MAJOR}: convert it with .numpy()")
    exchange.tensor_from_object(<void *>a, &t)
    if t.device != CPU:
        raise TypeError(f"a {type(a).__name__} is on DLPack's device {t.device}; expected the CPU's memory: use .cpu()")
    dtype = dtypes.get((t.code, t.bits)) if t.lanes == 1 else None
    if dtype is None or t.n_dims > MAX_DIMS:
        raise TypeError(f"a {type(a).__name__} has dtype {a.dtype}; NumPy has none like it: convert it first")
    for dim in range(t.n_dims):
        strides[dim] = t.strides[dim] * (t.bits // 8)
    Py_INCREF(dtype)                       # the call takes it over
    result = PyArray_NewFromDescr(PyArray_Type_address, <cnp.PyArray_Descr *>dtype, t.n_dims, <cnp.npy_intp *>t.shape,
                                  strides, <char *>t.data + t.byte_offset, cnp.NPY_ARRAY_WRITEABLE, None)
    cnp.set_array_base(result, a)
    return result


def number_of(double value, bint wide):
    """An array without axes, float64 or float32; what is too large for that is infinite, without a warning."""
    cdef cnp.ndarray result = cnp.PyArray_EMPTY(0, NULL, cnp.NPY_DOUBLE if wide else cnp.NPY_FLOAT, 0)
    if wide:
        (<double *>cnp.PyArray_DATA(result))[0] = value
    else:
        (<float *>cnp.PyArray_DATA(result))[0] = <float>value
    return result
