"""Sizes beyond 32 bits, and means of many rows.

Indices that wrap: pytorch #111484 and #85786. Means that lose digits as a batch grows: pytorch #55657. No
memory is needed: arrays are broadcast, or far apart in a file of holes. test_large_memory.py has the others.
"""

import math

import numpy as np
import pytest
from conftest import bits
from numpy.lib.stride_tricks import as_strided
from test_bad_input import FUNCTIONS, call, derivatives

import fastce

pytestmark = [pytest.mark.once, pytest.mark.slow]  # the levels share the code that has indices

FAR = 2**32 + 64  # bytes
MANY = 2**31
NAMES = [(name, function) for function in FUNCTIONS for name in function.names]


# ---- Addresses --------------------------------------------------------------------------------------


def far_apart(a, file, axis):
    """A copy of `a` in a new file, its neighbours along an axis FAR bytes apart: a file of holes."""
    strides = [FAR if dim == axis % a.ndim else a.itemsize for dim in range(a.ndim)]
    memory = np.memmap(file, np.uint8, "w+", shape=a.shape[axis] * FAR)
    view = as_strided(memory[: a.itemsize].view(a.dtype), a.shape, strides)
    view[...] = a
    return view


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(("name", "function"), NAMES)
def test_elements_far_apart(name, function, axis, tmp_path):
    """Every argument of every function, and what it writes: rows far apart, or the classes of each."""
    options = {"axis": 1} if "x" in function.valid or "a" in function.valid else {}
    if "out" in (written := dict(derivatives(name, function.valid))) and name == "logsumexp":
        written["out"] = np.zeros(len(function.valid["a"]))
    expected = call(name, {**function.valid, **options})
    arguments = {**function.valid, **written}
    far = {key: far_apart(a, tmp_path / key, axis) for key, a in arguments.items()}
    got = call(name, {**far, **options})
    for part, right in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, expected)), strict=True):
        assert bits(part) == bits(right)


def test_labels_of_rows_that_are_longer_than_any_int(tmp_path):
    """Classes at both ends, read from a file of holes; with a label beyond the last."""
    n_classes = MANY + 9
    for dtype in (np.float16, np.float64):
        x = np.memmap(tmp_path / "x", dtype, "w+", shape=(2, n_classes))
        x[:, 0], x[:, -1] = (-1, -2), (-3, -4)
        for label, losses in ((0, [1, 2]), (n_classes - 1, [3, 4])):
            assert fastce.nll_loss(x, np.full(2, label), reduction="none").tolist() == losses
            assert fastce.nll_loss(x.T, np.full(2, label), axis=0, reduction="none").tolist() == losses
        for label in (n_classes, -MANY, 2**32):
            with pytest.raises(IndexError, match=rf"\[1\] is {label}; .*\[0, {n_classes}\)"):
                fastce.nll_loss(x, np.array([0, label]))


# ---- Numbers of rows, classes and elements ----------------------------------------------------------


def test_more_elements_than_any_int():
    """Rows broadcast: each has the loss of one."""
    x = np.random.default_rng(0).normal(size=4096).astype(np.float16)
    shape = (MANY // 4096 + 3, 4096)
    labels = np.broadcast_to(np.int8(1), shape[:1])
    one = fastce.cross_entropy(x, 1)
    assert fastce.cross_entropy(np.broadcast_to(x, shape), labels) == one
    with pytest.raises(IndexError, match=r"target\[0\] is -1"):
        fastce.cross_entropy(np.broadcast_to(x, shape), np.broadcast_to(np.int8(-1), shape[:1]))


def test_more_classes_than_any_int():
    """A class broadcast: the loss is the logarithm of their number."""
    n_classes = MANY + 5
    loss = fastce.cross_entropy(np.broadcast_to(np.float32(1), n_classes), n_classes - 1)
    assert abs(np.float32(loss) - np.float32(math.log(n_classes))) <= 2 * np.spacing(np.float32(loss))


@pytest.mark.parametrize("shape", [(2**60, 0), (0, 2**60), (2**30, 0, 2**31)], ids=str)
def test_no_elements_of_many(shape):
    """What NumPy takes for an empty array may have axes of any length."""
    x = np.empty(shape, np.float16)
    assert fastce.binary_cross_entropy_with_logits(x, x, reduction="sum") == 0
    assert fastce.softmax(x, axis=-1).shape == fastce.log_softmax(x, axis=0).shape == shape
    for axis in range(x.ndim):
        rest = shape[:axis] + shape[axis + 1 :]
        if 0 in rest:
            loss, grad = fastce.cross_entropy_and_grad(x, np.empty(rest, int), axis=axis, reduction="sum")
            assert (loss, grad.shape) == (0, shape)
        else:
            with pytest.raises(ValueError, match="no classes"):
                fastce.cross_entropy(x, np.broadcast_to(np.int8(0), rest), axis=axis)


# ---- Means ------------------------------------------------------------------------------------------

PERIOD, REPEATS = 1000, 100_000


def periodic(a):
    """REPEATS times the same rows, in the memory of one."""
    return as_strided(a, (REPEATS, *a.shape), (0, *a.strides), writeable=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
def test_mean_of_1e8_rows(dtype):
    """Right to 1e-12: the exact mean of what the losses are by themselves."""
    rng = np.random.default_rng(7)
    x, y = (rng.normal(size=(PERIOD, 2)) * 9).astype(dtype), rng.integers(2, size=PERIOD)
    w = rng.random(PERIOD)
    one = {"reduction": "sum"}
    rows = [fastce.cross_entropy(*row, **one) for row in zip(x, y, strict=True)]
    mean = fastce.cross_entropy(periodic(x), periodic(y))
    assert math.isclose(mean, math.fsum(rows) / PERIOD, rel_tol=1e-12)
    weighted = fastce.cross_entropy(periodic(x), periodic(y), sample_weight=periodic(w))
    rows = [fastce.cross_entropy(*row, sample_weight=by, **one) for *row, by in zip(x, y, w, strict=True)]
    exact = math.fsum(rows) / math.fsum(w)
    assert math.isclose(weighted, exact, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
def test_mean_of_1e8_elements(dtype):
    rng = np.random.default_rng(7)
    x, y = (rng.normal(size=PERIOD) * 9).astype(dtype), rng.random(PERIOD).astype(dtype)
    elements = [
        fastce.binary_cross_entropy_with_logits(*one, reduction="sum") for one in zip(x, y, strict=True)
    ]
    mean = fastce.binary_cross_entropy_with_logits(periodic(x), periodic(y))
    assert math.isclose(mean, math.fsum(elements) / PERIOD, rel_tol=1e-12)
