"""The share of the CPUs that a container leaves to this process: Linux control groups, versions 1 and 2."""

import re
from pathlib import Path

__all__ = ["cpu_quota"]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the process may use: the least quota of its group and of those around it; None without any.

    `root` is where ``proc`` and the mounted groups are found. Sources: cgroups(7), proc_pid_mountinfo(5), the
    kernel's ``cgroup-v2.rst`` and ``sched-bwc.rst``.
    """
    try:
        groups = _groups((root / "proc/self/cgroup").read_text())
        quotas = []
        for version, inside, mounted in _mounts((root / "proc/self/mountinfo").read_text()):
            # What is mounted in a container may begin at its group, which may be named from the host's root.
            group = groups.get(version, "/").removeprefix(inside.rstrip("/")).strip("/")
            top = root / mounted.lstrip("/")
            folders = [top / group, *(top / group).parents] if group else [top]
            quotas += [_quota(version, folder) for folder in folders if folder.is_relative_to(top)]
    except (OSError, ValueError, IndexError):  # no such files here, or not as they were when this was written
        return None
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(listed: str) -> dict[int, str]:
    """The process' group in the hierarchy of each version, from /proc/self/cgroup."""
    groups = {}
    for line in listed.splitlines():
        number, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            groups[1] = path
        elif number == "0" and not controllers:
            groups[2] = path
    return groups


def _mounts(listed: str) -> list[tuple[int, str, str]]:
    """Version, root inside and mount point of hierarchies that may rule CPUs, from /proc/self/mountinfo."""
    mounts = []
    for line in listed.splitlines():
        mount, _, filesystem = line.partition(" - ")
        inside, mounted = (_unescaped(path) for path in mount.split()[3:5])
        kind, _, options = filesystem.split(" ", 2)  # the source, in between, may be empty
        if kind == "cgroup2":
            mounts.append((2, inside, mounted))
        elif kind == "cgroup" and "cpu" in options.split(","):
            mounts.append((1, inside, mounted))
    return mounts


def _unescaped(path: str) -> str:
    return re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), path)


def _quota(version: int, folder: Path) -> float | None:
    names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:  # a root and a group without this controller have no such files
        quota, period = " ".join((folder / name).read_text() for name in names).split()
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None
