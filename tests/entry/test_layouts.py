"""Every memory layout of the logits, every position of the class axis: the same answer."""

import itertools

import numpy as np
import pytest
from conftest import DTYPES, FLOATS, GRAD_ULP, HALVES, LOSS_ULP, assert_ulp, bits, nasty

import fastce
from fastce import reference


def _unaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _swapped(x):
    return x.astype(x.dtype.newbyteorder())


def _transposed(x):
    return np.ascontiguousarray(x.T).T


class _ArrayLike:
    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


LAYOUTS = {
    "swapped": _swapped,
    "unaligned": _unaligned,
    "unaligned swapped": lambda x: _unaligned(_swapped(x)),
    "read-only": _read_only,
    "Fortran": np.asfortranarray,
    "strided classes": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "strided rows": lambda x: np.repeat(x, 3, axis=0)[::3],
    "padded rows": lambda x: np.pad(x, [(0, 0), (1, 4)])[:, 1:-4],
    "reversed classes": lambda x: x[:, ::-1].copy()[:, ::-1],
    "reversed rows": lambda x: x[::-1].copy()[::-1],
    "reversed both, swapped": lambda x: _swapped(x[::-1, ::-1])[::-1, ::-1],
    "Fortran, strided": lambda x: np.repeat(np.asfortranarray(x), 2, axis=0)[::2],
    "field of records": lambda x: _field(x),
    "array-like": _ArrayLike,
    "subclass": lambda x: x.view(np.memmap),
}


def _field(x):
    """Neither contiguous nor a whole number of elements apart."""
    records = np.zeros(x.shape, np.dtype([("pad", "u1"), ("x", x.dtype)]))
    records["x"] = x
    return records["x"]


# bfloat16 has no other byte order.
CASES = [(d, name) for d in DTYPES for name in LAYOUTS if d != HALVES[1] or "swapped" not in name]


@pytest.mark.parametrize(("dtype", "layout"), CASES, ids=str)
def test_same_bits_as_contiguous(dtype, layout):
    for shape in ((50, 3), (50, 10), (7, 33), (30, 129), (3, 5000)):
        x, y = nasty(dtype, *shape)
        loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
        other = LAYOUTS[layout](x)
        got_loss, got_grad = fastce.cross_entropy_and_grad(other, y, reduction="none")
        if layout == "Fortran" and shape[1] > 64:
            # Rows adjacent in memory are summed side by side, in another order: right, not the same.
            exact_loss, exact_grad = reference.cross_entropy_and_grad(x, y, reduction="none")
            assert_ulp(got_loss, exact_loss, LOSS_ULP[got_loss.dtype])
            assert_ulp(got_grad, exact_grad, GRAD_ULP[dtype])
            continue
        assert bits(got_loss) == bits(loss)
        assert bits(got_grad.astype(dtype)) == bits(grad)
        assert got_grad.dtype == getattr(other, "dtype", dtype)
        assert bits(fastce.cross_entropy(other, y, reduction="none")) == bits(loss)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_memmap(dtype, tmp_path):
    x, y = nasty(dtype, 40, 100)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
    for mode in ("r", "c"):
        mapped_x = np.load(tmp_path / "x.npy", mmap_mode=mode)
        mapped_y = np.load(tmp_path / "y.npy", mmap_mode=mode)
        got = fastce.cross_entropy_and_grad(mapped_x, mapped_y, reduction="none")
        assert bits(got[0]) == bits(loss)
        assert bits(got[1]) == bits(grad)
    assert bits(np.load(tmp_path / "x.npy")) == bits(x)


def test_lists_and_memoryviews():
    x, y = nasty(np.float64, 5, 7)
    expected = fastce.cross_entropy_and_grad(x, y, reduction="none")
    for like in (x.tolist(), memoryview(x), tuple(map(tuple, x.tolist()))):
        got = fastce.cross_entropy_and_grad(like, y.tolist(), reduction="none")
        assert bits(got[0]) == bits(expected[0])
        assert bits(got[1]) == bits(expected[1])
        assert isinstance(got[1], np.ndarray)


