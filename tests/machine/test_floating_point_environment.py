"""What a host has set in its floating-point environment stays as it is, and changes no result.

Incidents of the kind: gevent #1891 and numpy #20895, shared objects that flush everyone's subnormals to zero.
"""

import ctypes
import gc
import platform
import struct
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from calls import Call, calls
from conftest import bits

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


# Rows whose results a setting would change: subnormal, inexact, NaN, large.
KINDS = (
    "normal",
    "subnormal",
    "confident subnormal",
    "extreme",
    "masked -inf",
    "step 101",
    "step 735",
    "tiny",
)
CALLS = [
    call
    for dtype in (np.float32, np.float64)
    for shape in ((40, 3), (300, 200), (3, 20_000), (4, 20_000))
    for call in calls(dtype, *shape, KINDS)
]
CALLS += [  # integers that float64 has to round
    Call(function.__name__, function, (np.array([[2**53 + 1, 2**53, 2**53 - 3]]),), {"axis": -1})
    for function in (fastce.softmax, fastce.log_softmax, fastce.logsumexp)
]


@pytest.mark.parametrize("name", SETTINGS)
def test_hosts_settings(name):
    """Neither the thread that calls nor those it starts go along; flags and settings are as before."""
    expected = [list(map(bits, call.results(n_threads=1))) for call in CALLS]
    found = []

    def host():
        # A thread of its own, so that those of the OpenMP runtime are started from it and inherit: by a
        # function that does not enter the usual environment before it starts them.
        with environment(SETTINGS[name]):
            fastce.softmax(np.zeros((3000, 30)), axis=1, n_threads=3)
        for call in CALLS:
            for n_threads in (1, 3):
                with environment(SETTINGS[name]):
                    before = registers()
                    result = call.results(n_threads=n_threads)
                    after = registers()
                found.append((call, list(map(bits, result)), before, after))

    thread = threading.Thread(target=host)
    gc.collect()
    gc.disable()  # a collection in that thread would compute with what earlier tests have left
    try:
        thread.start()
        thread.join()
    finally:
        gc.enable()
    assert len(found) == 2 * len(CALLS)
    for i, (call, result, before, after) in enumerate(found):
        assert result == expected[i // 2], call.name
        assert settings_of(after) == settings_of(before), call.name
        if call.reduces:  # logsumexp ends with arithmetic of NumPy's, which clears the flags
            assert all_but_long_doubles(after) == all_but_long_doubles(before), call.name


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


@pytest.mark.parametrize("name", SETTINGS)
def test_lists(name):
    """Of numbers that NumPy converts: subnormal, of several dtypes, integers that have to be rounded."""
    small, wide = [5e-324, 2.0**-1030, 0.1], [np.float32(1e-45), 2**53 + 3, 2**64 - 1, 0.1]
    narrow = np.array([1e-40], np.float32)
    functions = [
        lambda: fastce.nll_loss([small], [0]),
        lambda: fastce.nll_loss([wide], [0]),
        lambda: fastce.information.self_information(small, base=3),
        lambda: fastce.information.entropy(small * 20_000),
        lambda: fastce.information.cross_entropy(small * 100, 0.1),
        lambda: fastce.information.kl_divergence(wide, small[:1]),
        lambda: fastce.binary_cross_entropy([0.5] * 3, small, weight=small),
        lambda: fastce.log_softmax(small),
        lambda: fastce.logsumexp(small, b=wide[1:]),
        lambda: fastce.logsumexp(narrow, b=np.ones(1)),
    ]
    for function in functions:
        expected = bits(function())
        with environment(SETTINGS[name]):
            result = function()
        assert bits(result) == expected


class Asked:
    """An argument that notes in which settings it is asked for its numbers."""

    def __init__(self, numbers, seen):
        self.numbers, self.seen = np.asarray(numbers), seen

    def __array__(self, dtype=None, copy=None):
        self.seen.append(settings_of(registers()))
        return self.numbers


def test_arguments_are_asked_in_the_hosts_settings():
    """Their code is the host's, not fastce's."""
    x = np.arange(6.0).reshape(2, 3)
    labels, hits = np.array([0, 2]), x > 2
    rows, classes = np.ones(2, np.float16), np.ones(3, np.float32)
    for settings in SETTINGS.values():
        seen, out = [], np.empty_like(x)

        def asked(numbers, seen=seen):
            return Asked(numbers, seen)

        with environment(settings):
            before = settings_of(registers())
            fastce.cross_entropy_and_grad(
                asked(x), asked(labels), weight=asked(classes), sample_weight=asked(rows), out=out
            )
            fastce.cross_entropy(asked(x), asked(x / 3))
            fastce.softmax(asked(x))
            fastce.logsumexp(asked(x), b=asked(x))
            fastce.binary_cross_entropy_with_logits_and_grad(
                asked(x), asked(hits), weight=asked(rows[:, None]), pos_weight=asked(classes), out=out
            )
            assert settings_of(registers()) == before
        assert len(seen) == 13  # each once
        assert set(seen) == {before}


def all_but_long_doubles(saved):
    """Without the x87 unit's status: NumPy, which converts some arguments, has long doubles and clears it."""
    raw = bytearray(saved.raw)
    if SIZE == 32:
        raw[4:6] = bytes(2)
    return bytes(raw)


def settings_of(saved):
    """Without the flags, bits 0 to 5 on x86-64: pytest may raise some."""
    return struct.unpack_from("I", saved, OFFSET)[0] & ~0x3F
