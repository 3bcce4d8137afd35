# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""From a function of PyTorch's tensors straight to its kernel, and with what that returns into the graph.

A small call is a few microseconds. Python would take several times that to look at the tensors, to hand them on and to
make tensors of the results. Here that is done for calls as they usually are; Python does it for all others. PyTorch is
needed neither to build nor to load this: it is handed over. Shared by all levels.
"""

import numpy as np

cimport numpy as cnp
from cpython.object cimport PyObject, PyObject_TypeCheck, PyTypeObject

from fastce._kernels.entry.dlpack cimport Exchange, array_by, exchange_of, number_by, tensor_by
from fastce._kernels.machine.threads cimport get_num_threads

cnp.import_array()

cdef extern from "Python.h":
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    Py_ssize_t PyTuple_GET_SIZE(tuple)
    PyObject *PyTuple_GET_ITEM(tuple, Py_ssize_t)
    object PyObject_Vectorcall(object, PyObject *const *, size_t, PyObject *)

cdef enum: MOST_ARGUMENTS = 32


cdef class PlainTensors:
    """Tensors of no subclass, with strides, in the CPU's memory. home: the package of the kernels."""

    cdef object torch, home, kind, subkind, duals, transforms, modes, is_grad_enabled, keeps_graph, is_autocast
    cdef const Exchange *exchange

    def __init__(self, torch, home):
        self.torch, self.home, self.kind, self.subkind = torch, home, torch.Tensor, torch.nn.Parameter
        self.exchange = exchange_of(torch.Tensor)
        self.duals = torch.autograd.forward_ad
        self.transforms = torch._C._are_functorch_transforms_active
        self.modes = torch._C._len_torch_dispatch_stack
        self.is_grad_enabled = torch.is_grad_enabled
        self.is_autocast = torch.is_autocast_enabled
        self.keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph

    cdef cnp.ndarray array(self, t):
        """The memory of a plain tensor; None of anything else."""
        if type(t) is not self.kind and type(t) is not self.subkind:
            return None
        try:
            a = array_by(self.exchange, t)
        except (RuntimeError, TypeError):      # without memory or strides, elsewhere, or of a dtype that NumPy has not
            return None
        return a if cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(a)) or not t.is_neg() else None

    cdef bint is_seen(self):
        """Whether more comes of a call than its result: modes of dispatch, transforms, forward-mode derivatives."""
        return self.modes() or self.transforms() or self.duals._current_level >= 0

    cdef object half_of(self, t, cnp.ndarray a):
        """The dtype of a tensor of float16 or bfloat16, to which results are rounded; None of all others."""
        return t.dtype if cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT16, cnp.NPY_VOID) else None

    cdef object n_threads(self):
        """As PyTorch has it, but no more than fastce would take by itself."""
        n = self.torch.get_num_threads()
        return n if <int>n < get_num_threads() else None

    def is_eager(self, grad):
        """Whether a backward pass, which was given that, can compute here and now."""
        return not (self.is_grad_enabled() or self.is_seen()) and self.array(grad) is not None

    def is_last(self, grad):
        """Whether it is also the last one through here, which may hand out what was kept for it."""
        return not self.keeps_graph() and self.is_eager(grad)