@pytest.mark.parametrize("which", ["rows", "classes", "both"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_broadcast(dtype, which):
    """Strides of zero."""
    x = nasty(dtype, 20, 33, "normal")[0]
    first = {"rows": x[:1], "classes": x[:, :1], "both": x[:1, :1]}[which]
    broadcast, y = np.broadcast_to(first, x.shape), np.arange(20)
    got = fastce.cross_entropy_and_grad(broadcast, y, reduction="none")
    expected = fastce.cross_entropy_and_grad(broadcast.copy(), y, reduction="none")
    assert bits(got[0]) == bits(expected[0])
    assert bits(got[1]) == bits(expected[1])
    assert got[1].flags.writeable
    # The gradient has memory of its own for each element, or rows would overwrite each other.
    assert np.unique(got[1]).size == np.unique(expected[1]).size


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_axis(dtype, order, rng):
    for n_dims in (1, 2, 3, 4, 5):
        shape = (5, 3, 4, 2, 6)[:n_dims]
        for axis in range(-n_dims, n_dims):
            x = np.asarray(rng.normal(size=shape) * 4, dtype, order=order)
            rows = tuple(np.delete(shape, axis))
            y = rng.integers(0, shape[axis], rows)
            loss, grad = fastce.cross_entropy_and_grad(x, y, axis=axis, reduction="none")
            exact = reference.cross_entropy_and_grad(x, y, axis=axis, reduction="none")
            assert np.shape(loss) == rows
            assert grad.shape == shape
            assert_ulp(loss, exact[0], LOSS_ULP[dtype], label=f"axis {axis} of {shape}")
            assert_ulp(grad, exact[1], GRAD_ULP[dtype], label=f"axis {axis} of {shape}")


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((70, 65), 0),
        ((1003, 37), 0),
        ((2, 3, 37, 5), 1),
        ((2, 21, 16, 16), 1),
        ((3, 2, 1000), 1),
        ((5000, 2), 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_class_axis_first_or_in_the_middle(dtype, shape, axis):
    """Nasty rows side by side in memory; all tails of a tile of rows."""
    n_classes, rows = shape[axis], np.delete(shape, axis)
    flat, y = nasty(dtype, int(np.prod(rows)), n_classes)
    x = np.ascontiguousarray(np.moveaxis(flat.reshape(*rows, n_classes), -1, axis))
    y = y.reshape(rows)
    exact = reference.cross_entropy_and_grad(x, y, axis=axis, reduction="none")
    for layout in (x, np.asfortranarray(x), x[::-1].copy()[::-1]):
        loss, grad = fastce.cross_entropy_and_grad(layout, y, axis=axis, reduction="none")
        assert_ulp(loss, exact[0], LOSS_ULP[loss.dtype])
        assert_ulp(grad, exact[1], GRAD_ULP[dtype])


def test_memory_order_of_the_gradient():
    """C for C, F for F, and any other order of the axes as it is."""
    for order in itertools.permutations(range(4)):
        x = np.zeros((2, 3, 4, 5)).transpose(order).copy().transpose(np.argsort(order))
        assert x.shape == (2, 3, 4, 5)
        for axis in range(4):
            y = np.zeros(np.delete(x.shape, axis), int)
            grad = fastce.cross_entropy_and_grad(x, y, axis=axis)[1]
            assert grad.strides == x.strides


def test_one_row():
    x = np.array([1.0, 3.0, -2.0])
    expected = fastce.cross_entropy_and_grad(x[None], [1])
    for label in (1, np.int8(1), np.array(1), np.array(1, ">u2")):
        loss, grad = fastce.cross_entropy_and_grad(x, label)
        assert loss == expected[0]
        assert grad.shape == (3,)
        assert np.array_equal(grad, expected[1][0])
    loss = fastce.cross_entropy(x, 1, reduction="none")
    assert isinstance(loss, np.ndarray)
    assert loss.shape == ()
    assert loss == expected[0]
    weighted = fastce.cross_entropy(x, 1, sample_weight=2.0, reduction="sum")
    assert weighted == 2 * expected[0]
