# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""From a public function, which is Python, straight to the function of the kernels that computes it.

A small call is half a microsecond, and Python takes half of that to hand a dozen arguments on: it looks each default of
a keyword-only argument up by its name. Here they lie ready, as `vectorcall` wants them. Shared by all levels.
"""

from functools import update_wrapper
from types import MethodType

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.unicode cimport PyUnicode_Compare

cdef extern from "Python.h":
    ctypedef PyObject *(*vectorcallfunc)(PyObject *, PyObject *const *, size_t, PyObject *) noexcept
    ctypedef struct PyTypeObject:
        Py_ssize_t tp_vectorcall_offset
        unsigned long tp_flags
        void *tp_call
    enum: Py_TPFLAGS_HAVE_VECTORCALL
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    Py_ssize_t PyVectorcall_NARGS(size_t)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
    PyObject *PyObject_GetAttr(PyObject *, PyObject *)
    PyObject *PyObject_Vectorcall(PyObject *, PyObject *const *, size_t, PyObject *)
    PyObject *Py_NotImplemented
    object PyVectorcall_Call(object, object, object)

cdef enum: MOST_ARGUMENTS = 32


cdef class Call:
    """A function with the signature, name and docstring of one that is written in Python.

    Calls the function `name` of the module that `home`, which is one too, has as `module`: with `first` and all
    arguments in the order of the signature. Where that returns NotImplemented, and where the arguments don't fit, the
    Python function is called as it was. `home` keeps a `module`, of which that may change, for as long as the process.
    """

    cdef vectorcallfunc vectorcall
    cdef dict __dict__
    cdef object __weakref__
    cdef object function, home
    cdef str module, name
    cdef tuple first, names, defaults
    cdef int n_first, n_positional, n_names
    cdef PyObject *usual[MOST_ARGUMENTS]      # first and the defaults; NULL: none

    def __init__(self, function, home, str module, str name, tuple first):
        code = function.__code__
        getattr(getattr(home, module), name)   # is there
        self.function, self.home, self.module, self.name, self.first = function, home, module, name, first
        self.n_first, self.n_positional = len(first), code.co_argcount
        self.names = code.co_varnames[:code.co_argcount + code.co_kwonlyargcount]
        self.n_names = len(self.names)
        if self.n_first + self.n_names > MOST_ARGUMENTS:
            raise TypeError(f"{function.__name__} takes {self.n_names} arguments; expected at most {MOST_ARGUMENTS}")
        positional = function.__defaults__ or ()
        given = dict(zip(self.names[self.n_positional - len(positional):], positional))
        given |= function.__kwdefaults__ or {}
        self.defaults = tuple(given.values())
        for k, value in enumerate(first):
            self.usual[k] = <PyObject *>value
        for k, argument in enumerate(self.names, self.n_first):
            self.usual[k] = <PyObject *>given[argument] if argument in given else NULL
        self.vectorcall = forward
        update_wrapper(self, function)

    def __call__(self, *arguments, **options):  # as callables have it; calls themselves go to `forward`
        return PyVectorcall_Call(self, arguments, options)

    def __getattr__(self, str name):
        return getattr(self.function, name)

    def __get__(self, instance, owner):
        return self if instance is None else MethodType(self, instance)

    def __repr__(self):
        return f"<function {self.__module__}.{self.__qualname__}>"

    def __reduce__(self):
        return self.__qualname__


cdef int place_of(Call call, PyObject *name) noexcept:
    """Which argument has that name; -1: none. Names are interned but for rare ones, made while the program runs."""
    cdef PyObject *names = <PyObject *>call.names
    cdef int k
    for k in range(call.n_names):
        if PyTuple_GET_ITEM(names, k) == name:
            return k
    for k in range(call.n_names):
        if PyUnicode_Compare(<object>PyTuple_GET_ITEM(names, k), <object>name) == 0:
            return k
    return -1


cdef PyObject *forward(PyObject *itself, PyObject *const *given, size_t flags, PyObject *names) noexcept:
    cdef Call call = <Call>itself
    cdef PyObject *stack[MOST_ARGUMENTS + 1]  # the callee may put something before its arguments
    cdef PyObject **first = stack + 1
    cdef PyObject **argument = first + call.n_first
    cdef PyObject *module
    cdef PyObject *function
    cdef PyObject *result
    cdef Py_ssize_t n_given = PyVectorcall_NARGS(flags), k
    cdef int place
    cdef bint fits = n_given <= call.n_positional
    for k in range(call.n_first + call.n_names):
        first[k] = call.usual[k]
    for k in range(n_given if fits else 0):
        argument[k] = given[k]
    for k in range(PyTuple_GET_SIZE(names) if names != NULL and fits else 0):
        place = place_of(call, PyTuple_GET_ITEM(names, k))
        fits = fits and place >= n_given
        if fits:
            argument[place] = given[n_given + k]
    for k in range(n_given, call.n_names):
        fits = fits and argument[k] != NULL
    if fits:
        module = PyObject_GetAttr(<PyObject *>call.home, <PyObject *>call.module)
        function = PyObject_GetAttr(module, <PyObject *>call.name) if module != NULL else NULL
        Py_XDECREF(module)
        if function == NULL:
            return NULL
        result = PyObject_Vectorcall(function, first, (call.n_first + call.n_names) | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                     NULL)
        Py_XDECREF(function)
        if result != Py_NotImplemented:
            return result
        Py_XDECREF(result)
    return PyObject_Vectorcall(<PyObject *>call.function, given, flags, names)


cdef void make_callable() noexcept:
    cdef Call call = Call.__new__(Call)
    cdef PyTypeObject *slots = <PyTypeObject *>Call
    slots.tp_vectorcall_offset = <char *>&call.vectorcall - <char *><PyObject *>call
    slots.tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL
    slots.tp_call = <void *>PyVectorcall_Call


make_callable()