cdef class PlainLosses(PlainTensors):
    """Losses of plain tensors of which the first alone asks for a gradient. `otherwise` is called for all others.

    kernels: for each loss the names of its module in `home` and of its function there, how many options that
    takes before the weights, and whether a class axis. attach: puts ((loss, gradient), input) into a graph.
    """

    cdef object attach, otherwise
    cdef dict kernels

    def __init__(self, torch, home, dict kernels, attach, otherwise):
        PlainTensors.__init__(self, torch, home)
        self.kernels, self.attach, self.otherwise = kernels, attach, otherwise

    def loss(self, loss, tuple differentiable, tuple others, tuple options):
        cdef bint recorded = self.is_grad_enabled(), wanted, wide, has_axis
        cdef cnp.ndarray x, y, w, v
        cdef int n_before
        input, target = differentiable
        weight, other = others
        x, y = self.array(input), self.array(target)
        w, v = self.constant(weight, recorded), self.constant(other, recorded)
        if x is None or y is None or (w is None) != (weight is None) or (v is None) != (other is None):
            return self.otherwise(loss, differentiable, others, options)
        module, name, n_before, has_axis = self.kernels[loss]
        wanted = recorded and input.requires_grad
        wide, half = cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE, self.half_of(input, x)
        if (not (wide or half is not None or cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT)
                or not self.suits(x, y, recorded and target.requires_grad)
                or (wanted and not (cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_TYPE(x) != cnp.NPY_FLOAT16))
                or not (has_axis or cnp.PyArray_SAMESHAPE(x, y)) or self.has_tensor(options) or self.is_seen()
                or (half is not None and self.is_autocast("cpu"))):
            return self.otherwise(loss, differentiable, others, options)

        result = self.computed(getattr(getattr(self.home, module), name), 1 if wanted else 0, x, y, w, v,
                               options, n_before, has_axis)
        if not wanted:
            return self.tensor(result, wide, half)
        value, grad = <tuple>result
        return self.attach((self.tensor(value, wide, half), tensor_by(self.exchange, grad)), input)[0]

    cdef cnp.ndarray constant(self, t, bint recorded):
        """That of a tensor which asks for no gradient, nor is of bfloat16, whose bits are not numbers to NumPy."""
        cdef cnp.ndarray a = self.array(t)
        if a is None or cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(a)):
            return a
        return None if cnp.PyArray_TYPE(a) == cnp.NPY_VOID or (recorded and t.requires_grad) else a

    cdef bint suits(self, cnp.ndarray x, cnp.ndarray y, bint wanted):
        """Whether no gradient by the target is wanted, nor a loss in another dtype than the logits'."""
        cdef int has = cnp.PyArray_TYPE(y)
        return not wanted and (has == cnp.PyArray_TYPE(x) or cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE
                               or not (cnp.PyTypeNum_ISFLOAT(has) or has == cnp.NPY_VOID))

    cdef bint has_tensor(self, tuple options):
        """Whether one of them is a tensor, which may ask for a gradient."""
        for option in options:
            if PyObject_TypeCheck(option, <PyTypeObject *>self.kind):  # isinstance would ask the metaclass
                return True
        return False

    cdef object computed(self, kernel, order, cnp.ndarray x, cnp.ndarray y, cnp.ndarray w, cnp.ndarray v, tuple options,
                         int n_before, bint has_axis):
        cdef PyObject *stack[MOST_ARGUMENTS + 1]  # the callee may put something before its arguments
        cdef PyObject **arguments = stack + 1
        cdef int n = 3, k
        cdef object axis = 1 if cnp.PyArray_NDIM(x) > 1 else 0, n_threads = self.n_threads()
        arguments[0], arguments[1], arguments[2] = <PyObject *>order, <PyObject *>x, <PyObject *>y
        for k in range(n_before):
            arguments[n + k] = PyTuple_GET_ITEM(options, k)
        n += n_before
        if has_axis:
            arguments[n] = <PyObject *>axis
            n += 1
        arguments[n], arguments[n + 1] = <PyObject *>w, <PyObject *>v
        n += 2
        for k in range(n_before, <int>PyTuple_GET_SIZE(options)):
            arguments[n] = PyTuple_GET_ITEM(options, k)
            n += 1
        arguments[n] = <PyObject *>n_threads
        return PyObject_Vectorcall(kernel, arguments, (n + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)

    cdef object tensor(self, value, bint wide, half):
        if type(value) is not float:
            t = tensor_by(self.exchange, np.asarray(value))
        elif half is self.torch.bfloat16:
            return number_by(self.exchange, value, 2)
        else:
            t = number_by(self.exchange, value, 8 if wide else 4)
        return t if half is None else t.to(half)


cdef class PlainSoftmax(PlainTensors):
    """Softmax and its relatives of plain contiguous tensors along one dimension.

    attach: puts (result, log) along a dimension of an input into a graph. softmax_otherwise, logsumexp_otherwise: are
    called for all other tensors.
    """

    cdef object attach, softmax_otherwise, logsumexp_otherwise

    def __init__(self, torch, home, attach, softmax_otherwise, logsumexp_otherwise):
        PlainTensors.__init__(self, torch, home)
        self.attach = attach
        self.softmax_otherwise, self.logsumexp_otherwise = softmax_otherwise, logsumexp_otherwise

    def softmax(self, log, input, dim, stacklevel, dtype):
        cdef cnp.ndarray x = self.along(input, dim, dtype)
        if x is not None:
            p = self.home.kernels.usual_softmax(log, x, dim, None, self.n_threads())
            if p is not NotImplemented:
                return self.result(tensor_by(self.exchange, p), input, dim, log)
        return self.softmax_otherwise(log, input, dim, stacklevel, dtype)

    def logsumexp(self, input, dim, keepdim, out):
        cdef cnp.ndarray x = self.along(input, dim, out)
        if x is not None:
            half, n_threads = self.half_of(input, x), self.n_threads()
            if half is None:
                s = self.home.kernels.usual_logsumexp(x, dim, None, keepdim, False, None, n_threads)
                if s is not NotImplemented:
                    return self.result(tensor_by(self.exchange, np.asarray(s)), input, dim, None)
            elif not keepdim and -cnp.PyArray_NDIM(x) <= dim < cnp.PyArray_NDIM(x) and cnp.PyArray_SIZE(x):
                s, _ = self.home.kernels.logsumexp(x, dim % cnp.PyArray_NDIM(x), None, n_threads)
                return self.result(tensor_by(self.exchange, np.asarray(s)).to(half), input, dim, None)
        return self.logsumexp_otherwise(input, dim, keepdim, out)

    cdef cnp.ndarray along(self, input, dim, other):
        """The memory of the input, if it is such a tensor and nothing else is asked for."""
        if type(dim) is not int or other is not None or self.is_seen():
            return None
        cdef cnp.ndarray x = self.array(input)
        return x if x is not None and cnp.PyArray_IS_C_CONTIGUOUS(x) else None

    cdef object result(self, t, input, dim, log):
        if not (input.requires_grad and self.is_grad_enabled()):
            return t
        return self.attach(input, dim if dim >= 0 else dim + input.ndim, (t, log))
