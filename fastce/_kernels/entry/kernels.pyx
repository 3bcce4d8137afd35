# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Losses of rows of classes: checks arguments, lays a batch out as tiles of rows (walk.pxi), takes each tile
through sweep, epilogue, write (rows.h).

Design
------
A. A call is one `Problem`: a plain struct without Python objects, filled with the GIL held, after
   which nothing can fail. The loops below it are `noexcept nogil` functions on raw pointers.
B. Batch axes are ordered by the stride of the logits and merged where all arrays allow it: any memory
   layout is walked in memory order and nothing is copied. The innermost axis is cut into tiles.
C. A tile is at most TILE rows whose logits, exps and gradient fit in cache together. What a row
   needs between its three stages lives in `Rows`, on the stack.
D. Tiles are dealt to at most BLOCKS blocks, blocks to threads. The blocks, and with them every sum, depend
   on the batch and never on the number of threads. A thread writes what it has read.
E. Few rows of many classes would leave threads idle: then the pieces of each row are shared
   (`run_split`). Their boundaries depend on the number of classes alone.
F. All labels are checked before anything the caller can see is written; a call that writes nothing
   of the kind saves that pass. Either way the walk uses no label unchecked: another thread may have
   changed it meanwhile.
G. Below SERIAL_WORK a call stays on its thread: waking others costs 2 to 5 microseconds while they still
   spin from the call before, and 20 to 50 when they sleep. The threshold is 6 to 10 microseconds of work;
   `python -m fastce bench --suite goals` has a batch just above it. Below GIL_WORK, about 1 microsecond, the
   call keeps the GIL as well.

Refused: a thread pool of our own; dynamic schedules (they lose D); copying to a better layout.
"""

from operator import index

import numpy as np

cimport numpy as cnp
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from fastce._kernels.entry import advice
from fastce._kernels.entry.arrays cimport (
    FORMAT_F32,
    FORMAT_F64,
    FORMAT_NONE,
    Format,
    are_apart,
    as_array,
    as_floats,
    as_labels,
    check_apart,
    check_batch_shape,
    check_out,
    format_of,
    is_swapped,
    labels_of,
    normalised_axis,
    same_memory,
)
from fastce._kernels.machine.environment cimport Environment, enter_environment, leave_environment
from fastce._kernels.entry.options cimport MEAN, NONE, checked_normalizer, checked_number, mean, reduction_of
from fastce._kernels.machine.threads cimport checked_n_threads, give_back, take

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, cnp.PyArray_Descr *, int subok)

cdef extern from "rows/rows.h" nogil:
    void exp_array_f32(const float *, Py_ssize_t, float m, float *, double *base, double *n) noexcept
    void exp_array_f64(const double *, Py_ssize_t, double m, double *, double *base, double *n) noexcept
    const double exp_scale_f32, exp_scale_f64
    const int exp_steps_f32, exp_steps_f64
    void log1p_array_f32(const float *, Py_ssize_t n, float *) noexcept
    void log1p_array_f64(const double *, Py_ssize_t n, double *) noexcept

include "walk.pxi"

# Factors of logits for which the constants of their exps are normal numbers in float32 too.
cdef double LEAST_SCALE = 1e-18, MOST_SCALE = 1e18


# ---- Labels --------------------------------------------------------------------------------------

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


cdef object checked_index(object given, str name, str expected):
    """An int."""
    if type(given) is int:
        return given
    try:
        return index(given)
    except TypeError:
        raise TypeError(f"{name} is {given!r}; expected {expected}") from None


cdef int raise_bad_label(cnp.ndarray target, object ignore_index, Py_ssize_t n_classes) except -1:
    bad = (target < 0) | (target >= n_classes)
    if ignore_index is not None:
        bad &= target != ignore_index
    bad = np.asarray(bad)
    if not bad.any():
        raise RuntimeError("target was changed by another thread during the call")
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"target[{', '.join(map(str, place))}]" if place else "target"
    raise IndexError(
        f"{where} is {target[place]}; expected a class index in [0, {n_classes})"
        + ("" if ignore_index is None else f" or ignore_index={ignore_index}")
        + advice.to_be_class(target[place], n_classes)
    )


cdef Py_ssize_t total_bad(const Problem *p, const Partials *partials) noexcept nogil:
    cdef Py_ssize_t bad = 0
    cdef int block
    for block in range(p.n_blocks):
        bad += partials.counts[block].bad
    return bad


# ---- Options -----------------------------------------------------------------------------------

cdef int set_options(Formula *f, object label_smoothing, object z_loss, object temperature, object softcap) except -1:
    f.smoothing = checked_number(label_smoothing, "label_smoothing", 0, 1)
    f.z_loss = checked_number(z_loss, "z_loss", 0, INFINITY)
    f.has_terms = f.smoothing != 0
    f.temperature.divisor = checked_number(temperature, "temperature", LEAST_SCALE, MOST_SCALE)
    if softcap is not None:
        f.softcap = checked_number(softcap, "softcap", LEAST_SCALE, MOST_SCALE)
        f.transform = SOFTCAP
    return 0


cdef class ClassWeight:
    """Weights of the classes, as the kernels read them: float64, and where there are terms the logits' precision."""

    cdef cnp.ndarray given, wide, terms

    @staticmethod
    cdef ClassWeight of(object given):
        cdef ClassWeight self = ClassWeight()
        self.given = as_floats(given, "weight")
        return self

    cdef int add_to(self, Formula *f, cnp.ndarray logits, Py_ssize_t n_classes) except -1:
        with np.errstate(invalid="ignore"):    # a signalling NaN, maybe of a class that no row has
            self.wide = np.require(self.given, np.float64, "CA")
        if cnp.PyArray_NDIM(self.wide) != 1 or cnp.PyArray_DIM(self.wide, 0) != n_classes:
            raise ValueError(f"weight has shape {np.shape(self.given)}; expected ({n_classes},), one for each class"
                             + advice.to_fit_classes(np.shape(self.given), np.shape(logits), n_classes))
        f.class_weight = <const double *>cnp.PyArray_DATA(self.wide)
        if f.has_terms:
            with np.errstate(all="ignore"):
                self.terms = self.wide if format_of(logits) == FORMAT_F64 else np.require(self.given, np.float32, "CA")
                f.total_weight = (<object>self.terms).sum(dtype=np.float64)
                f.weights_positive = (<object>self.terms).min(initial=1) > 0
            f.term_weight = cnp.PyArray_DATA(self.terms)
            f.heaviest = (<object>self.terms).argmax() if cnp.PyArray_SIZE(self.terms) else 0
        return 0


