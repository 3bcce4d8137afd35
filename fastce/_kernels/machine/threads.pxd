cpdef int checked(object given, str name=*) except -1
cpdef int get_num_threads() noexcept
cdef int take(int n_threads, Py_ssize_t useful, Py_ssize_t work, Py_ssize_t worth) noexcept nogil
cdef void give_back(int taken) noexcept nogil


cdef inline int checked_n_threads(object n_threads) except -1:
    """The given number; 0 for None, the default."""
    return 0 if n_threads is None else checked(n_threads)
