cimport numpy as cnp

cdef struct Exchange

cdef const Exchange *exchange_of(object kind) except NULL
cpdef cnp.ndarray array_of(object a)
cdef cnp.ndarray array_by(const Exchange *exchange, object a)
cdef object tensor_by(const Exchange *exchange, cnp.ndarray a)
cdef object number_by(const Exchange *exchange, double value, int size)