cdef cnp.ndarray as_targets(object given, bint *are_labels):
    """Class indices, or floating-point numbers: a distribution for each row."""
    cdef cnp.ndarray a
    if type(given) is cnp.ndarray:
        a = given
        if cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(a)):
            are_labels[0] = True
            return a
    a = as_array(given, "target")
    cdef bint has_dtype = hasattr(given, "dtype")
    are_labels[0] = format_of(a) == FORMAT_NONE or (a.size == 0 and not has_dtype)
    return labels_of(a, has_dtype) if are_labels[0] else a


# ---- Losses and their derivatives --------------------------------------------------------------

cdef object loss_of_rows(Problem *p, object given_logits, str name, object given_target, object given_axis,
                         object given_class_weight, object given_weight, object ignore_index, object given_reduction,
                         object given_normalizer, object given_n_threads, int order, object out, object hess_out):
    """The loss, and as many derivatives as `order` says, of a problem that has its formula."""
    cdef bint are_labels = True
    cdef cnp.ndarray logits, target, weight = None, grad = None, hess = None, loss = None
    cdef cnp.ndarray as_given, weight_as_given = None, class_weight_as_given = None
    cdef ClassWeight class_weight = None
    cdef int axis, reduction, n_threads
    cdef double normalizer, total
    cdef bint is_known = given_normalizer is not None
    cdef Formula *f = &p.formula
    cdef Partials partials
    cdef Environment host

    # What runs code of the caller's, in the environment that it expects: __array__ and the like. All of it comes
    # before the arrays are looked at, which it could change.
    as_given = as_array(given_logits, name)
    logits = as_floats(as_given, name)
    given_axis = checked_index(given_axis, "axis", "an int")
    reduction = reduction_of(given_reduction)
    normalizer = checked_normalizer(given_normalizer, reduction)
    n_threads = checked_n_threads(given_n_threads)
    if ignore_index is not None:
        ignore_index = checked_index(ignore_index, "ignore_index", "an int or None")
    if f.kind == CROSS_ENTROPY:
        target = as_targets(given_target, &are_labels)
    else:
        target = as_labels(given_target)
    if given_class_weight is not None:
        class_weight_as_given = as_array(given_class_weight, "weight")
        class_weight = ClassWeight.of(class_weight_as_given)
    if given_weight is not None:
        weight_as_given = as_array(given_weight, "sample_weight")
        weight = as_floats(weight_as_given, "sample_weight")

    host = enter_environment()
    try:
        axis = normalised_axis(given_axis, cnp.PyArray_NDIM(logits), name)
        add_logits(p, logits, axis)
        if p.n_classes == 0 and p.n_rows > 0:
            raise ValueError(
                f"{name} has shape {np.shape(logits)}, no classes along axis {axis}; expected at least one"
            )
        if are_labels:
            check_batch_shape(target, "target", logits, axis)
            set_labels(&p.labels, target, ignore_index, p.n_classes)
            add_operand(p, TARGETS, target, -1)
        else:
            check_distributions(target, logits, ignore_index)
            add_operand(p, Q, target, axis)
            f.has_terms = True
        if class_weight is not None:
            class_weight.add_to(f, logits, p.n_classes)
        if weight is not None:
            if format_of(weight) > FORMAT_F32:
                with np.errstate(invalid="ignore"):
                    weight = weight.astype(np.float32)
            check_batch_shape(weight, "sample_weight", logits, axis)
            add_weights(p, weight)

        if out is not None:
            check_out(out, logits, "out")
            grad = out
            check_apart_from_inputs(grad, "out", name, logits, as_given, target, weight_as_given, class_weight_as_given)
        if hess_out is not None:
            check_out(hess_out, logits, "hess_out")
            hess = hess_out
            check_apart_from_inputs(hess, "hess_out", name, logits, as_given, target, weight_as_given,
                                    class_weight_as_given)
            if grad is not None:
                check_apart(grad, hess, "hess_out")
        if order >= 1:
            if grad is None:
                grad = PyArray_NewLikeArray(logits, cnp.NPY_KEEPORDER, NULL, 0)
            add_operand(p, GRAD, grad, axis)
        if order == 2:
            if hess is None:
                hess = PyArray_NewLikeArray(logits, cnp.NPY_KEEPORDER, NULL, 0)
            add_operand(p, HESS, hess, axis)
        if reduction == NONE:
            loss = new_losses(logits, axis)
            add_losses(p, loss)
        f.by_element = f.transform != AS_GIVEN or order == 2
        lay_out(p)

        p.sums_weights = is_weighted(p) and reduction == MEAN and not is_known
        if order >= 1 and (out is not None or hess_out is not None or reduction == MEAN):
            run_releasing_gil(p, True, n_threads, &partials)
            if total_bad(p, &partials):
                raise_bad_label(target, ignore_index, p.n_classes)
            if reduction == MEAN:
                if not is_known:
                    normalizer = add_pairs(partials.weight, p.n_blocks)
                f.normalizer = normalizer
                is_known, p.sums_weights = True, False
        run_releasing_gil(p, False, n_threads, &partials)
        if total_bad(p, &partials):
            raise_bad_label(target, ignore_index, p.n_classes)

        if reduction == NONE:
            return loss if order == 0 else (loss, grad) if order == 1 else (loss, grad, hess)
        total = add_pairs(partials.loss, p.n_blocks)
        if reduction == MEAN:
            if not is_known:
                normalizer = add_pairs(partials.weight, p.n_blocks)
            total = mean(total, normalizer, given_normalizer is not None)
        return total if order == 0 else (total, grad) if order == 1 else (total, grad, hess)
    finally:
        leave_environment(host)


