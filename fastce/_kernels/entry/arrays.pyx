# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Arrays as they are given: what becomes of their dtypes, and what is refused. Shared by all levels."""

import numpy as np

cimport numpy as cnp
from cpython.buffer cimport PyObject_CheckBuffer
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.sequence cimport PySequence_Check

from fastce._kernels.entry import advice
from fastce._kernels.entry.dlpack cimport array_of
from fastce._kernels.entry.dlpack import BFLOAT16_BITS, has_exchange
from fastce._kernels.entry.options cimport checked_index
from fastce._kernels.machine.environment cimport Environment, enter_environment, leave_environment

cnp.import_array()


def refuse_masked(a, str name, int depth):
    """Masked arrays, also in sequences within so many sequences: NumPy would take the numbers under the mask."""
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} is or holds a masked array, whose mask would be lost; expected plain ones: "
                        "use .filled()")
    if depth == 0 or isinstance(a, str) or PyObject_CheckBuffer(a) or hasattr(a, "__array__"):
        return
    if is_sequence(a):
        for part in a:
            refuse_masked(part, name, depth - 1)


cdef bint is_sequence(object a) except -1:
    """As NumPy sees it. Its type may seem to have what only the type's own type has: a member of an Enum has no len."""
    if not PySequence_Check(a):
        return False
    try:
        len(a)
    except Exception:
        return False
    return True


cdef cnp.ndarray converted(object a, object dtype=None):
    """By NumPy, which may have to round."""
    cdef Environment host = enter_environment()
    try:
        return np.asarray(a, dtype)
    finally:
        leave_environment(host)


cdef cnp.ndarray new_array(object a, str name):
    """as_array of what is no plain array."""
    cdef bint has_protocol = hasattr(a, "__array__")
    cdef bint exports = not has_protocol and hasattr(a, "__dlpack__")
    if not (has_protocol or exports):
        refuse_masked(a, name, 1)
    try:
        given = np.asanyarray(a) if has_protocol else np.from_dlpack(a) if exports else converted(a)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        if has_protocol and isinstance(error, TypeError) and has_exchange(a) \
                and str(getattr(a, "dtype", "")).endswith("bfloat16"):
            given = tensor_of_bfloat16(a, name, error)
        else:
            raise no_array(a, name, error) from error
    if has_protocol or exports:
        refuse_masked(given, name, 0)
    elif given.ndim > 1:
        refuse_masked(a, name, given.ndim)     # after NumPy has seen how deep it is, and that it ends
    return np.asarray(given)


cdef object no_array(object a, str name, error):
    """The exception for what NumPy refused."""
    kind = ValueError if isinstance(error, ValueError) else TypeError
    return kind(f"{name} is a {advice.kind_of(a)} that NumPy makes no array of ({str(error).rstrip('.')})"
                + advice.to_read(a))


cdef cnp.ndarray tensor_of_bfloat16(object a, str name, error):
    """A tensor that NumPy has refused with that error, maybe because it has no such dtype."""
    try:
        given = array_of(a)
    except (RuntimeError, TypeError):      # without memory or strides, or elsewhere
        raise no_array(a, name, error) from error
    return with_bfloat16(given, name)


cdef cnp.ndarray with_bfloat16(cnp.ndarray a, str name):
    """Bits as the dtype that the caller can compute with, and gets its gradient in."""
    if a.dtype != BFLOAT16_BITS:
        return a
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(f"{name} is of bfloat16, which NumPy has from ml_dtypes: pip install ml_dtypes, "
                        "use fastce.torch for tensors, or convert it to float32") from None
    return a.view(ml_dtypes.bfloat16)


cdef object bits = BFLOAT16_BITS
cdef int bfloat16 = cnp.NPY_NOTYPE    # the number of ml_dtypes' type, once it was met: names take a microsecond


