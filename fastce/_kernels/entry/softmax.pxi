# Softmax, its logarithm and that of its sum. A part of kernels.pyx.

cdef int usual_axis(object a, object axis) except -2:
    """The class axis of a native array with elements that the kernels read; -1: not that, or more than one axis.

    Without an axis it is that of the array as one row, which it is in memory.
    """
    cdef Py_ssize_t number
    if type(a) is not cnp.ndarray or not cnp.PyArray_SIZE(a) or is_swapped(a) or format_of(a) == FORMAT_NONE:
        return -1
    cdef int n_dims = cnp.PyArray_NDIM(a)
    if axis is None:
        return 0 if n_dims == 1 or (n_dims and cnp.PyArray_IS_C_CONTIGUOUS(a)) else -1
    if type(axis) is not int or not -n_dims <= axis < n_dims:
        return -1
    number = axis
    return <int>(number + n_dims if number < 0 else number)


cdef cnp.ndarray as_one_row(cnp.ndarray a):
    return a if cnp.PyArray_NDIM(a) == 1 else cnp.PyArray_Ravel(a, cnp.NPY_CORDER)


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
    if axis is None:
        softmax(as_one_row(x), 0, as_one_row(out), n_threads, log)
    else:
        softmax(x, number, out, n_threads, log)
    return out


cdef bint usual_factors(object given, cnp.ndarray a) except -1:
    """An array like a, whose elements lie as those of a if it may be that a is one row."""
    if type(given) is not cnp.ndarray:
        return False
    cdef cnp.ndarray b = given
    return (cnp.PyArray_SAMESHAPE(b, a) and cnp.PyArray_TYPE(b) == cnp.PyArray_TYPE(a) and not is_swapped(b)
            and cnp.PyArray_IS_C_CONTIGUOUS(b))


def usual_logsumexp(a, axis, b, keepdims, return_sign, out, n_threads):
    """The same for logsumexp."""
    cdef int number = usual_axis(a, axis)
    if number < 0 or out is not None or (return_sign and b is None) or not (b is None or usual_factors(b, a)):
        return NotImplemented
    if cnp.PyArray_TYPE(a) == cnp.NPY_VOID:    # PyTorch's bfloat16, which NumPy cannot round to
        return NotImplemented
    cdef cnp.ndarray x = as_one_row(a) if axis is None else a, sign = None
    cdef cnp.ndarray loss = new_losses(x, number)
    if b is None:
        log_sums(x, number, None, loss, None, n_threads)
    else:
        sign = np.empty_like(loss)
        log_sums(x, number, as_one_row(b) if axis is None else b, loss, sign, n_threads)
        if not return_sign:
            loss[sign < 0] = np.nan
    if format_of(x) > FORMAT_F32:
        with np.errstate(over="ignore", under="ignore"):
            loss = loss.astype(x.dtype)
            sign = None if sign is None else sign.astype(x.dtype)
    if keepdims:
        shape = (1,) * np.ndim(a) if axis is None else np.shape(a)[:number] + (1,) + np.shape(a)[number + 1:]
        loss, sign = loss.reshape(shape), None if sign is None else sign.reshape(shape)
    result = loss if cnp.PyArray_NDIM(loss) else loss[()]
    return (result, sign if cnp.PyArray_NDIM(sign) else sign[()]) if return_sign else result


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


def log_softmax_backward(cnp.ndarray grad, cnp.ndarray log_p, int axis, cnp.ndarray out, n_threads, double scale):
    """Write grad - softmax times the sum of grad along an axis into out: a cross-entropy's gradient by a target -grad.

    A `scale` by a power of two keeps the few gradients of a large mean from the walk by the maximum (LEAST_WEIGHT).
    """
    cdef int threads = checked_n_threads(n_threads)
    cdef Partials partials
    cdef Problem p
    begin_problem(&p, CROSS_ENTROPY)
    add_logits(&p, log_p, axis)
    add_operand(&p, Q, grad, axis)
    add_operand(&p, GRAD, out, axis)
    p.formula.has_terms = True
    lay_out(&p)
    p.formula.share, p.formula.normalizer = -scale, scale
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