cdef int check_distributions(cnp.ndarray target, cnp.ndarray logits, object ignore_index) except -1:
    if np.shape(target) != np.shape(logits):
        raise ValueError(
            f"target has shape {np.shape(target)} and dtype {target.dtype}, target probabilities; expected "
            f"{np.shape(logits)}, the shape of the logits, or class indices of an integer dtype"
            + advice.to_be_labels(target, np.shape(logits))
        )
    if not (ignore_index is None or ignore_index == -100):
        raise ValueError(
            f"ignore_index is {ignore_index!r} with target probabilities, which have no index to ignore; "
            "expected None or the default: give those rows a sample_weight of 0"
        )
    return 0


cdef int check_apart_from_inputs(cnp.ndarray out, str out_name, str name, cnp.ndarray logits, cnp.ndarray as_given,
                                 cnp.ndarray target, cnp.ndarray sample_weight, cnp.ndarray weight) except -1:
    """The caller's arrays, also those converted to be read. Only the logits may be overwritten, all of them."""
    if not same_memory(out, logits):
        check_apart(out, as_given, name, out_name)
    check_apart(out, target, "target", out_name)
    if sample_weight is not None:
        check_apart(out, sample_weight, "sample_weight", out_name)
    if weight is not None:
        check_apart(out, weight, "weight", out_name)
    return 0


