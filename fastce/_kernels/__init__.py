"""Everything compiled: the same kernels once per instruction-set level, one level chosen at import.

``FASTCE_LEVEL=baseline|v3|v4`` in the environment forces a level.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from .machine import forks  # noqa: F401 (looks around before anything with OpenMP is loaded)

# isort: split
from .machine import cpu, waits

waits.load_runtime()

__all__ = ["LEVELS", "MODULES", "built", "computed_by", "elementwise", "kernels", "load", "runnable"]

_V3 = {"avx2", "fma", "f16c", "bmi2"}

#: Levels from the least to the most demanding, with the CPU features each needs (setup.py has the flags).
LEVELS = {
    "baseline": set(),
    "v3": _V3,
    "v4": _V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
}

#: What is compiled once for each level: the first two are what every program needs.
MODULES = ("kernels", "elementwise", "scoring", "calibration", "boosting", "information")


def built() -> tuple[str, ...]:
    """Levels this installation was built with."""
    return tuple(n for n in LEVELS if importlib.util.find_spec(f"{__name__}._kernels_{n}"))


def runnable() -> tuple[str, ...]:
    """Levels that were built and that this machine can run, least demanding first."""
    present = cpu.features()
    return tuple(name for name in built() if LEVELS[name] <= present)


def load(level: str, module: str = "kernels") -> ModuleType:
    """Return one of `MODULES`, of a runnable level."""
    if level not in runnable():
        raise ImportError(
            f"fastce level {level!r} cannot be used here: possible are {', '.join(runnable())} "
            f"(built: {', '.join(built())}; check the environment variable FASTCE_LEVEL)"
        )
    return importlib.import_module(f"{__name__}._{module}_{level}")


_level = os.environ.get("FASTCE_LEVEL") or runnable()[-1]

#: The modules in use, all of one level. Public functions look them up here at each call.
kernels, elementwise = load(_level), load(_level, "elementwise")


_Function = TypeVar("_Function", bound=Callable[..., Any])


def computed_by(module: str, name: str, *first: object) -> Callable[[_Function], _Function]:
    """What makes of a signature with a docstring a function: it calls ``module.name(*first, *arguments)``.

    The arguments are all of them, in the order of the signature. The Python function is called where they
    don't fit it, for its error, and where the kernel returns NotImplemented.
    """
    from .entry.calls import Call

    return lambda function: Call(function, sys.modules[__name__], module, name, first)


def __getattr__(name: str) -> ModuleType:
    """The others are loaded when they are first asked for."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = module = load(_level, name)
    return module
