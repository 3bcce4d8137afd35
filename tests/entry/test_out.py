"""The gradient written into an array of the caller: any layout, in place; what is refused."""

import numpy as np
import pytest
from conftest import DTYPES, FLOATS, HALVES, bits, nasty

import fastce

OUTS = {
    "C": np.empty_like,
    "F": lambda x: np.empty_like(x, order="F"),
    "strided classes": lambda x: np.empty((len(x), 2 * x.shape[1]), x.dtype)[:, ::2],
    "strided rows": lambda x: np.empty((3 * len(x), x.shape[1]), x.dtype)[::3],
    "reversed": lambda x: np.empty_like(x)[::-1, ::-1],
    "unaligned": lambda x: np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "padded": lambda x: np.empty((len(x) + 2, x.shape[1] + 3), x.dtype)[1:-1, 1:-2],
}
SHAPES = ((50, 3), (50, 10), (7, 33), (30, 129), (3, 5000))


def owned_bytes(a):
    """All of the memory that `a` is a view of."""
    while a.base is not None:
        a = a.base
    return a.ravel(order="K").view(np.uint8)


@pytest.mark.parametrize("layout", OUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_of_any_layout(dtype, layout):
    for shape in SHAPES:
        x, y = nasty(dtype, *shape)
        before = bits(x)
        loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
        assert not np.shares_memory(grad, x)
        out = OUTS[layout](x)
        memory = owned_bytes(out)
        memory[...] = 0x5A
        got, same = fastce.cross_entropy_and_grad(x, y, reduction="none", out=out)
        assert same is out
        assert bits(got) == bits(loss)
        assert bits(out) == bits(grad)
        assert bits(x) == before
        out[...] = np.full(out.itemsize, 0x5A, np.uint8).view(out.dtype)[0]
        assert (memory == 0x5A).all()  # nothing was written beside the elements of out


@pytest.mark.parametrize("layout", OUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype, layout):
    for shape in SHAPES:
        x, y = nasty(dtype, *shape)
        y[::7] = -100
        logits = OUTS[layout](x)
        logits[...] = x
        loss, grad = fastce.cross_entropy_and_grad(logits, y, reduction="none")
        got, same = fastce.cross_entropy_and_grad(logits, y, reduction="none", out=logits)
        assert same is logits
        assert bits(got) == bits(loss)
        assert bits(logits) == bits(grad)


@pytest.mark.parametrize("dtype", [*FLOATS, HALVES[0]], ids=str)
def test_in_place_with_swapped_bytes(dtype):
    x, y = nasty(dtype, 40, 33)
    grad = fastce.cross_entropy_and_grad(x, y)[1]
    logits = x.astype(dtype.newbyteorder())
    assert fastce.cross_entropy_and_grad(logits, y, out=logits)[1] is logits
    assert bits(logits.astype(dtype)) == bits(grad)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_place_along_every_axis(axis, rng):
    x = rng.normal(size=(4, 5, 6))
    y = rng.integers(0, 4, np.delete(x.shape, axis))
    loss, grad = fastce.cross_entropy_and_grad(x, y, axis=axis)
    for order in "CF":
        logits = np.array(x, order=order)
        got, same = fastce.cross_entropy_and_grad(logits, y, axis=axis, out=logits)
        assert same is logits
        assert got == loss
        assert np.array_equal(logits, grad)


def test_in_place_through_another_view():
    x, y = nasty(np.float64, 9, 10)
    expected = fastce.cross_entropy_and_grad(x, y)[1]
    view = x[:]
    assert fastce.cross_entropy_and_grad(x, y, out=view)[1] is view
    assert bits(x) == bits(expected)


def test_every_element_of_out_is_written():
    """Also for ignored rows, empty or not."""
    x, y = np.full((5, 4), np.nan), np.full(5, -100)
    out = np.full_like(x, 7)
    fastce.cross_entropy_and_grad(x, y, out=out)
    assert bits(out) == bits(np.zeros((5, 4)))


def test_out_of_integer_logits():
    """They are computed in float64, so is their gradient."""
    x = np.arange(12).reshape(3, 4)
    out = np.empty((3, 4))
    assert fastce.cross_entropy_and_grad(x, [0, 1, 2], out=out)[1] is out
    assert np.array_equal(out, fastce.cross_entropy_and_grad(x.astype(float), [0, 1, 2])[1])
    with pytest.raises((TypeError, ValueError), match="float64"):
        fastce.cross_entropy_and_grad(x, [0, 1, 2], out=x)


@pytest.mark.parametrize(
    ("shape", "axis"), [((0, 3), -1), ((0, 0), -1), ((3, 0), 0), ((3, 0, 4), 0), ((0, 3, 4), 1)]
)
def test_out_of_an_empty_batch(shape, axis):
    logits, out = np.empty(shape), np.empty(shape)
    target = np.empty(np.delete(shape, axis), int)
    loss, grad = fastce.cross_entropy_and_grad(logits, target, axis=axis, out=out)
    assert np.isnan(loss)
    assert grad is out


def test_no_classes_with_out():
    with pytest.raises(ValueError, match="no classes along axis 1"):
        fastce.cross_entropy_and_grad(np.empty((2, 0)), [0, 0], out=np.empty((2, 0)))


def test_out_that_overlaps_itself():
    memory = np.full(64, 7.0)
    for strides in ((8, 8), (16, 8), (0, 8), (-8, 8), (8, 24)):
        out = np.lib.stride_tricks.as_strided(memory[32:], (4, 4), strides)
        with pytest.raises(ValueError, match="share memory"):
            fastce.cross_entropy_and_grad(np.zeros((4, 4)), [0, 1, 2, 3], out=out)
    assert (memory == 7).all()


def test_axes_of_length_one_are_in_place_whatever_their_strides():
    logits = np.arange(4.0).reshape(1, 4)
    out = np.lib.stride_tricks.as_strided(logits, (1, 4), (800, 8))
    expected = fastce.cross_entropy_and_grad(logits, [1])[1]
    fastce.cross_entropy_and_grad(logits, [1], out=out)
    assert bits(logits) == bits(expected)


def test_side_by_side_is_no_overlap():
    x, y = nasty(np.float64, 8, 10)
    expected = fastce.cross_entropy_and_grad(x, y)[1]
    for logits, out in (
        (lambda b: b[:, ::2], lambda b: b[:, 1::2]),
        (lambda b: b[:, :10], lambda b: b[:, 10:]),
        (lambda b: b[:, 10:], lambda b: b[:, :10]),
    ):
        both = np.zeros((8, 20))
        logits(both)[...] = x
        fastce.cross_entropy_and_grad(logits(both), y, out=out(both))
        assert bits(out(both)) == bits(expected)
        assert bits(logits(both)) == bits(x)


OVERLAPS = {
    "shifted by an element": lambda b: (b[:24].reshape(4, 6), b[1:25].reshape(4, 6)),
    "shifted by a row": lambda b: (b[:24].reshape(4, 6), b[6:30].reshape(4, 6)),
    "shifted back": lambda b: (b[6:30].reshape(4, 6), b[:24].reshape(4, 6)),
    "reversed": lambda b: (b[:24].reshape(4, 6), b[:24].reshape(4, 6)[::-1]),
    "transposed": lambda b: (b[:36].reshape(6, 6)[:4], b[:36].reshape(6, 6).T[:4]),
    "last element": lambda b: (b[:24].reshape(4, 6), b[23:47].reshape(4, 6)),
    "other strides": lambda b: (b[:24].reshape(4, 6), b[:48].reshape(4, 12)[:, ::2]),
}


@pytest.mark.parametrize("how", OVERLAPS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_overlap(dtype, how):
    buffer = np.arange(64).astype(dtype)
    logits, out = OVERLAPS[how](buffer)
    with pytest.raises(ValueError, match="overlap"):
        fastce.cross_entropy_and_grad(logits, [0, 1, 2, 3], out=out)
    assert np.array_equal(buffer, np.arange(64))


def test_overlap_with_other_inputs():
    x = np.zeros((4, 4))
    out = np.arange(16.0).reshape(4, 4)
    before = out.copy()
    with pytest.raises(ValueError, match="overlap"):
        fastce.cross_entropy_and_grad(x, [0, 1, 2, 3], sample_weight=out[1], out=out)
    with pytest.raises(ValueError, match="overlap"):
        fastce.cross_entropy_and_grad(x, out.view(np.int64)[0], out=out)
    assert np.array_equal(out, before)


@pytest.mark.parametrize(
    ("out", "named"),
    [
        (np.full((4, 5), 7.0), "shape"),
        (np.full((4, 7), 7.0), "shape"),
        (np.full(24, 7.0), "shape"),
        (np.full((1, 4, 6), 7.0), "shape"),
        (np.full((4, 6), 7, np.float32), "float"),
        (np.full((4, 6), 7, np.int64), "float64"),
        (np.full((4, 6), 7, ">f8"), "dtype|float64|>f8"),
        (np.broadcast_to(7.0, (4, 6)), "read-only|writ"),
        ([[7.0] * 6] * 4, "out"),
        ("out", "out"),
    ],
    ids=[
        "narrow",
        "wide",
        "flat",
        "3-d",
        "float32",
        "int64",
        "swapped",
        "read-only",
        "list",
        "str",
    ],
)
def test_refused(out, named):
    x = np.zeros((4, 6))
    with pytest.raises((TypeError, ValueError), match=named):
        fastce.cross_entropy_and_grad(x, [0, 1, 2, 3], out=out)
    if isinstance(out, np.ndarray):
        assert (out == 7).all()


def test_errors_are_raised_before_anything_is_written():
    x, out = np.zeros((4, 6)), np.full((4, 6), 7.0)
    for target, options in (
        ([0, 1, 2, 6], {}),
        ([0, 1, 2], {}),
        ([True] * 4, {}),
        ([0, 1, 2, 3], {"reduction": "average"}),
        ([0, 1, 2, 3], {"sample_weight": [1.0]}),
        ([0, 1, 2, 3], {"n_threads": 0}),
        ([0, 1, 2, 3], {"axis": 2}),
    ):
        with pytest.raises((TypeError, ValueError, IndexError)):
            fastce.cross_entropy_and_grad(x, target, out=out, **options)
    assert (out == 7).all()
