"""What goes on beside a call: other threads of Python's, signals, and what these do to the memory it uses."""

import array
import mmap
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from calls import SHAPES, digest, digests
from conftest import python

import fastce

pytestmark = pytest.mark.once  # the levels share what this is about

ROWS, CLASSES = 5000, 1000
FAMILIES = ("cross_entropy_and_grad", "binary_cross_entropy_with_logits_and_grad")


def long_calls():
    """One call of each function, in one thread and long enough for another thread to wake up in."""
    x = np.broadcast_to(np.random.default_rng(0).normal(size=CLASSES), (ROWS, CLASSES))
    y, hits = np.zeros(ROWS, int), np.broadcast_to(np.arange(CLASSES) % 2, (ROWS, CLASSES))
    many, labels = np.broadcast_to(x[0], (10**7, CLASSES)), np.broadcast_to(np.int8(1), 10**7)
    softmax = "cross_entropy"
    yield from ((name, x, y) for name in (softmax, f"{softmax}_and_grad", f"{softmax}_and_hess"))
    yield from ((name, x, y) for name in ("focal_loss", "focal_loss_and_grad"))
    yield from ((name, x, y) for name in ("hinge_loss", "hinge_loss_and_grad"))
    yield from ((name, np.tanh(x), y) for name in ("margin_cross_entropy", "margin_cross_entropy_and_grad"))
    yield "nll_loss", many, labels
    yield from ((name, x, 1) for name in ("softmax", "log_softmax", "logsumexp"))
    binary = "binary_cross_entropy_with_logits"
    yield from ((name, x, hits) for name in (binary, f"{binary}_and_grad", f"{binary}_and_hess"))
    yield from ((name, x, hits) for name in ("binary_focal_loss", "binary_focal_loss_and_grad"))
    yield "binary_cross_entropy", hits / 2, hits


LONG = list(long_calls())


# ---- The GIL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "first", "second"), LONG, ids=[name for name, *_ in LONG])
def test_another_thread_gets_on(name, first, second):
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        while not ticks:
            time.sleep(0.001)
        for _ in range(50):  # one call may end before the other thread is scheduled at all
            start = time.perf_counter()
            getattr(fastce, name)(first, second, n_threads=1)
            end = time.perf_counter()
            # Not its ends: there the other thread gets the GIL, too, of a call that keeps it.
            margin = (end - start) / 8
            if sum(start + margin < t < end - margin for t in list(ticks)) >= 3:
                return
        pytest.fail("the other thread stood still")
    finally:
        stop.set()
        thread.join()


# ---- Signals ----------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np
import fastce
from calls import digests

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
x = np.random.default_rng(0).normal(size=(20_000, 200))
target = np.zeros(len(x), int) if sys.argv[1].startswith("cross") else x > 0
function, out = getattr(fastce, sys.argv[1]), np.empty_like(x)
before = digests(2)
function(x, target, out=out, n_threads=1)
expected, times = out.tobytes(), []

def interrupt():
    go.wait()
    time.sleep(usual / 8)
    times.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

for attempt in range(300):
    start = time.perf_counter()
    function(x, target, out=out, n_threads=1)
    usual = time.perf_counter() - start
    out[...] = 7
    go, thread = threading.Event(), threading.Thread(target=interrupt)
    thread.start()
    try:
        start = time.perf_counter()
        go.set()
        function(x, target, out=out, n_threads=1)
        thread.join()
        while True:
            time.sleep(0.01)  # the signal came after the call
    except KeyboardInterrupt:
        end = time.perf_counter()
    thread.join()
    if times[-1] < start + usual / 2 and end - start > usual / 2:  # neither before the call nor after it
        assert out.tobytes() == expected
        break
else:
    sys.exit("no signal came during a call")
assert digests(2) == before
"""


@pytest.mark.parametrize("name", FAMILIES)
def test_ctrl_c(name):
    """The interrupt waits for the call to return, with its results complete; fastce is as good as before."""
    python(INTERRUPTED, name)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this platform")
def test_a_signal_handler_that_computes():
    names = [
        f"{name}, float32, {shape}" for name in ("gradient", "binary gradient", "softmax") for shape in SHAPES
    ]
    expected = digests(names=names)
    seen = []

    def handler(number, frame):
        name = names[len(seen) % len(names)]
        seen.append(digests(names=[name]) == {name: expected[name]})
        signal.setitimer(signal.ITIMER_REAL, 0.002)  # once: a signal in here would make it a tower

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        deadline = time.monotonic() + 60
        while len(seen) < 2 * len(names) and time.monotonic() < deadline:
            assert digests(names=names) == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) >= 2 * len(names)
    assert all(seen)


# ---- Memory that is not fastce's --------------------------------------------------------------------


class Owner:
    """Memory that is freed when this object is."""

    def __init__(self, a):
        self.memory = a
        self.__array_interface__ = a.__array_interface__


@pytest.mark.parametrize(("name", "first", "second"), LONG, ids=[name for name, *_ in LONG])
def test_arrays_that_nobody_else_holds(name, first, second):
    """They live until the call returns: the caller has let go of them at once, as another thread might."""
    for _ in range(10):  # this thread may have to wait between the memory's end and the call's
        freed, given = [], [Owner(first)]
        weakref.finalize(given[0], lambda freed=freed: freed.append(time.perf_counter()))
        start = time.perf_counter()
        result = getattr(fastce, name)(given.pop(), second, n_threads=1)
        end = time.perf_counter()
        assert result is not None
        assert len(freed) == 1
        if freed[0] - start > 0.75 * (end - start):
            return
    pytest.fail("the memory was let go of before the call had returned")


class Meddler:
    """A target that, asked for its numbers during a call, first tries to take the logits' memory away."""

    def __init__(self, target, act):
        self.target, self.act, self.refused = target, act, None

    def __array__(self, dtype=None, copy=None):
        try:
            self.act()
        except (BufferError, ValueError, SystemError) as error:
            self.refused = error
        return self.target


