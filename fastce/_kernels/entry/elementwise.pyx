# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Losses whose every element stands alone: checks arguments, deals strips of elements to threads.

Design
------
A. A call is one `Elements`: a plain struct without Python objects, filled with the GIL held, after which
   nothing can fail but a value outside its range, which the strip it is in reports.
B. Elements are numbered in the memory order of the logits, and a strip is STRIP numbers in a row, whatever the
   shape. Each array finds its own way from a number to an address (operands.h): where it is contiguous in that
   order a strip is used in place, otherwise gathered into a scratch on the stack. Nothing is ever broadcast
   in memory.
C. Strips are dealt to at most BLOCKS blocks, blocks to threads. Blocks and sums depend on the number of elements and
   never on that of threads. A thread writes what it has read, and is the first to touch it.
D. Targets are checked strip by strip while they are in cache; only where the caller would see a half-written
   array (`out`) all of them are checked before.
E. Below SERIAL_WORK elements a call stays on its thread, below GIL_WORK it keeps the GIL as well: see G in kernels.pyx.
"""

import numpy as np

cimport numpy as cnp
from cpython.ref cimport Py_INCREF
from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN

from fastce._kernels.entry import advice
from fastce._kernels.entry.arrays cimport (
    FORMAT_F64,
    FORMAT_NONE,
    PyArray_NewLikeArray,
    as_array,
    as_floats,
    check_apart,
    check_out,
    format_of,
    same_memory,
)
from fastce._kernels.machine.environment cimport Environment, enter_environment, leave_environment
from fastce._kernels.entry.options cimport MEAN, NONE, checked_normalizer, checked_number, mean, reduction_of
from fastce._kernels.entry.operands cimport MAX_DIMS, STRIP, Operand, set_elements
from fastce._kernels.machine.threads cimport checked_n_threads, give_back, take

cnp.import_array()

cdef extern from "elements/elementwise.h" nogil:
    enum: GIVEN, TARGET, WEIGHT, POS_WEIGHT, LOSS, GRAD, HESS, N_OPERANDS
    ctypedef enum Formula: WITH_LOGITS, FOCAL, OF_PROBABILITIES
    ctypedef struct Options:
        Formula formula
        int order
        double scale, gamma, alpha
    ctypedef struct Elements:
        Py_ssize_t n
        Options options
        int plain
        Operand *operand
    ctypedef struct Pair:
        double sum, error
    int run_strips(const Elements *, Py_ssize_t begin, Py_ssize_t end, bint check, Pair *) noexcept
    double add_pairs(const Pair *, Py_ssize_t n) noexcept

cdef enum:
    BLOCKS = 64
    SERIAL_WORK = 8192
    GIL_WORK = 1024

cdef struct Partials:                      # one entry per block
    Pair loss[BLOCKS]
    int outside[BLOCKS]


# ---- The walk ----------------------------------------------------------------------------------

cdef int run(const Elements *e, bint check, int n_threads, Partials *partials, double *total) noexcept nogil:
    """All strips, or with `check` their targets alone; whether an element is outside the range it must have."""
    cdef Py_ssize_t n_strips = (e.n + STRIP - 1) // STRIP
    cdef int n_blocks = <int>min(BLOCKS, n_strips), block, outside = False
    n_threads = min(n_threads, n_blocks)
    if n_threads <= 1:
        for block in range(n_blocks):
            partials.outside[block] = run_strips(e, n_strips * block // n_blocks, n_strips * (block + 1) // n_blocks,
                                                 check, &partials.loss[block])
    else:
        for block in prange(n_blocks, schedule="static", num_threads=n_threads):
            partials.outside[block] = run_strips(e, n_strips * block // n_blocks, n_strips * (block + 1) // n_blocks,
                                                 check, &partials.loss[block])
    for block in range(n_blocks):
        outside |= partials.outside[block]
    if not outside:
        total[0] = add_pairs(partials.loss, n_blocks)
    return outside


cdef int run_releasing_gil(const Elements *e, bint check, int n_threads, double *total):
    cdef Partials partials
    cdef int outside, taken
    if e.n < GIL_WORK:
        return run(e, check, 1, &partials, total)
    with nogil:
        taken = take(n_threads, min(BLOCKS, (e.n + STRIP - 1) // STRIP), e.n, SERIAL_WORK)
        outside = run(e, check, taken, &partials, total)
        give_back(taken)
    return outside


# ---- From arguments to elements ----------------------------------------------------------------

cdef int order_dims(cnp.ndarray given, int *order) noexcept:
    """Axes longer than 1, outermost first: broadcast ones, then by distance. Returns how many."""
    cdef int dim, k = 0, i
    cdef Py_ssize_t stride
    cdef Py_ssize_t[MAX_DIMS] key
    for dim in range(cnp.PyArray_NDIM(given)):
        if cnp.PyArray_DIM(given, dim) == 1:
            continue
        stride = abs(cnp.PyArray_STRIDE(given, dim))
        stride = (<size_t>-1) >> 1 if stride == 0 else stride
        i = k
        while i > 0 and key[i - 1] < stride:
            key[i], order[i] = key[i - 1], order[i - 1]
            i -= 1
        key[i], order[i] = stride, dim
        k += 1
    return k


cdef int set_operand(Operand *o, cnp.ndarray a, str name, cnp.ndarray given, const int *order, int n_dims) except -1:
    """Where the elements of `a`, broadcast to the shape of `given`, are; `order` and n_dims: the latter's axes."""
    cdef int missing = cnp.PyArray_NDIM(given) - cnp.PyArray_NDIM(a), dim, i, kept = 0
    cdef Py_ssize_t length, stride, item = cnp.PyArray_ITEMSIZE(a)
    cdef bint fits = missing >= 0
    if fits:
        for dim in range(cnp.PyArray_NDIM(a)):
            length = cnp.PyArray_DIM(a, dim)
            fits = fits and (length == 1 or length == cnp.PyArray_DIM(given, dim + missing))
    if not fits:
        raise ValueError(f"{name} has shape {np.shape(a)}; expected one that broadcasts to {np.shape(given)}, "
                         "the shape of the first argument"
                         + advice.to_broadcast(np.shape(a), np.shape(given), name, cnp.PyArray_ISINTEGER(a)))
    set_elements(o, a)
    for i in range(n_dims):
        dim = order[i]
        length = cnp.PyArray_DIM(given, dim)
        stride = 0
        if dim >= missing and cnp.PyArray_DIM(a, dim - missing) > 1:
            stride = cnp.PyArray_STRIDE(a, dim - missing)
        if kept > 0 and o.stride[kept - 1] == stride * length:
            o.shape[kept - 1] *= length
        else:
            kept += 1
            o.shape[kept - 1] = length
        o.stride[kept - 1] = stride
    if kept == 0:
        kept = 1
        o.shape[0] = 1
        o.stride[0] = item
    o.n_dims = kept
    o.flat = kept == 1 and o.stride[0] == item
    return 0


