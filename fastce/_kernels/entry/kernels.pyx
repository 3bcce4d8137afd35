# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Losses of rows of classes: checks arguments, lays a batch out as tiles of rows (problem.pxi), takes each tile
through sweep, epilogue, write (walk.pxi, rows.h).

Design
------
A. A call is one `Problem`: a plain struct without Python objects, filled with the GIL held, after
   which nothing can fail. The loops below it are `noexcept nogil` functions on raw pointers.
B. Batch axes are ordered by the stride of the logits and merged where all arrays allow it: any memory
   layout is walked in memory order and nothing is copied. The innermost axis is cut into tiles; of few
   classes the longest, where the nearest has fewer than SHORT_AXIS rows.
C. A tile is at most TILE rows whose logits, exps and gradient fit in a cache together. What a row
   needs between its three stages lives in `Rows`, on the stack. A gradient that no cache would hold goes past
   them from the scratch (`may_stream`).
D. Tiles are dealt to at most BLOCKS blocks, blocks to threads. The blocks, and with them every sum, depend
   on the batch and never on the number of threads. A thread writes what it has read.
E. Few rows of many classes would leave threads idle: then the pieces of each row are shared
   (`run_split`). Their boundaries depend on the number of classes alone.
F. All labels are checked before anything the caller can see is written; a call that writes nothing
   of the kind saves that pass. Either way the walk uses no label unchecked: another thread may have
   changed it meanwhile.
G. Below SERIAL_WORK a call stays on its thread: others take 2 to 5 microseconds to join while they still
   spin from the call before. The threshold is 6 to 10 microseconds of work; `python -m fastce bench --suite goals`
   has a batch just above it. Where they sleep already (waits.py) it is WORTH_WAKING times that: waking them takes
   20 to 150 microseconds. Below GIL_WORK, about 1 microsecond, the call keeps the GIL as well.

Refused: a thread pool of our own; dynamic schedules (they lose D); copying to a better layout.
"""

from math import prod

import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from fastce._kernels.entry import advice
from fastce._kernels.entry.gathered import row_bytes, rows_of
from fastce._kernels.entry.arrays cimport (
    FORMAT_F32,
    FORMAT_F64,
    FORMAT_NONE,
    Format,
    Layout,
    PyArray_NewLikeArray,
    Temperature,
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
from fastce._kernels.entry.options cimport (
    MEAN,
    NONE,
    checked_index,
    checked_normalizer,
    checked_number,
    mean,
    reduction_of,
)
from fastce._kernels.machine.threads cimport checked_n_threads, give_back, take

cnp.import_array()

cdef extern from "rows/rows.h" nogil:
    void exp_array_f32(const float *, Py_ssize_t, float m, float *, double *base, double *n) noexcept
    void exp_array_f64(const double *, Py_ssize_t, double m, double *, double *base, double *n) noexcept
    const double exp_scale_f32, exp_scale_f64
    const int exp_steps_f32, exp_steps_f64
    void log1p_array_f32(const float *, Py_ssize_t n, float *) noexcept
    void log1p_array_f64(const double *, Py_ssize_t n, double *) noexcept

include "labels.pxi"
include "problem.pxi"
include "walk.pxi"
include "arguments.pxi"


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
            f"ignore_index is {advice.shown(ignore_index)} with target probabilities, which have no index to ignore; "
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
        raise ValueError(f"kind is {advice.shown(kind)}; expected {', '.join(map(repr, HINGES))}")
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


include "softmax.pxi"
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
