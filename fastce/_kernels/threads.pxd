cdef int n_threads_for(object n_threads) except -1
