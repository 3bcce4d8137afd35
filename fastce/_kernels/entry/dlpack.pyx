# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Arrays of tensors and tensors of arrays, through DLPack's exchange of C structs: NumPy's own does not know bfloat16.

The structs are those of DLPack 1.3, https://dmlc.github.io/dlpack/latest/c_api.html. Shared by all levels.
"""

import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cnp.import_array()

cdef extern from "Python.h":
    bint Py_IsInitialized() nogil

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
    INT, UINT, FLOAT, BFLOAT = 4, COMPLEX, BOOL, N_CODES
    N_SIZES = 17                           # of bytes, up to complex128

cdef struct Tensor:                        # DLTensor
    void *data
    int32_t device, device_id, n_dims
    uint8_t code, bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef struct Managed:                       # DLManagedTensorVersioned, and behind it what is managed
    uint32_t major, minor
    void *owner
    void (*free)(Managed *) noexcept nogil
    uint64_t flags
    Tensor tensor
    double number                          # and behind all that shape and strides

cdef struct Exchange:                      # DLPackExchangeAPI
    uint32_t major, minor
    void *older
    void *allocate
    void *managed_from_object
    int (*object_from_managed)(Managed *, void **) except -1
    int (*tensor_from_object)(void *, Tensor *) except -1
    void *current_stream

# For who has the numbers but not the dtype that ml_dtypes gives them.
BFLOAT16_BITS = np.dtype([("bfloat16", np.uint16)])
cdef list dtypes = [None] * N_CODES * N_SIZES    # by code and size
for code, kind, sizes in ((INT, "i", (1, 2, 4, 8)), (UINT, "u", (1, 2, 4, 8)), (FLOAT, "f", (2, 4, 8)),
                          (COMPLEX, "c", (8, 16))):
    for size in sizes:
        dtypes[code * N_SIZES + size] = np.dtype(f"{kind}{size}")
dtypes[BOOL * N_SIZES + 1] = np.dtype(bool)
dtypes[BFLOAT * N_SIZES + 2] = BFLOAT16_BITS


def has_exchange(a):
    return hasattr(type(a), "__dlpack_c_exchange_api__")


cdef const Exchange *exchange_of(object kind) except NULL:
    cdef const Exchange *exchange = <const Exchange *>PyCapsule_GetPointer(
        kind.__dlpack_c_exchange_api__, "dlpack_exchange_api")
    if exchange.major != MAJOR:
        raise TypeError(f"{kind.__name__} speaks DLPack {exchange.major}, not {MAJOR}: convert it with .numpy()")
    return exchange


cpdef cnp.ndarray array_of(object a):
    """The memory of a tensor on the CPU as an array that keeps the tensor alive; bfloat16 as BFLOAT16_BITS."""
    return array_by(exchange_of(type(a)), a)


cdef cnp.ndarray array_by(const Exchange *exchange, object a):
    cdef Tensor t
    cdef cnp.npy_intp[MAX_DIMS] strides
    cdef cnp.dtype dtype
    cdef cnp.ndarray result
    cdef int dim
    cdef bint known, has_memory
    exchange.tensor_from_object(<void *>a, &t)
    if t.device != CPU:
        raise TypeError(f"a {type(a).__name__} is on DLPack's device {t.device}; expected the CPU's memory: use .cpu()")
    known = t.lanes == 1 and t.code < N_CODES and t.bits % 8 == 0 and t.bits // 8 < N_SIZES
    dtype = dtypes[t.code * N_SIZES + t.bits // 8] if known else None
    if dtype is None or t.n_dims > MAX_DIMS:
        raise TypeError(f"a {type(a).__name__} has dtype {a.dtype}; NumPy has none like it: convert it first")
    has_memory = t.data != NULL
    for dim in range(t.n_dims):
        strides[dim] = t.strides[dim] * (t.bits // 8)
        has_memory |= t.shape[dim] == 0
    if not has_memory:                     # NumPy would take some of its own
        raise TypeError(f"a {type(a).__name__} has no memory; expected one that holds its numbers")
    Py_INCREF(dtype)                       # the call takes it over
    result = PyArray_NewFromDescr(PyArray_Type_address, <cnp.PyArray_Descr *>dtype, t.n_dims, <cnp.npy_intp *>t.shape,
                                  strides, <char *>t.data + t.byte_offset, cnp.NPY_ARRAY_WRITEABLE, None)
    cnp.set_array_base(result, a)
    return result


cdef void free_array(Managed *m) noexcept nogil:
    if Py_IsInitialized():                 # else it is the end of the process
        with gil:
            Py_DECREF(<object>m.owner)
    free(m)


cdef void free_number(Managed *m) noexcept nogil:
    free(m)


cdef Managed *new_managed(int n_dims) except NULL:
    cdef Managed *m = <Managed *>malloc(sizeof(Managed) + 2 * n_dims * sizeof(int64_t))
    if m == NULL:
        raise MemoryError
    m.major, m.minor, m.flags = MAJOR, 0, 0
    m.tensor.device, m.tensor.device_id, m.tensor.n_dims, m.tensor.lanes = CPU, 0, n_dims, 1
    m.tensor.shape, m.tensor.byte_offset = <int64_t *>(m + 1), 0
    m.tensor.strides = m.tensor.shape + n_dims
    return m


cdef object taken(const Exchange *exchange, Managed *m):
    cdef void *result = NULL
    exchange.object_from_managed(m, &result)
    tensor = <object>result
    Py_DECREF(tensor)                      # the reference that the call handed out
    return tensor


cdef object tensor_by(const Exchange *exchange, cnp.ndarray a):
    """The memory of an array of floats as a tensor, which keeps it alive. Without elements NumPy has no strides."""
    cdef int n_dims = cnp.PyArray_NDIM(a), size = <int>cnp.PyArray_ITEMSIZE(a), dim
    cdef int64_t stride = 1
    cdef Managed *m = new_managed(n_dims)
    m.owner, m.free = <void *>a, free_array
    m.tensor.data, m.tensor.bits = cnp.PyArray_DATA(a), 8 * size
    m.tensor.code = FLOAT if cnp.PyTypeNum_ISFLOAT(cnp.PyArray_TYPE(a)) else BFLOAT
    for dim in range(n_dims - 1, -1, -1):
        m.tensor.shape[dim] = cnp.PyArray_DIM(a, dim)
        m.tensor.strides[dim] = cnp.PyArray_STRIDE(a, dim) // size if cnp.PyArray_SIZE(a) else stride
        stride *= max(m.tensor.shape[dim], 1)
    Py_INCREF(a)
    return taken(exchange, m)


cdef object number_by(const Exchange *exchange, double value, int size):
    """A tensor without axes, of 8 or 4 bytes, or a bfloat16; what is too large is infinite, without a warning."""
    cdef Managed *m = new_managed(0)
    cdef float narrow = <float>value
    cdef uint32_t given
    m.free = free_number
    m.tensor.data, m.tensor.code, m.tensor.bits = &m.number, BFLOAT if size == 2 else FLOAT, 8 * size
    if size == 8:
        m.number = value
    elif size == 4:
        (<float *>m.tensor.data)[0] = narrow
    else:
        memcpy(&given, &narrow, sizeof(given))
        # The upper half, to the nearest, and of two as near to the even one; NaN has bits that stay.
        (<uint16_t *>m.tensor.data)[0] = 0x7fc0 if narrow != narrow else (given + 0x7fff + (given >> 16 & 1)) >> 16
    return taken(exchange, m)


def tensor_of(cnp.ndarray a, kind):
    """The memory of an array of floats as a tensor of that kind."""
    return tensor_by(exchange_of(kind), a)
