"""What a host has set in its floating-point environment stays as it is, and changes no result.

Incidents of the kind: gevent #1891 and numpy #20895, shared objects that flush everyone's subnormals to zero.
"""

import ctypes
import platform
import struct
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import bits, nasty

import fastce

libm = ctypes.CDLL(None)

# Where glibc's fenv_t has the register of settings, and what hosts set there: AMD64 Architecture Programmer's
# Manual 1, 4.2.2; Arm Architecture Reference Manual, FPCR.
if platform.machine() in ("x86_64", "AMD64"):
    SIZE, OFFSET = 32, 28
    SETTINGS = {
        "flush to zero": 0x9FC0,
        "downwards": 0x3F80,
        "upwards": 0x5F80,
        "towards zero": 0x7F80,
        "traps": 0x1000,  # inexact alone stays masked: Python itself would be stopped
        "flags raised": 0x1FBF,
    }
else:
    SIZE, OFFSET = 8, 0
    SETTINGS = {"flush to zero": 1 << 24, "upwards": 1 << 22, "downwards": 2 << 22, "towards zero": 3 << 22}

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the layout of fenv_t is known for glibc on x86-64 and arm64",
)


def registers():
    saved = ctypes.create_string_buffer(SIZE)
    assert libm.fegetenv(saved) == 0
    return saved


@contextmanager
def environment(settings):
    before = registers()
    changed = ctypes.create_string_buffer(before.raw, SIZE)
    struct.pack_into("I", changed, OFFSET, settings)
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(before)


def cases():
    """Calls of each kind, on rows whose results a setting would change: subnormal, inexact, NaN, large."""
    kinds = (
        "normal",
        "subnormal",
        "confident subnormal",
        "extreme",
        "masked -inf",
        "step 101",
        "step 735",
        "tiny",
    )
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for n_classes, n_rows in ((3, 40), (200, 300), (20_000, 3), (20_000, 4)):
            x, y = nasty(dtype, n_rows, n_classes, kinds)
            q, w = rng.dirichlet(np.ones(n_classes), n_rows), rng.uniform(size=n_classes)
            p = rng.uniform(size=(n_rows, n_classes)).astype(dtype)
            options = {
                "weight": w,
                "label_smoothing": 0.1,
                "z_loss": 1e-3,
                "temperature": 0.7,
                "softcap": 30.0,
            }
            yield from [
                (fastce.cross_entropy_and_grad, (x, y), {"reduction": "none"}),
                (fastce.cross_entropy_and_hess, (x, y), options),
                (fastce.cross_entropy_and_grad, (x, q), {"sample_weight": p[:, 0], "temperature": 3.0}),
                (fastce.focal_loss_and_grad, (x, y), {"weight": w}),
                (fastce.margin_cross_entropy_and_grad, (2 * p - 1, y), {"margin1": 1.1}),
                (fastce.nll_loss, (x, y), {"reduction": "sum"}),
                (fastce.binary_cross_entropy_with_logits_and_hess, (x, q), {"weight": w, "pos_weight": w}),
                (fastce.binary_cross_entropy_with_logits_and_grad, (x, p), {"reduction": "none"}),
                (fastce.binary_focal_loss_and_grad, (x, p), {"alpha": 0.3}),
                (fastce.binary_cross_entropy, (p, p), {}),
                (fastce.logsumexp, (x, -1, p - 0.5), {"return_sign": True}),
                (fastce.softmax, (x, -1), {}),
                (fastce.log_softmax, (x, 0), {}),
            ]


CASES = list(cases())


def results(case, n_threads):
    function, arguments, options = case
    result = function(*arguments, n_threads=n_threads, **options)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", SETTINGS)
def test_hosts_settings(name):
    """Neither the thread that calls nor those it starts go along; flags and settings are as before."""
    expected = [list(map(bits, results(case, 1))) for case in CASES]
    found = []

    def host():  # a thread of its own, so that those of the OpenMP runtime are started from it and inherit
        for case in CASES:
            for n_threads in (1, 3):
                with environment(SETTINGS[name]):
                    before = registers()
                    result = results(case, n_threads)
                    after = registers()
                found.append((case[0].__name__, list(map(bits, result)), before.raw == after.raw))

    thread = threading.Thread(target=host)
    thread.start()
    thread.join()
    assert len(found) == 2 * len(CASES)
    for i, (function, result, unchanged) in enumerate(found):
        assert result == expected[i // 2], function
        assert unchanged, function


def test_refusals_leave_the_settings():
    x = np.zeros((2, 3))
    for settings in SETTINGS.values():
        with environment(settings):
            before = settings_of(registers())
            for target in ([0, 7], [0], [0.5, 0.5]):
                with pytest.raises((IndexError, ValueError)):
                    fastce.cross_entropy_and_grad(x, np.array(target))
                with pytest.raises(ValueError, match="target"):
                    fastce.binary_cross_entropy_with_logits_and_grad(x, np.array([*target, 9, 9]))
            assert settings_of(registers()) == before


def settings_of(saved):
    """Without the flags, bits 0 to 5 on x86-64: pytest may raise some."""
    return struct.unpack_from("I", saved, OFFSET)[0] & ~0x3F