cdef int other_format(cnp.ndarray a) except -1:
    """format_of what is neither float32 nor float64."""
    global bfloat16
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT16:
        return FORMAT_F16
    if number == bfloat16:
        return FORMAT_BF16
    if number == cnp.NPY_VOID and <object>cnp.PyArray_DESCR(a) is bits:
        return FORMAT_BF16
    if cnp.PyTypeNum_ISUSERDEF(number) and a.dtype.name == "bfloat16":
        bfloat16 = number
        return FORMAT_BF16
    return FORMAT_NONE


cdef bint is_swapped(cnp.ndarray a) noexcept:
    return not cnp.PyArray_ISNOTSWAPPED(a)


cdef cnp.ndarray as_floats(object given, str name):
    """An array of a dtype the kernels read; integers and bools become float64."""
    cdef cnp.ndarray a = as_array(given, name)
    if format_of(a) != FORMAT_NONE:
        return a
    if a.dtype.kind in "iub":
        return converted(a, np.float64)
    raise TypeError(
        f"{name} has dtype {a.dtype}; expected float32, float64, float16, bfloat16 (of ml_dtypes), "
        "an integer dtype or bool" + advice.to_convert(a)
    )


cdef cnp.ndarray as_labels(object given, str name="target"):
    return labels_of(as_array(given, name), hasattr(given, "dtype"), name)


cdef cnp.ndarray labels_of(cnp.ndarray a, bint has_dtype, str name="target"):
    """The array, if it is one of class indices; `has_dtype`: as it was given, which [] has not."""
    if a.size == 0 and not has_dtype:
        return a.astype(np.intp)
    if not cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(a)):
        raise TypeError(f"{name} has dtype {a.dtype}; expected class indices of an integer dtype"
                        + advice.to_convert(a, labels=True))
    return a


cdef int normalised_axis(object axis, int n_dims, str name="logits") except -1:
    cdef Py_ssize_t number
    cdef int beyond = 0
    if n_dims == 0:
        raise np.exceptions.AxisError(f"{name} is a scalar; expected at least one axis, the classes")
    if type(axis) is not int:
        axis = checked_index(axis, "axis", "an int")
    number = PyLong_AsLongLongAndOverflow(axis, &beyond)
    if beyond:                             # it may have too many digits for NumPy's own message
        raise np.exceptions.AxisError(f"axis {advice.shown(axis)} is out of bounds for array of dimension {n_dims}")
    if not -n_dims <= number < n_dims:
        raise np.exceptions.AxisError(axis, n_dims)
    return <int>(number + n_dims if number < 0 else number)


cdef int check_batch_shape(cnp.ndarray a, str name, cnp.ndarray logits, int axis) except -1:
    """The array must have the logits' shape without the class axis."""
    cdef int n_dims = cnp.PyArray_NDIM(logits), dim
    cdef bint same = cnp.PyArray_NDIM(a) == n_dims - 1
    if same:
        for dim in range(n_dims - 1):
            same = same and cnp.PyArray_DIM(a, dim) == cnp.PyArray_DIM(logits, dim + (dim >= axis))
    if not same:
        shape = np.shape(logits)
        raise ValueError(
            f"{name} has shape {np.shape(a)}; expected {shape[:axis] + shape[axis + 1:]}, "
            f"the shape {shape} of the logits without the class axis {axis}"
            + advice.to_fit_rows(np.shape(a), shape, axis, name)
        )
    return 0


# ---- Arrays to write into ------------------------------------------------------------------------

