# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Gradients and Hessians for boosted trees: float32 or float64 margins in any layout, derivatives in another.

Design
------
A. A call is one struct without Python objects, filled with the GIL held. Rows pass in tiles, tiles are dealt to at most
   BLOCKS blocks, blocks to threads: see kernels.pyx. No row depends on another, so no bit does on the threads.
B. The arrays that are written belong to an objective, which makes them once: a label that is found wrong leaves
   some of them written. They are checked here for what could write beside them, and no more.
C. Margins stay in their dtype, derivatives are float32 (those of single margins float64 as well) whatever that is.
"""

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange

from fastce._kernels.entry.arrays cimport FORMAT_F32, FORMAT_F64, FORMAT_NONE, Format, Layout, format_of, is_swapped
from fastce._kernels.entry.operands cimport STRIP, Operand, set_elements
from fastce._kernels.machine.threads cimport checked_n_threads, give_back, take

cnp.import_array()

cdef extern from "rows/boosting.h" nogil:
    enum: WELL, WRONG_LABEL, NO_MEMORY
    ctypedef enum Curvature: MULTIPLE, MAGNITUDE, WHOLE
    ctypedef struct Boosting:
        Curvature curvature
        double factor, floor, gamma, smoothing
    ctypedef struct Matrix:
        char *data
        Layout layout
    ctypedef struct Logistic:
        Py_ssize_t n
        Boosting options
        double pos_weight, scale
        Operand margin, target, weight, grad, hess
    ctypedef struct Softmax:
        Py_ssize_t n, n_classes
        Boosting options
        Matrix margins, target, grad, hess
        Operand label, weight
        const double *class_weight
    Py_ssize_t rows_at_once(const Softmax *)
    int run_softmax(const Softmax *, Py_ssize_t begin, Py_ssize_t end) noexcept
    int run_logistic(const Logistic *, Py_ssize_t begin, Py_ssize_t end) noexcept

cdef enum:
    BLOCKS = 64
    SERIAL_WORK = 8192                     # elements

CURVATURES = {"multiple": MULTIPLE, "magnitude": MAGNITUDE, "whole": WHOLE}


# ---- The walk ----------------------------------------------------------------------------------

cdef int run(const Softmax *s, const Logistic *logistic, Py_ssize_t n_tiles, Py_ssize_t work, int n_threads) except -1:
    """One of both; its state."""
    cdef int n_blocks = <int>min(BLOCKS, n_tiles), block, taken, state = WELL
    cdef int[BLOCKS] states
    with nogil:
        taken = take(n_threads, n_blocks, work, SERIAL_WORK)
        if taken <= 1:
            for block in range(n_blocks):
                states[block] = run_block(s, logistic, n_tiles, block, n_blocks)
        else:
            for block in prange(n_blocks, schedule="static", num_threads=taken):
                states[block] = run_block(s, logistic, n_tiles, block, n_blocks)
        give_back(taken)
        for block in range(n_blocks):
            state = max(state, states[block])
    if state == NO_MEMORY:
        raise MemoryError("no memory for the scratch of a few rows")
    return state


cdef inline int run_block(const Softmax *s, const Logistic *logistic, Py_ssize_t n_tiles, int block,
                          int n_blocks) noexcept nogil:
    cdef Py_ssize_t begin = n_tiles * block // n_blocks, end = n_tiles * (block + 1) // n_blocks
    return run_logistic(logistic, begin, end) if s == NULL else run_softmax(s, begin, end)


# ---- From arrays to what is computed -----------------------------------------------------------

cdef int set_vector(Operand *o, cnp.ndarray a, str name, Py_ssize_t n) except -1:
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(a)
    if not (cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIM(a, 0) == n):
        raise ValueError(f"{name} has shape {np.shape(a)}; expected ({n},), an element for each row of the margins")
    if format_of(a) == FORMAT_NONE and not (cnp.PyArray_ISINTEGER(a) or cnp.PyArray_ISBOOL(a)):
        raise TypeError(f"{name} has dtype {a.dtype}; expected numbers: a floating dtype up to float64 or an "
                        "integer dtype")
    set_elements(o, a)
    o.n_dims = 1
    o.shape[0] = n
    o.stride[0] = cnp.PyArray_STRIDE(a, 0) if n > 1 else item
    o.flat = o.stride[0] == item
    return 0


cdef int set_matrix(Matrix *m, cnp.ndarray a, str name, Py_ssize_t n, Py_ssize_t n_classes) except -1:
    if not (cnp.PyArray_NDIM(a) == 2 and cnp.PyArray_DIM(a, 0) == n and cnp.PyArray_DIM(a, 1) == n_classes):
        raise ValueError(f"{name} has shape {np.shape(a)}; expected ({n}, {n_classes}), rows and classes")
    m.data = <char *>cnp.PyArray_DATA(a)
    m.layout.format = <Format>format_of(a)
    m.layout.swapped = is_swapped(a)
    m.layout.row_stride = cnp.PyArray_STRIDE(a, 0)
    m.layout.class_stride = cnp.PyArray_STRIDE(a, 1)
    return 0


cdef int check_floats(cnp.ndarray a, str name, bint output, bint wide) except -1:
    cdef int form = format_of(a)
    if not (form == FORMAT_F32 or (form == FORMAT_F64 and wide)):
        raise TypeError(f"{name} has dtype {a.dtype}; expected float32" + (" or float64" if wide else ""))
    if output and not cnp.PyArray_ISBEHAVED(a):
        raise ValueError(f"{name} is read-only, unaligned or byte-swapped; expected an array to write into")
    return 0


cdef Boosting options_of(str curvature, double factor, double least, double gamma, double smoothing):
    return Boosting(<Curvature><int>CURVATURES[curvature], factor, least, gamma, smoothing)


def softmax_derivatives(cnp.ndarray margins, cnp.ndarray target, cnp.ndarray weight, cnp.ndarray class_weight,
                        str curvature, double factor, double least, double gamma, double smoothing,
                        cnp.ndarray grad, cnp.ndarray hess, n_threads=None):
    """Write gradient and Hessian of rows of margins; `target` holds labels or, of two axes, probabilities.

    `class_weight` is contiguous float64. `weight` and `class_weight` may be None.
    """
    cdef Softmax s
    cdef int threads = checked_n_threads(n_threads)
    cdef Py_ssize_t n_tiles
    if cnp.PyArray_NDIM(margins) != 2 or cnp.PyArray_DIM(margins, 1) == 0:
        raise ValueError(f"margins have shape {np.shape(margins)}; expected (rows, classes)")
    s.n, s.n_classes = cnp.PyArray_DIM(margins, 0), cnp.PyArray_DIM(margins, 1)
    s.options = options_of(curvature, factor, least, gamma, smoothing)
    s.target.data = s.label.data = s.weight.data = NULL
    s.class_weight = NULL
    check_floats(margins, "margins", False, True)
    check_floats(grad, "grad", True, False)
    check_floats(hess, "hess", True, False)
    set_matrix(&s.margins, margins, "margins", s.n, s.n_classes)
    set_matrix(&s.grad, grad, "grad", s.n, s.n_classes)
    set_matrix(&s.hess, hess, "hess", s.n, s.n_classes)
    if cnp.PyArray_NDIM(target) == 2:
        if format_of(target) == FORMAT_NONE:
            raise TypeError(f"target has dtype {target.dtype}; expected probabilities of a floating dtype")
        set_matrix(&s.target, target, "target", s.n, s.n_classes)
    else:
        set_vector(&s.label, target, "target", s.n)
    if weight is not None:
        set_vector(&s.weight, weight, "weight", s.n)
    if class_weight is not None:
        s.class_weight = <const double *>cnp.PyArray_DATA(class_weight)
    n_tiles = (s.n + rows_at_once(&s) - 1) // rows_at_once(&s)
    if run(&s, NULL, n_tiles, s.n * s.n_classes, threads) == WRONG_LABEL:
        raise_label(target, s.n_classes)


def logistic_derivatives(cnp.ndarray margins, cnp.ndarray target, cnp.ndarray weight, double pos_weight, double scale,
                         str curvature, double factor, double least, double gamma, double smoothing,
                         cnp.ndarray grad, cnp.ndarray hess, n_threads=None):
    """Write gradient and Hessian, both times `scale`, of margins that stand alone; `weight` may be None."""
    cdef Logistic s
    cdef int threads = checked_n_threads(n_threads)
    s.n = cnp.PyArray_SIZE(margins)
    s.options = options_of(curvature, factor, least, gamma, smoothing)
    s.pos_weight, s.scale = pos_weight, scale
    s.weight.data = NULL
    check_floats(margins, "margins", False, True)
    check_floats(grad, "grad", True, True)
    check_floats(hess, "hess", True, True)
    set_vector(&s.margin, margins, "margins", s.n)
    set_vector(&s.target, target, "target", s.n)
    set_vector(&s.grad, grad, "grad", s.n)
    set_vector(&s.hess, hess, "hess", s.n)
    if weight is not None:
        set_vector(&s.weight, weight, "weight", s.n)
    if run(NULL, &s, (s.n + STRIP - 1) // STRIP, s.n, threads) == WRONG_LABEL:
        raise_outside(target)


cdef int raise_label(cnp.ndarray target, Py_ssize_t n_classes) except -1:
    a = np.asarray(target)
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~((a >= 0) & (a < n_classes) & (a == np.floor(a))))
    if not bad.size:
        raise RuntimeError("the labels were changed by another thread during the call")
    raise IndexError(f"label {a[bad[0]]} at row {bad[0]}; expected a class, a whole number in [0, {n_classes})")


cdef int raise_outside(cnp.ndarray target) except -1:
    a = np.asarray(target)
    bad = np.flatnonzero(~((a >= 0) & (a <= 1)))
    if not bad.size:
        raise RuntimeError("the labels were changed by another thread during the call")
    raise ValueError(f"label {a[bad[0]]} at row {bad[0]}; expected a number in [0, 1]")
