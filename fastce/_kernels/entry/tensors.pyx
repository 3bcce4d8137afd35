# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""From a loss of PyTorch's tensors straight to its kernel, and with what that returns into the graph.

A small call is a few microseconds. Python would take several times that to look at the tensors, to hand them on and to
make tensors of the results. Here that is done for calls as they usually are; Python does it for all others. PyTorch is
needed neither to build nor to load this: it is handed over. Shared by all levels.
"""

import numpy as np

cimport numpy as cnp
from cpython.object cimport PyObject

from fastce._kernels.entry.dlpack cimport Exchange, array_by, exchange_of, number_by, tensor_by

cnp.import_array()

cdef extern from "Python.h":
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    Py_ssize_t PyTuple_GET_SIZE(tuple)
    PyObject *PyTuple_GET_ITEM(tuple, Py_ssize_t)
    object PyObject_Vectorcall(object, PyObject *const *, size_t, PyObject *)

cdef enum: MOST_ARGUMENTS = 32


cdef class PlainTensors:
    """Tensors of no subclass, with strides, in the CPU's memory."""

    cdef object torch, kind, subkind, duals, transforms, modes, is_grad_enabled, keeps_graph
    cdef const Exchange *exchange

    def __init__(self, torch):
        self.torch, self.kind, self.subkind = torch, torch.Tensor, torch.nn.Parameter
        self.exchange = exchange_of(torch.Tensor)
        self.duals = torch.autograd.forward_ad
        self.transforms = torch._C._are_functorch_transforms_active
        self.modes = torch._C._len_torch_dispatch_stack
        self.is_grad_enabled = torch.is_grad_enabled
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

    def takes_all(self, factor):
        """Whether a backward pass is the last one, and its factor 1: it hands out gradients as they are."""
        if self.is_grad_enabled() or self.keeps_graph() or self.modes() or self.transforms():
            return False
        cdef cnp.ndarray a = self.array(factor)
        if a is None or cnp.PyArray_NDIM(a):
            return False
        return (<float *>cnp.PyArray_DATA(a))[0] == 1 if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT else factor.item() == 1


cdef class PlainLosses(PlainTensors):
    """Losses of plain tensors of which the first alone asks for a gradient. `otherwise` is called for all others.

    kernels: for each loss the names of its module in `fastce._kernels` and of its function there, how many options that
    takes before the weights, and whether a class axis. attach: puts ((loss, gradient), input) into a graph.
    """

    cdef object fastce, attach, otherwise
    cdef dict kernels

    def __init__(self, torch, fastce, dict kernels, attach, otherwise):
        PlainTensors.__init__(self, torch)
        self.fastce, self.kernels, self.attach, self.otherwise = fastce, kernels, attach, otherwise

    def __call__(self, loss, tuple differentiable, tuple others, tuple options):
        cdef bint recorded = self.is_grad_enabled(), wanted, wide, has_axis
        cdef cnp.ndarray x, y, w, v
        cdef int n_before
        input, target = differentiable
        weight, other = others
        x, y = self.array(input), self.constant(target, recorded)
        w, v = self.constant(weight, recorded), self.constant(other, recorded)
        if x is None or y is None or (w is None) != (weight is None) or (v is None) != (other is None):
            return self.otherwise(loss, differentiable, others, options)
        module, name, n_before, has_axis = self.kernels[loss]
        wanted = recorded and input.requires_grad
        wide = cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE
        if (not (wide or cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT) or (wanted and not cnp.PyArray_IS_C_CONTIGUOUS(x))
                or not (has_axis or cnp.PyArray_SAMESHAPE(x, y)) or self.transforms() or self.modes()
                or self.duals._current_level >= 0):
            return self.otherwise(loss, differentiable, others, options)

        result = self.computed(getattr(getattr(self.fastce._kernels, module), name), 1 if wanted else 0, x, y, w, v,
                               options, n_before, has_axis)
        if not wanted:
            return self.loss(result, wide)
        value, grad = <tuple>result
        return self.attach((self.loss(value, wide), tensor_by(self.exchange, grad)), input)[0]

    cdef cnp.ndarray constant(self, t, bint recorded):
        """That of a tensor which asks for no gradient, nor is of bfloat16, whose bits are not numbers to NumPy."""
        cdef cnp.ndarray a = self.array(t)
        if a is None or cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(a)):
            return a
        return None if cnp.PyArray_TYPE(a) == cnp.NPY_VOID or (recorded and t.requires_grad) else a

    cdef object computed(self, kernel, order, cnp.ndarray x, cnp.ndarray y, cnp.ndarray w, cnp.ndarray v, tuple options,
                         int n_before, bint has_axis):
        cdef PyObject *stack[MOST_ARGUMENTS + 1]  # the callee may put something before its arguments
        cdef PyObject **arguments = stack + 1
        cdef int n = 3, k
        cdef object axis = 1 if cnp.PyArray_NDIM(x) > 1 else 0, n_threads = self.torch.get_num_threads()
        if n_threads >= self.fastce.get_num_threads():
            n_threads = None
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

    cdef object loss(self, value, bint wide):
        if type(value) is float:
            return number_by(self.exchange, value, wide)
        return tensor_by(self.exchange, np.asarray(value))
