"""Forks that fastce was not there to notice."""

from pathlib import Path

FORKED_WITHOUT_EXEC = 0x40  # of the flags in /proc/PID/stat; ps(1) shows it as "forked but didn't exec"


def mapped_in_a_fork() -> list[range]:
    """Addresses of the files in memory, of a process that is a fork; none of others. Only Linux tells."""
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        if not flags & FORKED_WITHOUT_EXEC:
            return []
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ends = [line[0].split("-") for line in lines if len(line) > 5]
        return [range(int(begin, 16), int(end, 16)) for begin, end in ends]
    except (OSError, ValueError, IndexError):
        return []


MAPPED = mapped_in_a_fork()


def is_inherited(address: int) -> bool:
    """Whether a function of the OpenMP runtime was in memory of a fork before fastce was.

    Then another library has brought the runtime, as PyTorch brings a libgomp.so.1 for all that come later,
    and its threads may have been left behind in the parent.
    """
    return any(address in addresses for addresses in MAPPED)
