"""For all tests: the levels, fresh interpreters, one measure of error, one generator of nasty inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Before fastce is loaded. Workers of pytest-xdist share the cores: threads that wait shall not hold any. And
# where it is said how they wait, calls of little work have threads too, as those of tests are to have.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from scipy import __version__ as scipy_version

import fastce
from fastce.reference import ulp_distance

# The levels are set by a function-scoped fixture that stays the same over the examples of a test.
settings.register_profile(
    "fastce",
    deadline=None,
    database=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=100 if os.environ.get("CI") else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastce")

# Signs and NaN of sums with infinities became what they are in SciPy 1.16, the first for Python 3.11.
NEW_SIGNS = tuple(map(int, scipy_version.split(".")[:2])) >= (1, 16)

FLOATS = [np.dtype(t) for t in (np.float32, np.float64)]
HALVES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16)]
DTYPES = FLOATS + HALVES

# Around every vector width, group of vectors, walk and piece that a kernel may have: 4, 8, 16, 32, 64 lanes,
# few classes up to 64 or 128, chunks of 8192.
CLASS_COUNTS = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 34, 56, 57, 63, 64, 65, 100),
    *(127, 128, 129, 130, 1000, 1003, 4096, 4097, 8191, 8192, 8193, 16385, 32000, 40000, 262144),
)
BATCH_SIZES = (0, 1, 2, 3, 7, 15, 16, 17, 64, 65, 1000)

# ULP of the exact result that the documentation promises (for hard targets): per-row loss and
# gradient.
LOSS_ULP = {np.dtype(np.float32): 2, np.dtype(np.float64): 4}
GRAD_ULP = {np.dtype(np.float32): 4, np.dtype(np.float64): 8}
for _half in HALVES:
    # Computed in float32, then rounded once: half an ULP, and the 4 ULP of float32 seen from the
    # narrower type.
    GRAD_ULP[_half] = 0.5 + 4 * 2.0 ** (ml_dtypes.finfo(_half).nmant - 23)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """One a thread that fastce would take: a container's share counts. Each imports PyTorch."""
    return min(fastce.get_num_threads(), 8)


def pytest_addoption(parser):
    parser.addoption("--fuzz-executions", type=int, default=2000, help="of tests/test_fuzz.py, in all")
    parser.addoption("--fuzz-seed", type=int, default=0, help="another one draws other examples")


# For tests of what a process takes: sanitizers take more.
UNSANITIZED = pytest.mark.skipif(
    bool({"ASAN_OPTIONS", "TSAN_OPTIONS"} & set(os.environ)),
    reason="under a sanitizer, which needs memory and stacks itself",
)


def pytest_configure(config):
    config.addinivalue_line("markers", "once: independent of the level in this process, runs once")


def pytest_generate_tests(metafunc):
    if "level" in metafunc.fixturenames and not metafunc.definition.get_closest_marker("once"):
        metafunc.parametrize("level", fastce._kernels.runnable(), indirect=True)


@pytest.fixture(autouse=True)
def level(request, monkeypatch):
    """The instruction-set level the test runs on; tests marked ``once`` keep the default one."""
    if not hasattr(request, "param"):
        return None
    for module in fastce._kernels.MODULES:
        monkeypatch.setattr(fastce._kernels, module, fastce._kernels.load(request.param, module))
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