cdef cnp.ndarray new_losses(cnp.ndarray logits, int axis):
    cdef cnp.npy_intp[MAX_DIMS] shape
    cdef int n_dims = cnp.PyArray_NDIM(logits) - 1, dim
    for dim in range(n_dims):
        shape[dim] = cnp.PyArray_DIM(logits, dim + (dim >= axis))
    return cnp.PyArray_EMPTY(n_dims, shape, cnp.NPY_DOUBLE if format_of(logits) == FORMAT_F64 else cnp.NPY_FLOAT, 0)


# Each loss once, whatever is asked for: `order` is the highest derivative, 0 for the loss alone.

def cross_entropy(order, logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
                  temperature, softcap, reduction, normalizer, n_threads, out=None, hess_out=None):
    cdef Problem p
    begin_problem(&p, CROSS_ENTROPY)
    set_options(&p.formula, label_smoothing, z_loss, temperature, softcap)
    return loss_of_rows(&p, logits, "logits", target, axis, weight, sample_weight, ignore_index, reduction, normalizer,
                        n_threads, order, out, hess_out)


def focal_loss(order, logits, target, gamma, axis, weight, sample_weight, ignore_index, reduction, normalizer,
               n_threads, out=None):
    cdef Problem p
    begin_problem(&p, FOCAL)
    p.formula.gamma = checked_number(gamma, "gamma", 0, INFINITY)
    return loss_of_rows(&p, logits, "logits", target, axis, weight, sample_weight, ignore_index, reduction, normalizer,
                        n_threads, order, out, None)


def margin_cross_entropy(order, cosine, target, scale, margin1, margin2, margin3, axis, weight, sample_weight,
                         ignore_index, reduction, normalizer, n_threads, out=None):
    cdef Problem p
    begin_problem(&p, MARGIN)
    p.formula.transform = COSINES
    p.formula.scale = checked_number(scale, "scale", LEAST_SCALE, MOST_SCALE)
    p.formula.temperature.factor = p.formula.scale
    p.formula.margin1 = checked_number(margin1, "margin1", LEAST_SCALE, MOST_SCALE)
    p.formula.margin2 = checked_number(margin2, "margin2", -INFINITY, INFINITY)
    p.formula.margin3 = checked_number(margin3, "margin3", -INFINITY, INFINITY)
    return loss_of_rows(&p, cosine, "cosine", target, axis, weight, sample_weight, ignore_index, reduction, normalizer,
                        n_threads, order, out, None)


HINGES = {"one_vs_rest": ONE_VS_REST, "multi_margin": MULTI_MARGIN, "crammer_singer": CRAMMER_SINGER}


def hinge_loss(order, logits, target, kind, p, margin, axis, weight, sample_weight, ignore_index, reduction, normalizer,
               n_threads, out=None):
    cdef Problem problem
    begin_problem(&problem, HINGE)
    if not (isinstance(kind, str) and kind in HINGES):
        raise ValueError(f"kind is {kind!r}; expected {', '.join(map(repr, HINGES))}")
    problem.formula.hinge = HINGES[kind]
    if checked_number(p, "p", 1, 2) not in (1, 2):
        raise ValueError(f"p is {p!r}; expected 1 or 2")
    problem.formula.power = <int>checked_number(p, "p", 1, 2)
    problem.formula.margin = checked_number(margin, "margin", -MOST_SCALE, MOST_SCALE)
    return loss_of_rows(&problem, logits, "logits", target, axis, weight, sample_weight, ignore_index, reduction,
                        normalizer, n_threads, order, out, None)


def nll_loss(log_probs, target, axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads):
    cdef Problem p
    begin_problem(&p, NLL)
    return loss_of_rows(&p, log_probs, "log_probs", target, axis, weight, sample_weight, ignore_index, reduction,
                        normalizer, n_threads, 0, None, None)


# ---- Softmax, its logarithm and that of its sum ---------------------------------------------------

cdef int usual_axis(object a, object axis) except -2:
    """The class axis of a native array with elements that the kernels read; -1: not that, or more than one axis."""
    cdef Py_ssize_t number
    if type(a) is not cnp.ndarray or not cnp.PyArray_SIZE(a) or is_swapped(a) or format_of(a) == FORMAT_NONE:
        return -1
    cdef int n_dims = cnp.PyArray_NDIM(a)
    if axis is None:
        return 0 if n_dims == 1 else -1
    if type(axis) is not int or not -n_dims <= axis < n_dims:
        return -1
    number = axis
    return <int>(number + n_dims if number < 0 else number)


