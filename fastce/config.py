"""Threads, instruction-set level, and what this installation is made of."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from fastce import _kernels
from fastce._kernels.machine import cpu, threads

__all__ = ["__version__", "get_num_threads", "set_num_threads", "show_config"]

__version__ = "0.1.0"  # the one place that has it: pyproject.toml and docs/conf.py read it here


def get_num_threads() -> int:
    """Number of threads that a call uses when it does not say.

    At import: what OpenMP would take (``OMP_NUM_THREADS``, the process' affinity), but no more than
    the CPU quota of the process' cgroup. In the child of a fork it is 1.

    Examples
    --------
    >>> import fastce
    >>> fastce.get_num_threads() >= 1
    True
    """
    return threads.get_num_threads()


def set_num_threads(n: int) -> None:
    """Set the default number of threads for the whole process.

    Parameters
    ----------
    n : int
        At least 1, less than 2**31. More than there are CPUs is allowed. No result depends on it.

    Raises
    ------
    TypeError, ValueError
        `n` is not an int, or is less than 1.

    Examples
    --------
    >>> import fastce
    >>> before = fastce.get_num_threads()
    >>> fastce.set_num_threads(1)
    >>> fastce.get_num_threads()
    1
    >>> fastce.set_num_threads(before)
    """
    threads.set_num_threads(n)


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print, or return, what fastce runs on.

    Parameters
    ----------
    mode : {'stdout', 'dict'}, default 'stdout'
        ``'dict'`` returns the mapping that ``'stdout'`` prints.

    Returns
    -------
    dict or None
        ``level`` in use; ``levels_built`` into this installation and ``levels_runnable`` on this machine;
        ``cpu_features`` that levels ask for; ``compiler`` of the build; ``openmp``, the date of the
        standard the build supports or None if it has one thread only; ``threads``; ``versions``.

    Examples
    --------
    >>> import fastce
    >>> fastce.show_config(mode="dict")["level"] in ("baseline", "v3", "v4")
    True
    """
    if mode not in ("stdout", "dict"):
        raise ValueError(f"mode is {mode!r}; expected 'stdout' or 'dict'")
    config = {
        "level": _kernels.kernels.__name__.rpartition("_")[2],
        "levels_built": list(_kernels.built()),
        "levels_runnable": list(_kernels.runnable()),
        "cpu_features": sorted(cpu.features()),
        "compiler": cpu.compiler(),
        "openmp": threads.openmp(),
        "threads": get_num_threads(),
        "versions": {
            "fastce": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if mode == "dict":
        return config
    if config["openmp"] is None:
        config["openmp"] = "none: built without it, every call runs on one thread"
    config["versions"] = ", ".join(f"{name} {number}" for name, number in config["versions"].items())
    for name, value in config.items():
        print(f"{name:16} {', '.join(value) if isinstance(value, list) else value}")
    return None
