"""The one rule for threads, shared by the modules of all levels.

A call uses the `n_threads` it is given. Without, it uses the default of the process, less the threads that other
calls use at that moment, but at least the thread it is on: callers at once are no more threads than there are of them
and the default less one. A call takes no more than it has work for. The default is, at import, the least
of what OpenMP would take (OMP_NUM_THREADS), of the CPUs the process is bound to and of its control groups' quota.
A number that is set in the OpenMP runtime later on (threadpoolctl) lowers it.

In a child of fork() it is one thread: the OpenMP runtime's pool did not survive the fork, and waiting
for it would hang. So it is in a child that first imports fastce itself, and has inherited the runtime.
"""

import os
from operator import index

from libc.stdint cimport int64_t, uintptr_t

from fastce._kernels.machine import cgroups, forks

cdef extern from "machine/threads.h":
    const int openmp_version, has_gnu_runtime
    int openmp_at_import, forked
    int omp_get_max_threads() nogil
    int watch_forks()
    void set_default(int)
    int default_threads()
    void set_awake_for(int64_t)
    int take_threads(int, Py_ssize_t useful, Py_ssize_t work, Py_ssize_t worth) nogil
    void give_back_threads(int) nogil
    int threads_at_work()


def available():
    """The default at import."""
    numbers = [omp_get_max_threads()]
    if hasattr(os, "sched_getaffinity"):
        numbers.append(len(os.sched_getaffinity(0)))
    quota = cgroups.cpu_quota()
    if quota is not None:                  # rounded down: a group that exceeds its quota is stopped as a whole
        numbers.append(max(1, int(quota)))
    return min(numbers)


cdef int take(int n_threads, Py_ssize_t useful, Py_ssize_t work, Py_ssize_t worth) noexcept nogil:
    """How many threads a call gets that asks for so many (checked_n_threads) and has so much work, for `useful` ones;
    to give back. 0 if it is less than is worth another: nothing is taken, the call stays on its thread."""
    return take_threads(n_threads, useful, work, worth)


cdef void give_back(int taken) noexcept nogil:
    give_back_threads(taken)


def sleep_after(microseconds):
    """What threads of GNU's runtime do that wait, if it was told so."""
    if has_gnu_runtime:
        set_awake_for(microseconds)


cpdef int checked(object given, str name="n_threads") except -1:
    if isinstance(given, bool):
        raise TypeError(f"{name} is {given!r}; expected an int of at least 1")
    try:
        n = index(given)
    except TypeError:
        raise TypeError(f"{name} is {given!r}; expected an int of at least 1") from None
    if not 1 <= n <= 0x7fffffff:
        shown = n if abs(n) < 2**64 else f"an int of {n.bit_length()} bits"
        raise ValueError(f"{name} is {shown}; expected at least 1 and less than 2**31")
    return n


cpdef int get_num_threads() noexcept:
    return default_threads()


def set_num_threads(n):
    set_default(checked(n, "n, the number of threads,"))


def at_work():
    """Threads of all calls under way, but for those too small to have several."""
    return threads_at_work()


def openmp():
    """Version date of the OpenMP standard that the extension was built with, or None."""
    return openmp_version or None


if watch_forks():
    raise ImportError("fastce could not register a fork handler: pthread_atfork failed")
if forks.is_inherited(<uintptr_t><void *>omp_get_max_threads):
    forked = 1
openmp_at_import = omp_get_max_threads()
set_default(available())