def compute_dtype(dtype):
    """The dtype in which per-row losses of such logits come."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def bits(a):
    """The bytes of `a` in C order: 0 and -0 are different, all NaN are the same."""
    a = np.array(a)
    if a.dtype.kind not in "biu":
        a[np.isnan(a)] = np.nan
    return a.tobytes()


def assert_ulp(actual, exact, bound, scale=None, label=""):
    """Each element of `actual` is within `bound` ULP of the exact result.

    In the subnormal range the ULP is constant: what the bound allows there is the relative error it
    stands for at the smallest normal number, and half a unit for the rounding to a subnormal.
    Infinity is the number after the largest.
    """
    actual = np.asarray(actual)
    info = ml_dtypes.finfo(actual.dtype)
    tiny, largest = float(info.smallest_normal), float(info.max)
    distance = ulp_distance(actual, exact, scale)
    if np.isinf(actual).any():
        below = np.clip(actual, -largest, largest).astype(actual.dtype)
        distance = np.minimum(distance, 1 + ulp_distance(below, exact, scale))
    size = np.abs(np.asarray(exact if scale is None else scale))
    with np.errstate(all="ignore"):
        allowed = np.where(size < tiny, 0.5 + bound * (size / tiny).astype(float), bound)
        excess = np.asarray(distance - allowed)
    if (wrong := ~(excess <= 0)).any():
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"{label}: {wrong.sum()} of {wrong.size} off, worst at {tuple(map(int, worst))}: "
            f"{np.broadcast_to(distance, excess.shape)[worst]:.3g} ULP instead of "
            f"{np.broadcast_to(allowed, excess.shape)[worst]:.3g}, got {actual[worst]!r}, "
            f"exact {np.broadcast_to(exact, excess.shape)[worst]!r}"
        )


def python(code, *arguments, timeout=120, check=True, watched=True, **environment):
    """Run code in a fresh interpreter that can import what is in tests/; if it hangs, a thread says where."""
    if watched:
        code = f"import faulthandler; faulthandler.dump_traceback_later({timeout - 10}, exit=True)\n{code}"
    here = Path(__file__).parent
    rooms = sorted({path.parent for path in here.rglob("test_*.py")})
    before = os.environ.get("PYTHONPATH")
    package = Path(fastce.__file__).parents[1]  # the clone, or where a wheel was installed
    path = os.pathsep.join(map(str, [*rooms, package, *filter(None, [before])]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


# --- the generator: each kind makes one row of float64 numbers and its label, for a given dtype ---


def _normal(scale):
    def kind(rng, n_classes, dtype):
        return rng.normal(size=n_classes) * scale, rng.integers(n_classes)

    return kind


def _confident(lead):
    """The target stands above all others, where `lse - x_y` and `p_y - 1` lose all digits."""

    def kind(rng, n_classes, dtype):
        x, y = _normal(1)(rng, n_classes, dtype)
        x[y] = x.max() + lead
        return x, y

    return kind


def _wrong(lead):
    """Another logit stands above all the others."""

    def kind(rng, n_classes, dtype):
        x, y = _confident(lead)(rng, n_classes, dtype)
        return x, (y + 1) % n_classes

    return kind


def _offset(offset):
    def kind(rng, n_classes, dtype):
        x, y = _normal(3)(rng, n_classes, dtype)
        return x + np.clip(offset, -0.5 * largest(dtype), 0.5 * largest(dtype)), y

    return kind


def _uniform(rng, n_classes, dtype):
    return np.full(n_classes, rng.normal() * 10), rng.integers(n_classes)


def _jitter(rng, n_classes, dtype):
    """All logits within a few units in the last place of one number."""
    eps = float(ml_dtypes.finfo(dtype).eps)
    return 3 + 4 * eps * rng.integers(-3, 4, n_classes), rng.integers(n_classes)


def _ties(rng, n_classes, dtype):
    return rng.integers(-2, 3, n_classes).astype(float), rng.integers(n_classes)


def _tied_maximum(rng, n_classes, dtype):
    """The target is one of two maxima."""
    x, y = _normal(5)(rng, n_classes, dtype)
    x[y] = x[y - 1] = x.max() + 12
    return x, y


def _argmax(rng, n_classes, dtype):
    x = rng.normal(size=n_classes) * 3
    return x, x.argmax()


def _argmin(rng, n_classes, dtype):
    x = rng.normal(size=n_classes) * 3
    return x, x.argmin()


def _masked(value):
    """Half of the classes are masked out, the target is not."""

    def kind(rng, n_classes, dtype):
        x, y = _normal(3)(rng, n_classes, dtype)
        masked = rng.random(n_classes) < 0.5
        masked[y] = False
        x[masked] = value if value is not None else -largest(dtype)
        return x, y

    return kind


def _masked_target(value):
    """The target alone is masked out: an infinite or enormous loss, a gradient like any other."""

    def kind(rng, n_classes, dtype):
        x, y = _normal(3)(rng, n_classes, dtype)
        x[y] = value if value is not None else -largest(dtype)
        return x, y

    return kind


def _swamped(rng, n_classes, dtype):
    """Many terms, each below the rounding error of 1, that together are not."""
    x = np.full(n_classes, -39.0 if dtype == np.float64 else -18.4)
    top = rng.integers(n_classes)
    y = (top + rng.integers(1, n_classes)) % n_classes if n_classes > 1 else 0
    x[top], x[y] = 0, -0.5
    return x, y


def _near_gap(rng, n_classes, dtype):
    """The target is a hair below the maximum; all others are far away."""
    x, y = rng.normal(size=n_classes) - 45, rng.integers(n_classes)
    x[y], x[y - 1] = 2, 2 + 2 * float(ml_dtypes.finfo(dtype).eps)
    return x, y


def _subnormal(rng, n_classes, dtype):
    """The maximum is not the target; all other probabilities are subnormal or just above."""
    low, high = (-746, -706) if dtype == np.float64 else (-104, -85)
    x, y = rng.uniform(low, high, n_classes), rng.integers(n_classes)
    x[y - 1] = 0
    return x, y


def _confident_subnormal(rng, n_classes, dtype):
    """The target is the maximum; loss and gradient are sums of subnormal exps, or a bit above."""
    x, y = _subnormal(rng, n_classes, dtype)
    return x, (y - 1) % n_classes


def _extreme(rng, n_classes, dtype):
    """Differences that overflow."""
    return rng.choice([-1.0, -0.5, 0, 0.5, 1], n_classes) * largest(dtype), rng.integers(n_classes)


def _tiny(rng, n_classes, dtype):
    """Logits that are subnormal themselves."""
    unit = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    return rng.integers(-9, 10, n_classes) * unit, rng.integers(n_classes)


def _step_down(gap):
    """The target stands so far above all others, which are equal, that exp(-gap) is subnormal or nearly."""

    def kind(rng, n_classes, dtype):
        x, y = np.full(n_classes, -float(gap)), rng.integers(n_classes)
        x[y] = 0
        return x, y

    return kind


KINDS = {
    "normal": _normal(3),
    "wide": _normal(20),
    "confident 25": _confident(25),
    "confident 60": _confident(60),
    "wrong 12": _wrong(12),
    "wrong 40": _wrong(40),
    "offset 1e4": _offset(1e4),
    "offset -1e6": _offset(-1e6),
    "uniform": _uniform,
    "jitter": _jitter,
    "ties": _ties,
    "tied maximum": _tied_maximum,
    "argmax": _argmax,
    "argmin": _argmin,
    "masked -inf": _masked(-np.inf),
    "masked lowest": _masked(None),
    "target -inf": _masked_target(-np.inf),
    "target lowest": _masked_target(None),
    "swamped": _swamped,
    "near gap": _near_gap,
    "subnormal": _subnormal,
    "confident subnormal": _confident_subnormal,
    "extreme": _extreme,
    "tiny": _tiny,
    "step 101": _step_down(101),
    "step 712": _step_down(712),
    "step 735": _step_down(735),
}


def largest(dtype):
    return float(ml_dtypes.finfo(dtype).max)


def nasty(dtype, n_rows, n_classes, kinds=tuple(KINDS), seed=0):
    """An (n_rows, n_classes) batch of logits of `dtype`, going through `kinds`, and its labels."""
    dtype = np.dtype(dtype)
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    rng = np.random.default_rng([seed, n_rows, n_classes, *map(ord, "".join(kinds))])
    x, y = np.empty((n_rows, n_classes), dtype), np.empty(n_rows, np.int64)
    for i in range(n_rows):
        row, y[i] = KINDS[kinds[i % len(kinds)]](rng, n_classes, dtype)
        x[i] = row.astype(dtype)
    return x, y
