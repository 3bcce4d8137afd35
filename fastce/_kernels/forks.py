"""Forks that fastce was not there to notice."""

from pathlib import Path

FORKED_WITHOUT_EXEC = 0x40  # of the flags in /proc/PID/stat; ps(1) shows it as "forked but didn't exec"


def runtime_is_inherited() -> bool:
    """Whether an OpenMP runtime is in memory of a process that is a fork.

    Its threads may have been left behind in the parent, and fastce may be about to share it: a library
    that is called libgomp.so.1 is loaded once, whoever brings it. To be asked before fastce loads one
    itself. Only Linux tells.
    """
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        if not flags & FORKED_WITHOUT_EXEC:
            return False
        loaded = Path("/proc/self/maps").read_text()
    except (OSError, ValueError, IndexError):
        return False
    return any(runtime in loaded for runtime in ("libgomp", "libomp", "libiomp"))


inherited = runtime_is_inherited()
