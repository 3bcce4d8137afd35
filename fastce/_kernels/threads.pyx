"""The one rule for threads, shared by the modules of all levels.

A call uses `n_threads` if given, else the process-wide default: the least of what OpenMP would take
(OMP_NUM_THREADS, affinity) and the cgroup's CPU quota. In a child of fork() it is one thread:
the OpenMP runtime's pool did not survive the fork, and waiting for it would hang.
"""

from operator import index
from pathlib import Path

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static const int openmp_version = _OPENMP;
    #else
    static const int openmp_version = 0;
    static int omp_get_max_threads(void) { return 1; }
    #endif

    static int forked = 0;
    #ifndef _WIN32
    #include <pthread.h>
    static void note_fork(void) { forked = 1; }
    static int watch_forks(void) { return pthread_atfork(NULL, NULL, note_fork); }
    #else
    static int watch_forks(void) { return 0; }
    #endif
    """
    const int openmp_version
    int omp_get_max_threads() nogil
    int forked
    int watch_forks()

cdef int default_n_threads = 1


def _cgroup_quota():
    """CPUs that the process' cgroup (version 2, then 1) may use, or None where there is no limit."""
    root, limits = Path("/sys/fs/cgroup"), []
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].split("\n")[0].lstrip("/")
        for folder in {root, root / group, *(root / group).parents}:
            if (folder / "cpu.max").exists():      # a group is bound by what those around it have, too
                quota, period = (folder / "cpu.max").read_text().split()
                limits.append(float("inf") if quota == "max" else int(quota) / int(period))
        if not limits:
            quota = int((root / "cpu/cpu.cfs_quota_us").read_text())
            limits.append(float("inf") if quota <= 0 else quota / int((root / "cpu/cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return None
    return None if min(limits) == float("inf") else min(limits)


def _available():
    quota = _cgroup_quota()
    threads = omp_get_max_threads()
    return threads if quota is None else max(1, min(threads, int(quota + 0.5)))


cdef int n_threads_for(object n_threads) except -1:
    """How many threads a call may use, given its `n_threads` argument."""
    cdef int n = default_n_threads
    if n_threads is not None:
        n = checked(n_threads)
    return 1 if forked else n


cpdef int checked(object n_threads) except -1:
    if isinstance(n_threads, bool):
        raise TypeError(f"n_threads is {n_threads!r}; expected an int of at least 1")
    try:
        n = index(n_threads)
    except TypeError:
        raise TypeError(f"n_threads is {n_threads!r}; expected an int of at least 1") from None
    if not 1 <= n <= 0x7fffffff:
        raise ValueError(f"n_threads is {n}; expected at least 1 and less than 2**31")
    return n


def get_num_threads():
    return n_threads_for(None)


def set_num_threads(n):
    global default_n_threads
    default_n_threads = checked(n)


def openmp():
    """Version date of the OpenMP standard that the extension was built with, or None."""
    return openmp_version or None


if watch_forks():
    raise ImportError("fastce could not register a fork handler: pthread_atfork failed")
default_n_threads = _available()