cdef int check_out(object given, cnp.ndarray logits, str name="out", str of="the logits") except -1:
    """Refuse what a derivative can't be written into: another shape or dtype, read-only, overlapping itself."""
    if type(given) is not cnp.ndarray:
        if not isinstance(given, np.ndarray):
            raise TypeError(f"{name} is a {type(given).__name__}; expected an ndarray to write into")
        if isinstance(given, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array; expected a plain ndarray")
    cdef cnp.ndarray out = given
    cdef int n_dims = cnp.PyArray_NDIM(logits), dim
    cdef bint same = cnp.PyArray_NDIM(out) == n_dims and cnp.PyArray_EquivArrTypes(out, logits)
    if same:
        for dim in range(n_dims):
            same = same and cnp.PyArray_DIM(out, dim) == cnp.PyArray_DIM(logits, dim)
    if not same:
        raise ValueError(
            f"{name} has shape {np.shape(out)} and dtype {out.dtype}; expected those of {of}, "
            f"{np.shape(logits)} and {logits.dtype}: use numpy.empty_like"
        )
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError(f"{name} is read-only; expected a writable array: use a copy")
    return check_separate_elements(out, name)


cdef int check_separate_elements(cnp.ndarray out, str name) except -1:
    if not cnp.PyArray_IS_C_CONTIGUOUS(out) and overlaps_itself(out):
        strides = (<object>out).strides
        raise ValueError(
            f"{name} has strides {strides} for shape {np.shape(out)}: elements may share memory; "
            "expected one place for each: use numpy.empty_like"
        )
    return 0


cdef bint overlaps_itself(object a):
    """Some axis steps by less than what the axes inside it take up."""
    cdef Py_ssize_t taken = a.itemsize, stride, length
    if a.size == 0:
        return False
    for stride, length in sorted((abs(stride), length) for stride, length in zip(a.strides, a.shape)):
        if length > 1:
            if stride < taken:
                return True
            taken += stride * (length - 1)
    return False


cdef bint same_memory(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Every element of two arrays of one shape has the same address."""
    cdef bint same = cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b)
    cdef int dim
    for dim in range(cnp.PyArray_NDIM(a)):
        same = same and (cnp.PyArray_STRIDE(a, dim) == cnp.PyArray_STRIDE(b, dim) or cnp.PyArray_DIM(a, dim) <= 1)
    return same


cdef int check_apart(cnp.ndarray out, cnp.ndarray a, str name, str out_name="out") except -1:
    """Refuse an `out` that shares memory with an input, or may: where finding out would take long."""
    if cnp.PyArray_SIZE(out) == 0 or are_apart(out, a):
        return 0
    verb = "overlaps"
    try:
        if not np.shares_memory(out, a, max_work=100_000):
            return 0
    except np.exceptions.TooHardError:
        verb = "may overlap"
    raise ValueError(
        f"{out_name} {verb} {name} in memory; expected separate arrays"
        + (f", or {out_name}=logits to overwrite all of it" if name == "logits" else "")
    )


cdef bint are_apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """One ends before the other begins."""
    return first_byte(a) >= end_byte(b) or first_byte(b) >= end_byte(a)


cdef char *first_byte(cnp.ndarray a) noexcept:
    cdef char *first = <char *>cnp.PyArray_DATA(a)
    cdef int dim
    for dim in range(cnp.PyArray_NDIM(a)):
        first += min(cnp.PyArray_STRIDE(a, dim) * (cnp.PyArray_DIM(a, dim) - 1), 0)
    return first


cdef char *end_byte(cnp.ndarray a) noexcept:
    cdef char *end = <char *>cnp.PyArray_DATA(a) + cnp.PyArray_ITEMSIZE(a)
    cdef int dim
    for dim in range(cnp.PyArray_NDIM(a)):
        end += max(cnp.PyArray_STRIDE(a, dim) * (cnp.PyArray_DIM(a, dim) - 1), 0)
    return end


# ---- For special.py, whose results are made in Python ---------------------------------------------

def any_array(given, str name):
    """An array of any dtype, without a mask."""
    return as_array(given, name)


def with_dtype(a, dtype):
    """The array if it has that dtype, else converted as if on another host."""
    return converted(a, dtype)


def float_array(given, str name):
    """An array of a dtype the kernels read."""
    return as_floats(given, name)


def normalized_axis(axis, int n_dims):
    return normalised_axis(axis, n_dims, "the array")


def check_out_apart(cnp.ndarray out, cnp.ndarray a, str name, bint in_place, str out_name="out"):
    """Refuse an `out` that overlaps itself or, unless it may be in its place, an input."""
    check_separate_elements(out, out_name)
    if not (in_place and same_memory(out, a)):
        check_apart(out, a, name, out_name)


def check_out_like(out, cnp.ndarray a, str out_name, str name):
    """Refuse what a gradient by `a` can't be written into."""
    check_out(out, a, out_name, name)
