cdef extern from "machine/environment.h" nogil:
    ctypedef struct Environment:
        pass
    Environment enter_environment() noexcept
    void leave_environment(Environment) noexcept