cdef cnp.ndarray as_targets(object target):
    """An array of a dtype that is read as it is: those of logits, integers and bools."""
    cdef cnp.ndarray a = as_array(target, "target")
    if format_of(a) != FORMAT_NONE or cnp.PyArray_ISINTEGER(a) or cnp.PyArray_ISBOOL(a):
        return a
    raise TypeError(
        f"target has dtype {a.dtype}; expected a floating dtype up to float64, an integer dtype or bool"
        + advice.to_convert(a)
    )


cdef cnp.ndarray new_losses(cnp.ndarray given):
    """An array in the memory order of the logits, of the dtype they are computed in."""
    cdef cnp.dtype dtype = cnp.PyArray_DescrFromType(
        cnp.NPY_DOUBLE if format_of(given) == FORMAT_F64 else cnp.NPY_FLOAT)
    Py_INCREF(dtype)                       # the call below takes it over
    return PyArray_NewLikeArray(given, cnp.NPY_KEEPORDER, <void *>dtype, 0)


cdef int raise_outside(cnp.ndarray a, str name) except -1:
    """Does nothing if every element is in [0, 1]."""
    with np.errstate(invalid="ignore"):
        bad = np.asarray(~((np.asarray(a) >= 0) & (np.asarray(a) <= 1)))
    if not bad.any():
        return 0
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"{name}[{', '.join(map(str, place))}]" if place else name
    raise ValueError(f"{where} is {a[place]}; expected a number in [0, 1]"
                     + advice.to_be_inside(name, float(a[place])))


cdef int raise_changed() except -1:
    raise RuntimeError("an argument was changed by another thread during the call")


cdef cnp.ndarray checked_out(object out, str name, cnp.ndarray given, cnp.ndarray as_given, cnp.ndarray target,
                             cnp.ndarray weight, cnp.ndarray pos_weight):
    """Apart from the caller's arrays, also those converted to be read, but for logits that are read as they are."""
    check_out(out, given, name)
    if not same_memory(out, given):
        check_apart(out, as_given, "logits", name)
    check_apart(out, target, "target", name)
    if weight is not None:
        check_apart(out, weight, "weight", name)
    if pos_weight is not None:
        check_apart(out, pos_weight, "pos_weight", name)
    return out