def _array(x):
    x = x.copy()
    return x, lambda: x.resize((1000, 1000))


def _bytearray(x):
    memory = bytearray(x.tobytes())
    return memoryview(memory).cast("d", x.shape), lambda: memory.extend(bytes(10**6))


def _array_array(x):
    memory = array.array("d", x[0].tolist())
    return memory, lambda: memory.extend(range(10**6))


def _mmap(x):
    memory = mmap.mmap(-1, x.nbytes)
    memory.write(x.tobytes())
    return memoryview(memory).cast("d", x.shape), memory.close


@pytest.mark.parametrize("make", [_array, _bytearray, _array_array, _mmap])
@pytest.mark.parametrize("name", FAMILIES)
def test_memory_is_not_resized_under_a_call(name, make):
    x = np.random.default_rng(0).normal(size=(5, 7))
    given, act = make(x)
    used = np.asarray(given).copy()
    target = np.zeros(used.shape[:-1], int) if name.startswith("cross") else used * 0
    function = getattr(fastce, name)
    meddler = Meddler(target, act)
    del used
    assert digest(function(given, meddler)) == digest(function(np.array(given), target))
    assert meddler.refused is not None


def test_resizing_from_another_thread():
    """Refused from the beginning of a call on; once it has returned, it may succeed."""
    y = np.zeros(ROWS, int)
    for _ in range(10):  # the caller may have to wait between the call's end and the time that it writes down
        x = np.zeros((ROWS, CLASSES))
        given, times, refused, succeeded = [x], [], [], []

        def caller(given=given, times=times):
            times.append(time.perf_counter())
            fastce.cross_entropy_and_grad(given.pop(), y, n_threads=1)
            times.append(time.perf_counter())

        thread = threading.Thread(target=caller)
        thread.start()
        while thread.is_alive() and not succeeded:
            if given or not times:
                continue
            try:
                x.resize((1, 1))
                succeeded.append(time.perf_counter())
            except ValueError:
                refused.append(time.perf_counter())
                time.sleep(0)
        thread.join()
        start, end = times
        late = start + 0.75 * (end - start)
        if refused and refused[0] < late and not (succeeded and succeeded[0] < late):
            return
    pytest.fail("the array was not refused, or resized before the call had returned")


CHANGED = """
import threading, time
import numpy as np
import fastce

rng = np.random.default_rng(0)
x, labels = rng.normal(size=(5000, 50)), rng.integers(50, size=5000)
hits, wide = (x > 0).astype(float), rng.normal(size=(3, 20_000))
stop, outcomes = threading.Event(), {}

def meddle():
    while not stop.is_set():
        labels[::7], hits[::7] = 2**40, 5
        labels[::5], hits[::5] = -(2**62), np.nan
        labels[...], hits[...] = 3, 0

thread = threading.Thread(target=meddle)
thread.start()
out = np.empty_like(x)
deadline = time.monotonic() + 1
while time.monotonic() < deadline:
    for name in ("cross_entropy", "cross_entropy_and_grad", "cross_entropy_and_hess", "focal_loss_and_grad",
                 "hinge_loss_and_grad", "margin_cross_entropy_and_grad", "nll_loss"):
        for a, y, axis in ((x, labels, 1), (x.T, labels, 0), (wide, labels[4997:], 1)):
            for options in ({}, {"weight": np.ones(a.shape[axis])}, {"reduction": "none"}):
                try:
                    getattr(fastce, name)(a, y, axis=axis, **options)
                    outcome = "a result"
                except (IndexError, RuntimeError) as error:
                    outcome = type(error).__name__
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
    try:
        fastce.binary_cross_entropy_with_logits_and_grad(x, hits, out=out)
        fastce.binary_focal_loss(x, hits)
    except (ValueError, RuntimeError):
        pass
stop.set()
thread.join()
print(outcomes)
"""


def test_labels_that_change_during_a_call():
    """Checked where they are used, too: a result is some mixture, and no memory but the arrays' is read."""
    outcomes = python(CHANGED).stdout
    assert "a result" in outcomes
    assert "IndexError" in outcomes
