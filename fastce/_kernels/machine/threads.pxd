cdef int checked_n_threads(object n_threads) except -1
cdef int take(int n_threads, int useful) noexcept nogil
cdef void give_back(int taken) noexcept nogil
