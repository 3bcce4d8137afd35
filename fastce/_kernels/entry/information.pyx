# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Information measures of given distributions: checks arguments, deals rows, or pieces of them, to threads.

Design
------
A. A call is one `Measures`: a plain struct without Python objects, filled with the GIL held. Nothing is broadcast or
   converted in memory: each array has its own way from a row's number to its events (operands.h).
B. Rows are numbered by where those of p and q lie; those that are read together pass a scratch on the stack where they
   are not float64 side by side. A row's sum is one tree, pieces of it that of a longer one: no bit depends on
   the threads, the layout or the rows beside it.
C. Numbers are checked where they are read. An improper one ends the call, whose result nobody has seen; then it
   is looked for.
D. Below SERIAL_WORK events a call stays on its thread, below GIL_WORK it keeps the GIL as well: see G in kernels.pyx.
"""

from math import inf
from numbers import Real

import numpy as np

cimport numpy as cnp
from cpython.ref cimport Py_INCREF
from cython.parallel cimport prange
from libc.math cimport log
from libc.stdlib cimport free, malloc

from fastce._kernels.entry import advice
from fastce._kernels.entry.arrays cimport (
    FORMAT_F64,
    FORMAT_NONE,
    PyArray_NewLikeArray,
    as_array,
    as_floats,
    format_of,
    normalised_axis,
)
from fastce._kernels.machine.environment cimport Environment, enter_environment, leave_environment
from fastce._kernels.entry.operands cimport MAX_DIMS, STRIP, Operand, set_elements
from fastce._kernels.machine.threads cimport give_back, take

cnp.import_array()

cdef extern from "elements/information.h" nogil:
    enum: FEW, PIECE, FAR_ROWS
    ctypedef enum Measure: SELF_INFORMATION, ENTROPY, CROSS_ENTROPY, DIVERGENCE
    ctypedef struct Base:
        double inverse, divisor
    const Base nats, shannons, hartleys
    ctypedef struct Given:
        Operand rows
        Py_ssize_t event_stride
    ctypedef struct Sums:
        pass
    ctypedef struct Measures:
        Measure measure
        int narrow
        Base base
        Py_ssize_t n_rows, n_events, n_together, n_pieces
        Given p, q
        Operand result
        Sums *sums
    int run_units(const Measures *, Py_ssize_t begin, Py_ssize_t end) noexcept
    void join_pieces(const Measures *) noexcept

cdef enum:
    BLOCKS = 64
    SERIAL_WORK = 4096
    GIL_WORK = 512


# ---- The walk ----------------------------------------------------------------------------------

cdef int run(const Measures *m, int n_threads, Py_ssize_t n_units) noexcept nogil:
    cdef int n_blocks = <int>min(BLOCKS, n_units), block, outside = False
    cdef int[BLOCKS] states
    if n_threads <= 1:
        return run_units(m, 0, n_units)
    for block in prange(n_blocks, schedule="static", num_threads=n_threads):
        states[block] = run_units(m, n_units * block // n_blocks, n_units * (block + 1) // n_blocks)
    for block in range(n_blocks):
        outside |= states[block]
    return outside


cdef int run_releasing_gil(Measures *m) except -1:
    """Whether some number is improper."""
    cdef Py_ssize_t n_units = (m.n_rows + m.n_together - 1) // m.n_together * m.n_pieces
    cdef Py_ssize_t work = m.n_rows * m.n_events
    cdef int taken, outside
    if work < GIL_WORK:
        return run_units(m, 0, n_units)
    if m.n_pieces > 1:
        m.sums = <Sums *>malloc(m.n_rows * m.n_pieces * sizeof(Sums))
        if m.sums == NULL:
            raise MemoryError("no memory for the sums of the pieces of rows")
    with nogil:
        taken = take(0, min(BLOCKS, n_units), work, SERIAL_WORK)
        outside = run(m, taken, n_units)
        if m.sums != NULL and not outside:
            join_pieces(m)
        give_back(taken)
        free(m.sums)
    return outside


# ---- From arguments to rows --------------------------------------------------------------------

cdef Py_ssize_t stride_of(cnp.ndarray a, int dim, int n_dims) noexcept:
    """Of axis `dim` of n_dims that the array is broadcast to."""
    dim -= n_dims - cnp.PyArray_NDIM(a)
    return cnp.PyArray_STRIDE(a, dim) if dim >= 0 and cnp.PyArray_DIM(a, dim) > 1 else 0


cdef Py_ssize_t length_of(cnp.ndarray a, int dim, int n_dims) noexcept:
    dim -= n_dims - cnp.PyArray_NDIM(a)
    return cnp.PyArray_DIM(a, dim) if dim >= 0 else 1


cdef void set_rows(Operand *o, cnp.ndarray a, const Py_ssize_t *shape, const Py_ssize_t *stride, int n_dims) noexcept:
    """Axes of rows, the outermost first, merged where they are evenly spaced."""
    cdef int dim, kept = 0
    set_elements(o, a)
    o.shape[0], o.stride[0] = 1, cnp.PyArray_ITEMSIZE(a)
    for dim in range(n_dims):
        if kept > 0 and o.stride[kept - 1] == stride[dim] * shape[dim]:
            kept -= 1
            o.shape[kept] *= shape[dim]
        else:
            o.shape[kept] = shape[dim]
        o.stride[kept] = stride[dim]
        kept += 1
    o.n_dims = max(kept, 1)
    o.flat = o.n_dims == 1 and o.stride[0] == cnp.PyArray_ITEMSIZE(a)


cdef int set_base(Base *base, object given, bint whole) except -1:
    """Nats, bits and hartleys by logarithms of their own, `whole` for their own powers; others by a divisor."""
    cdef Environment host
    cdef double value = inf                # of an int beyond float64
    base[0] = nats
    if given is None:
        return 0
    if not isinstance(given, Real) or isinstance(given, bool):
        raise TypeError(f"base is {advice.shown(given)}; expected a number, or None for e")
    try:
        value = float(given)
    except OverflowError:
        pass
    if not (0 < value < inf and value != 1):
        raise ValueError(
            f"base is {advice.shown(given)}; expected a finite number above 0 other than 1, or None for e"
        )
    if whole and value in (2, 10):
        base[0] = shannons if value == 2 else hartleys
    else:
        host = enter_environment()
        base.divisor = log(value)
        leave_environment(host)
    return 0


cdef int raise_improper(cnp.ndarray a, str name) except -1:
    """Does nothing if every number is finite and at least 0."""
    with np.errstate(invalid="ignore"):    # of a signalling NaN
        values = a.astype(np.float64)
    wrong = ~((values >= 0) & (values < inf))
    if not wrong.any():
        return 0
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f" at {place}" if place else ""
    raise ValueError(
        f"{name} is {values[place]}{where}; expected finite probabilities of at least 0"
        + advice.to_be_inside("probs", values[place])
    )


cdef object measured(Measure measure, object given_p, object given_q, object axis, object base):
    cdef Measures m
    cdef cnp.ndarray p, q, result
    cdef cnp.dtype dtype
    cdef bint wide, is_far = False
    cdef int n_dims, events = -1, dim, kept = 0, k, i
    cdef Py_ssize_t length, key
    cdef Py_ssize_t[MAX_DIMS] shape, rows, result_stride, p_stride, q_stride, keys
    cdef int[MAX_DIMS] order
    cdef cnp.npy_intp[MAX_DIMS] result_shape

    # What runs code of the caller's comes before the arrays are looked at, which it could change.
    set_base(&m.base, base, measure != DIVERGENCE)
    p = q = as_array(given_p, "p")
    wide = format_of(p) == FORMAT_F64 or format_of(p) == FORMAT_NONE
    p = q = as_floats(p, "p")
    if measure >= CROSS_ENTROPY:
        q = as_array(given_q, "q")
        wide = wide or format_of(q) == FORMAT_F64 or format_of(q) == FORMAT_NONE
        q = as_floats(q, "q")
    n_dims = max(cnp.PyArray_NDIM(p), cnp.PyArray_NDIM(q))
    for dim in range(n_dims):
        shape[dim], length = length_of(p, dim, n_dims), length_of(q, dim, n_dims)
        if shape[dim] == 1:
            shape[dim] = length
        elif length != 1 and length != shape[dim]:
            raise ValueError(f"p has shape {np.shape(p)} and q has shape {np.shape(q)}; expected shapes that broadcast")
    m.n_events = 1
    if measure != SELF_INFORMATION:
        events = normalised_axis(axis, n_dims, "the array")
        m.n_events = shape[events]
    m.p.event_stride, m.q.event_stride = stride_of(p, events, n_dims), stride_of(q, events, n_dims)

    dtype = cnp.PyArray_DescrFromType(cnp.NPY_DOUBLE if wide else cnp.NPY_FLOAT)
    if measure == SELF_INFORMATION:
        Py_INCREF(dtype)                   # the call below takes it over
        result = PyArray_NewLikeArray(p, cnp.NPY_KEEPORDER, <void *>dtype, 0)
    else:
        for dim in range(n_dims):
            if dim != events:
                result_shape[kept] = shape[dim]
                kept += 1
        result = cnp.PyArray_EMPTY(kept, result_shape, dtype.type_num, 0)
    m.n_rows = cnp.PyArray_SIZE(result)

    kept = 0                               # axes of rows, where steps are long first
    for dim in range(n_dims):
        if dim == events or shape[dim] == 1:
            continue
        key = abs(stride_of(p, dim, n_dims)) + abs(stride_of(q, dim, n_dims))
        i = kept
        while i > 0 and keys[i - 1] < key:
            keys[i], order[i] = keys[i - 1], order[i - 1]
            i -= 1
        keys[i], order[i] = key, dim
        kept += 1
    for k in range(kept):
        dim = order[k]
        rows[k] = shape[dim]
        p_stride[k], q_stride[k] = stride_of(p, dim, n_dims), stride_of(q, dim, n_dims)
        result_stride[k] = cnp.PyArray_STRIDE(result, dim - (events >= 0 and dim > events))
    set_rows(&m.p.rows, p, rows, p_stride, kept)
    set_rows(&m.q.rows, q, rows, q_stride, kept)
    set_rows(&m.result, result, rows, result_stride, kept)

    if kept > 0:
        is_far = (0 < abs(p_stride[kept - 1]) < abs(m.p.event_stride)
                  or 0 < abs(q_stride[kept - 1]) < abs(m.q.event_stride))
    m.n_together = FAR_ROWS if is_far and m.n_events > FEW else max(STRIP // max(m.n_events, 1), 1)
    m.n_pieces = max((m.n_events + PIECE - 1) // PIECE, 1)
    m.measure, m.sums = measure, NULL
    m.narrow = not wide and measure != DIVERGENCE and m.base.inverse == 1
    if m.n_rows > 0 and run_releasing_gil(&m):
        raise_improper(p, "p")
        raise_improper(q, "q")
        raise RuntimeError("an argument was changed by another thread during the call")
    return result if cnp.PyArray_NDIM(result) > 0 else result[()]


def self_information(p, base):
    return measured(SELF_INFORMATION, p, None, None, base)


def entropy(p, axis, base):
    return measured(ENTROPY, p, None, axis, base)


def cross_entropy(p, q, axis, base):
    return measured(CROSS_ENTROPY, p, q, axis, base)


def kl_divergence(p, q, axis, base):
    return measured(DIVERGENCE, p, q, axis, base)
