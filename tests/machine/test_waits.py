"""How long threads that wait spin is told to GCC's OpenMP runtime, if nobody else has, and to nobody else."""

import os
import re
import subprocess
import sys

import pytest

import fastce
from fastce._kernels.machine import waits

CONFIG = fastce.show_config(mode="dict")
IS_GNU = CONFIG["openmp"] and CONFIG["compiler"].startswith("gcc") and sys.platform == "linux"
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not IS_GNU, reason="another OpenMP runtime than GCC's, or none"),
]


def settings(code, **environment):
    """What the runtime displays of itself when it is loaded, and what is left in the environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import os; print([k for k in os.environ if 'OMP_' in k[:5]])"],
        env=clean | environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr), done.stdout.strip()


def test_as_long_as_waking_takes():
    assert settings("import fastce") == ([str(waits.SPINS)], "['OMP_DISPLAY_ENV']")


def test_what_the_user_has_set_holds():
    spins, left = settings("import fastce", GOMP_SPINCOUNT="77")
    assert spins == ["77"]
    assert "GOMP_SPINCOUNT" in left
    spins, left = settings("import fastce", OMP_WAIT_POLICY="active")
    assert int(spins[0]) > 1_000_000
    assert "OMP_WAIT_POLICY" in left


def test_a_failed_import_leaves_nothing_behind():
    code = """
import sys
sys.modules["fastce._kernels.machine.threads"] = None
try: import fastce
except ImportError: pass
pass"""
    assert settings(code) == ([], "['OMP_DISPLAY_ENV']")


def test_little_work_wakes_nobody():
    """Threads begin with a call that is worth it, or with calls that follow one another."""
    code = """
import os, time
import numpy as np
import fastce
def threads(): return len(os.listdir("/proc/self/task"))
x, y = np.zeros((50, 1000), np.float32), np.zeros(50, int)
before = threads()
for _ in range(20):
    fastce.cross_entropy(x, y, n_threads=2)
    time.sleep(1e-3)
alone = threads()
for _ in range(2000):
    fastce.cross_entropy(x, y, n_threads=2)
print(alone - before, threads() - before)
pass"""
    assert settings(code)[1].splitlines()[0] == "0 1"
    # Who has said how threads wait has them at once, as all other tests do.
    assert settings(code, OMP_WAIT_POLICY="passive")[1].splitlines()[0] == "1 1"