cdef object binary(Options *options, object first, str name, object given_target, object given_weight,
                   object given_pos_weight, object given_reduction, object given_normalizer, object given_n_threads,
                   object out, object hess_out):
    """The loss, and as many derivatives as options.order says. Sets options.scale."""
    cdef cnp.ndarray given, target, weight = None, pos_weight = None, loss = None, grad = None, hess = None
    cdef cnp.ndarray as_given, weight_as_given = None, pos_weight_as_given = None
    cdef int reduction, n_threads, n_dims, i
    cdef double normalizer, denominator, total = 0
    cdef int[MAX_DIMS] order
    cdef Elements e
    cdef Environment host

    # What runs code of the caller's, in the environment that it expects: __array__ and the like.
    as_given = as_array(first, name)
    given = as_floats(as_given, name)
    target = as_targets(given_target)
    reduction = reduction_of(given_reduction)
    normalizer = checked_normalizer(given_normalizer, reduction)
    n_threads = checked_n_threads(given_n_threads)
    if given_weight is not None:
        weight_as_given = as_array(given_weight, "weight")
        weight = as_floats(weight_as_given, "weight")
    if given_pos_weight is not None:
        pos_weight_as_given = as_array(given_pos_weight, "pos_weight")
        pos_weight = as_floats(pos_weight_as_given, "pos_weight")

    host = enter_environment()
    try:
        e.n = cnp.PyArray_SIZE(given)
        denominator = e.n if given_normalizer is None else normalizer
        options.scale = 1 / denominator if reduction == MEAN else 1
        e.options = options[0]
        e.plain = (options.formula == WITH_LOGITS and weight is None and pos_weight is None
                   and (format_of(given) == FORMAT_F64 or format_of(target) != FORMAT_F64))
        for i in range(N_OPERANDS):
            e.operand[i].data = NULL

        n_dims = order_dims(given, order)
        set_operand(&e.operand[GIVEN], given, name, given, order, n_dims)
        set_operand(&e.operand[TARGET], target, "target", given, order, n_dims)
        if weight is not None:
            set_operand(&e.operand[WEIGHT], weight, "weight", given, order, n_dims)
        if pos_weight is not None:
            set_operand(&e.operand[POS_WEIGHT], pos_weight, "pos_weight", given, order, n_dims)
        if out is not None:
            grad = checked_out(out, "out", given, as_given, target, weight_as_given, pos_weight_as_given)
        if hess_out is not None:
            hess = checked_out(hess_out, "hess_out", given, as_given, target, weight_as_given, pos_weight_as_given)
            if grad is not None:
                check_apart(grad, hess, "hess_out")
        if out is not None or hess_out is not None:
            if not cnp.PyArray_ISBOOL(target) and run_releasing_gil(&e, True, n_threads, &total):
                raise_outside(target, "target")
                raise_changed()
        if options.order >= 1:
            if grad is None:
                grad = PyArray_NewLikeArray(given, cnp.NPY_KEEPORDER, NULL, 0)
            set_operand(&e.operand[GRAD], grad, "out", given, order, n_dims)
        if options.order == 2:
            if hess is None:
                hess = PyArray_NewLikeArray(given, cnp.NPY_KEEPORDER, NULL, 0)
            set_operand(&e.operand[HESS], hess, "hess_out", given, order, n_dims)
        if reduction == NONE:
            loss = new_losses(given)
            set_operand(&e.operand[LOSS], loss, "loss", given, order, n_dims)

        if run_releasing_gil(&e, False, n_threads, &total):
            raise_outside(target, "target")
            if options.formula == OF_PROBABILITIES:
                raise_outside(given, name)
            raise_changed()
        if reduction == MEAN:
            total = mean(total, denominator, given_normalizer is not None)
        result = total if loss is None else loss
        return result if options.order == 0 else (result, grad) if options.order == 1 else (result, grad, hess)
    finally:
        leave_environment(host)


# Each loss once: `order` is the highest derivative, 0 for the loss alone.

def binary_cross_entropy_with_logits(order, logits, target, weight, pos_weight, reduction, normalizer, n_threads,
                                     out=None, hess_out=None):
    cdef Options options = Options(WITH_LOGITS, order, 1, 0, NAN)
    return binary(&options, logits, "logits", target, weight, pos_weight, reduction, normalizer, n_threads, out,
                  hess_out)


def binary_focal_loss(order, logits, target, gamma, alpha, weight, reduction, normalizer, n_threads, out=None):
    cdef Options options = Options(FOCAL, order, 1, checked_number(gamma, "gamma", 0, INFINITY), NAN)
    if alpha is not None:
        options.alpha = checked_number(alpha, "alpha", 0, 1)
    return binary(&options, logits, "logits", target, weight, None, reduction, normalizer, n_threads, out, None)


def binary_cross_entropy(probs, target, weight, reduction, normalizer, n_threads):
    cdef Options options = Options(OF_PROBABILITIES, 0, 1, 0, NAN)
    return binary(&options, probs, "probs", target, weight, None, reduction, normalizer, n_threads, None, None)
