"""What a benchmark should know about its machine: the processor, and who else is using it."""

import platform
import time
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
CPU_TIMES = Path("/proc/stat")


def cpu_name() -> str:
    """Return the processor's name as the operating system gives it, with the model that clouds leave out."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    fields = dict(tuple(map(str.strip, line.split(":", 1))) for line in reversed(lines) if ":" in line)
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    if not {"cpu family", "model"} <= fields.keys():
        return fields["model name"]
    return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"


def busy_cpus(seconds: float = 0.3) -> float:
    """Return how many CPUs other processes keep busy while this one sleeps; 0 where unknown."""
    if not CPU_TIMES.exists():
        return 0.0
    before = _ticks()
    time.sleep(seconds)
    user, nice, system, idle, waiting = (
        after - start for start, after in zip(before, _ticks(), strict=True)
    )
    busy = user + nice + system
    n_cpus = sum(line.startswith("cpu") for line in CPU_TIMES.read_text().splitlines()) - 1
    return n_cpus * busy / max(1, busy + idle + waiting)


def _ticks() -> list[int]:
    return [int(field) for field in CPU_TIMES.read_text().split("\n", 1)[0].split()[1:6]]
