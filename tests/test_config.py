"""The level: chosen at import, forced from outside, shown; and what an import leaves behind."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import fastce

pytestmark = pytest.mark.once

LEVELS = fastce._kernels.runnable()


def python(code, **environment):
    """Run `code` in a fresh interpreter."""
    clean = {k: v for k, v in os.environ.items() if k != "FASTCE_LEVEL"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_levels():
    assert LEVELS[0] == "baseline"
    assert set(LEVELS) <= {"baseline", "v3", "v4"}
    for name in ("kernels", "elementwise"):
        modules = [fastce._kernels.load(level, name) for level in LEVELS]
        assert len({id(module) for module in modules}) == len(LEVELS)
        assert len({module.__file__ for module in modules}) == len(LEVELS)
        in_use = getattr(fastce._kernels, name)
        assert in_use is modules[LEVELS.index(fastce.show_config(mode="dict")["level"])]


@pytest.mark.parametrize("level", LEVELS)
def test_forced(level):
    done = python(
        "import fastce; print(fastce.show_config(mode='dict')['level'])", FASTCE_LEVEL=level
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == level


def test_default_is_the_highest():
    done = python("import fastce; print(fastce.show_config(mode='dict')['level'])")
    assert done.stdout.strip() == LEVELS[-1], done.stderr


@pytest.mark.parametrize("name", ["v5", "V4", "avx2", "base line", "../v3"])
def test_unknown_level(name):
    """The error lists what is possible."""
    done = python("import fastce", FASTCE_LEVEL=name)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError")
    assert name in message
    for level in LEVELS:
        assert level in message


@pytest.mark.parametrize("level", LEVELS)
def test_subnormals_survive(level):
    """No flush-to-zero: neither by the import nor by the kernels, in no thread."""
    code = """
import threading
import numpy as np

def check(where):
    for dtype in (np.float32, np.float64):
        tiny = np.full(64, np.finfo(dtype).smallest_normal)
        unit = np.full(64, np.finfo(dtype).smallest_subnormal)
        assert (tiny / dtype(4) * dtype(4) == tiny).all(), (where, "results are flushed to zero")
        assert (unit * dtype(2**12) > 0).all(), (where, "operands are taken for zero")
    assert 2.0**-1074 * float("1.0") > 0, where

check("before the import")
import fastce
check("after the import")
x = np.zeros((5000, 100), np.float32)
fastce.cross_entropy_and_grad(x, np.zeros(5000, int), n_threads=2)
check("after a call")
failed = []
def run():
    try:
        check("in another thread")
    except AssertionError as error:
        failed.append(error)
thread = threading.Thread(target=run)
thread.start()
thread.join()
assert not failed, failed
"""
    done = python(code, FASTCE_LEVEL=level)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_import_alone(level):
    """It prints nothing, warns of nothing, and takes no heavy package along."""
    code = """
import sys
import fastce
heavy = {"scipy", "torch", "jax", "sklearn", "mpmath", "ml_dtypes", "numba", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = python(code, FASTCE_LEVEL=level)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_import_leaves_the_process_alone():
    code = """
import os, signal, threading
import numpy

def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    tasks = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None
    return handlers, tasks, dict(os.environ), threading.active_count(), os.getcwd()

before = state()
import fastce
logits, labels = numpy.zeros((20_000, 50)), numpy.zeros(20_000, int)
fastce.cross_entropy_and_grad(logits, labels, n_threads=1)
fastce.softmax(logits, axis=1, n_threads=1)
assert state() == before
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_works_in_a_process_of_its_own(level):
    code = """
import numpy as np
import fastce
loss, grad = fastce.cross_entropy_and_grad(np.float32([[20, 0, 0]]), [0])
print(loss, grad[0, 0])
"""
    done = python(code, FASTCE_LEVEL=level)
    assert done.returncode == 0, done.stderr
    loss, grad = map(float, done.stdout.split())
    assert loss == pytest.approx(4.122307236312e-09, rel=2.0**-22)  # 2 ULP of float32
    assert grad == pytest.approx(-4.122307227815e-09, rel=2.0**-21)  # 4 ULP


def test_show_config(capsys):
    config = fastce.show_config(mode="dict")
    assert capsys.readouterr().out == ""
    assert config["level"] in LEVELS
    text = repr(config)
    for level in LEVELS:
        assert level in text
    assert {"fastce", "numpy", "python"} <= set(config["versions"])
    assert config["versions"]["numpy"] == np.__version__
    assert "openmp" in text.lower()
    assert re.fullmatch(r"(gcc|clang) [\d.]+\S*", config["compiler"])
    assert str(fastce.get_num_threads()) in text
    assert fastce.show_config() is None
    printed = capsys.readouterr().out
    assert config["level"] in printed
    assert np.__version__ in printed
    with pytest.raises(ValueError, match="dict"):
        fastce.show_config(mode="json")


def test_one_version():
    """What the distribution was built with, what show_config prints, what CITATION.cff names."""
    assert fastce.__version__ == version("fastce") == fastce.show_config(mode="dict")["versions"]["fastce"]
    citation = (Path(__file__).parent.parent / "CITATION.cff").read_text()
    assert f"\nversion: {fastce.__version__}\n" in citation


def test_show_config_shows_the_threads_of_now():
    before = fastce.get_num_threads()
    try:
        fastce.set_num_threads(7)
        assert "7" in repr(fastce.show_config(mode="dict"))
    finally:
        fastce.set_num_threads(before)


def test_public_names():
    for name in fastce.__all__:
        assert hasattr(fastce, name)
        assert getattr(fastce, name).__doc__ if name != "__version__" else True
    for name in ("cross_entropy", "cross_entropy_and_grad", "show_config"):
        assert name in fastce.__all__
    for name in ("get_num_threads", "set_num_threads"):
        assert name in fastce.__all__
