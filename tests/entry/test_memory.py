"""What a call takes besides its arguments and its results."""

import ctypes
import json
import mmap
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from calls import Call, calls
from conftest import FLOATS, UNSANITIZED

import fastce


def extra(call, **more):
    """Bytes that Python and NumPy allocate at most during a call, without those that are returned."""
    call.results(**more)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        results = call.results(**more)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return most - before - sum(a.nbytes for a in results if isinstance(a, np.ndarray))


def before_a_page(shape, dtype):
    """An array that ends where memory that can't be read begins."""
    page, size = mmap.PAGESIZE, int(np.prod(shape)) * dtype.itemsize
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + whole
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(page), 0) == 0
    return np.frombuffer(memory, dtype, int(np.prod(shape)), whole - size).reshape(shape)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")
@pytest.mark.parametrize("n_classes", [1, 3, 7, 127, 130, 131, 135, 1025, 1031, 8195])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_is_read_or_written_behind_an_array(dtype, n_classes):
    x, out = (before_a_page((3, n_classes), np.dtype(dtype)) for _ in range(2))
    x[...] = np.linspace(-3, 3, x.size).reshape(x.shape)
    y, copy = np.arange(3) % n_classes, x.copy()
    for function in (fastce.softmax, fastce.log_softmax):
        assert (function(x, axis=-1, out=out) == function(copy, axis=-1)).all()
    assert (fastce.logsumexp(x, axis=-1) == fastce.logsumexp(copy, axis=-1)).all()
    for options in ({}, {"label_smoothing": 0.1}, {"temperature": 2.0}, {"softcap": 10.0}):
        assert fastce.cross_entropy(x, y, **options) == fastce.cross_entropy(copy, y, **options)
        _, expected = fastce.cross_entropy_and_grad(copy, y, **options)
        assert (fastce.cross_entropy_and_grad(x, y, out=out, **options)[1] == expected).all()
    fastce.cross_entropy_and_grad(x, y, out=x)
    assert (x == fastce.cross_entropy_and_grad(copy, y)[1]).all()


@pytest.mark.parametrize("shape", [(20_000, 50), (50, 20_000)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_that_is_not_returned(dtype, shape):
    """No array but class weights in the kernels' dtype, and two numbers per row of a logsumexp."""
    for call in calls(dtype.type, *shape):
        allowed = 8 * 1024
        if "weight" in call.options:
            allowed += 8 * shape[1]
        if call.function is fastce.logsumexp:
            allowed += 3 * shape[0] * dtype.itemsize
        for reduction in ("mean", "none"):
            more = {"reduction": reduction} if call.reduces else {}
            assert extra(call, **more) <= allowed, (call.name, reduction)


@pytest.mark.parametrize("order", ["C", "F"])
def test_axes_that_join_are_not_copied(order):
    x = np.asarray(np.ones((100, 300, 20)), order=order)
    axes = (0, 1) if order == "F" else (1, 2)
    for call in (Call("", fastce.logsumexp, (x,), {"axis": axes}), Call("", fastce.logsumexp, (x,), {})):
        assert extra(call) <= 16 * 1024
    for function in (fastce.softmax, fastce.log_softmax):
        assert extra(Call("", function, (x,), {"out": np.empty_like(x)})) - x.nbytes <= 8 * 1024


IN_PLACE = """
import json, resource, sys
import numpy as np
import fastce

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

x = np.ones(SHAPE, np.DTYPE)
y = np.zeros(len(x), int)
before = peak()
fastce.cross_entropy_and_grad(x, y, OPTIONS, out=x, n_threads=4)
print(json.dumps(peak() - before))
"""


@UNSANITIZED
@pytest.mark.once
@pytest.mark.parametrize("options", ["", "label_smoothing=0.1, softcap=30", "sample_weight=np.ones(len(x))"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((2**20, 60), "float32"), ((2**15, 2000), "float32"), ((40, 2**20), "float16")]
)
def test_in_place(shape, dtype, options):
    """Stacks, scratches of threads and all: less than 4 MiB per thread beside arrays of 80 to 250 MB."""
    pytest.importorskip("resource", reason="peaks of a process are told by Unix alone")
    code = IN_PLACE
    for name, value in {"SHAPE": str(shape), "DTYPE": dtype, "OPTIONS": options}.items():
        code = code.replace(name, value)
    done = subprocess.run(
        [sys.executable, "-c", code.replace(", ,", ",")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    weights = shape[0] * 8 if "sample_weight" in options else 0
    assert json.loads(done.stdout) - weights < 4 * 4 * 2**20