cdef bint usual_out(object given, cnp.ndarray x) except -1:
    """An array like x that takes its place or is nowhere near it."""
    if type(given) is not cnp.ndarray:
        return False
    cdef cnp.ndarray out = given
    if not (cnp.PyArray_SAMESHAPE(out, x) and cnp.PyArray_TYPE(out) == cnp.PyArray_TYPE(x) and not is_swapped(out)):
        return False
    return (cnp.PyArray_ISWRITEABLE(out) and cnp.PyArray_IS_C_CONTIGUOUS(out)
            and (same_memory(out, x) or are_apart(out, x)))


def usual_softmax(bint log, x, axis, out, n_threads):
    """The softmax or its logarithm of an array along an axis, if the arguments are as they usually are."""
    cdef int number = usual_axis(x, axis)
    if number < 0 or not (out is None or usual_out(out, x)):
        return NotImplemented
    if out is None:
        out = PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    softmax(x, number, out, n_threads, log)
    return out


def usual_logsumexp(a, axis, b, keepdims, return_sign, out, n_threads):
    """The same for logsumexp without options."""
    if b is not None or out is not None or keepdims or return_sign:
        return NotImplemented
    cdef int number = usual_axis(a, axis)
    if number < 0 or format_of(a) > FORMAT_F32:
        return NotImplemented
    cdef cnp.ndarray loss = new_losses(a, number)
    log_sums(a, number, None, loss, None, n_threads)
    return loss if cnp.PyArray_NDIM(loss) else loss[()]


cpdef softmax(cnp.ndarray x, int axis, cnp.ndarray out, n_threads, bint log):
    """Write the softmax of x along an axis, or its logarithm, into out, which may be x."""
    cdef int threads = checked_n_threads(n_threads)
    cdef Partials partials
    cdef Problem p
    begin_problem(&p, LOG_SOFTMAX if log else SOFTMAX)
    add_logits(&p, x, axis)
    add_operand(&p, GRAD, out, axis)
    lay_out(&p)
    cdef Environment host = enter_environment()
    run_releasing_gil(&p, False, threads, &partials)
    leave_environment(host)


def logsumexp(cnp.ndarray a, int axis, cnp.ndarray b, n_threads):
    """log |sum of b exp(a)| along an axis and the sign of the sum, in the dtype that is computed in; b may be None."""
    cdef cnp.ndarray loss = new_losses(a, axis), sign = np.empty_like(loss)
    log_sums(a, axis, b, loss, sign, n_threads)
    return loss, sign


cdef int log_sums(cnp.ndarray a, int axis, cnp.ndarray b, cnp.ndarray loss, cnp.ndarray sign, n_threads) except -1:
    cdef int threads = checked_n_threads(n_threads)
    cdef Partials partials
    cdef Problem p
    begin_problem(&p, LOG_SUM_EXP)
    add_logits(&p, a, axis)
    if b is not None:
        add_operand(&p, Q, b, axis)
        p.formula.by_element = True
    add_losses(&p, loss)
    if sign is not None:
        add_operand(&p, SIGN, sign, -1)
    lay_out(&p)
    cdef Environment host = enter_environment()
    run_releasing_gil(&p, False, threads, &partials)
    leave_environment(host)
    return 0


include "linear.pxi"


# ---- For the tests that measure vmath.h ----------------------------------------------------------

EXP_SCALE = {"float32": exp_scale_f32, "float64": exp_scale_f64}
EXP_STEPS = {"float32": exp_steps_f32, "float64": exp_steps_f64}


def scaled_exp(x, m):
    """exp((x - base) - n * ln2 / EXP_STEPS) * EXP_SCALE of a contiguous float32 or float64 vector x <= m.

    Returns base and n too: what the exps of a row with maximum m are against.
    """
    out = np.empty_like(x)
    cdef cnp.ndarray a = x, b = out
    cdef double base, n
    if x.dtype == np.float32:
        exp_array_f32(<float *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), m, <float *>cnp.PyArray_DATA(b), &base, &n)
    else:
        exp_array_f64(<double *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), m, <double *>cnp.PyArray_DATA(b), &base, &n)
    return out, base, n


def log1p(t):
    """log1p of a contiguous float32 or float64 vector, t >= 0."""
    out = np.empty_like(t)
    cdef cnp.ndarray a = t, b = out
    if t.dtype == np.float32:
        log1p_array_f32(<float *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), <float *>cnp.PyArray_DATA(b))
    else:
        log1p_array_f64(<double *>cnp.PyArray_DATA(a), cnp.PyArray_SIZE(a), <double *>cnp.PyArray_DATA(b))
    return out
