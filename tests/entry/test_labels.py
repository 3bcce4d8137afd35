"""Labels: every integer dtype and layout, ignored ones, and those that are out of range."""

import itertools

import numpy as np
import pytest
from conftest import bits, nasty

import fastce

INTEGERS = [np.dtype(c) for c in "bBhHiIlLqQ"]


def _unaligned(y):
    raw = np.empty(y.nbytes + 1, np.uint8)
    view = raw[1:].view(y.dtype).reshape(y.shape)
    view[...] = y
    return view


LAYOUTS = {
    "plain": lambda y: y,
    "swapped": lambda y: y.astype(y.dtype.newbyteorder()),
    "strided": lambda y: np.repeat(y, 3)[::3],
    "reversed": lambda y: y[::-1].copy()[::-1],
    "unaligned": _unaligned,
    "read-only": lambda y: np.frombuffer(y.tobytes(), y.dtype),
    "memoryview": memoryview,
    "list": lambda y: y.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_classes", [10, 100])
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda t: t.char)
def test_every_integer_dtype_and_layout(dtype, n_classes, layout):
    x, y = nasty(np.float32, 50, n_classes)
    expected = fastce.cross_entropy_and_grad(x, y, reduction="none")
    got = fastce.cross_entropy_and_grad(x, LAYOUTS[layout](y.astype(dtype)), reduction="none")
    assert bits(got[0]) == bits(expected[0])
    assert bits(got[1]) == bits(expected[1])


def test_swapped_and_unaligned_at_once():
    x, y = nasty(np.float32, 50, 300)
    swapped = _unaligned(y.astype(">i4"))[::2]
    assert bits(fastce.cross_entropy(x[::2], swapped, reduction="none")) == bits(
        fastce.cross_entropy(x[::2], y[::2], reduction="none")
    )


def test_broadcast():
    x = nasty(np.float64, 30, 7)[0]
    for label in (0, 6):
        shared = np.broadcast_to(np.int16(label), 30)
        expected = fastce.cross_entropy(x, np.full(30, label), reduction="none")
        assert bits(fastce.cross_entropy(x, shared, reduction="none")) == bits(expected)


def test_layouts_of_many_dimensions(rng):
    x, y = rng.normal(size=(4, 6, 5, 3)), rng.integers(0, 3, (4, 6, 5))
    expected = fastce.cross_entropy(x, y, reduction="none")
    for same in (
        np.asfortranarray(y),
        y[::-1].copy()[::-1],
        y.transpose(1, 0, 2).copy().transpose(1, 0, 2),
    ):
        assert np.array_equal(fastce.cross_entropy(x, same, reduction="none"), expected)


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda t: t.char)
@pytest.mark.parametrize("swap", [False, True])
def test_out_of_range(dtype, swap):
    """Named with its value, position and the valid range, before anything is written."""
    info = np.iinfo(dtype)
    given = dtype.newbyteorder() if swap else dtype
    for wrong in {info.max, info.min if info.min else 10, 10, -1 if info.min else 11}:
        x, y = nasty(np.float32, 40, 10, "normal")
        y = y.astype(given)
        y[23] = wrong
        out, before = np.full_like(x, 7), x.copy()
        for options in ({}, {"reduction": "sum", "n_threads": 2}, {"ignore_index": None}):
            with pytest.raises(IndexError) as error:
                fastce.cross_entropy_and_grad(x, y, out=out, **options)
            message = str(error.value)
            assert str(int(wrong)) in message
            assert "23" in message.replace(str(int(wrong)), "", 1)
            assert "[0, 10)" in message
            with pytest.raises(IndexError):
                fastce.cross_entropy_and_grad(x, y, out=x, **options)
            with pytest.raises(IndexError):
                fastce.cross_entropy(x, y, **options)
        assert (out == 7).all()
        assert bits(x) == bits(before)


LABEL_FUNCTIONS = [
    f"{name}{suffix}"
    for name, suffixes in (
        ("cross_entropy", ("", "_and_grad", "_and_hess")),
        ("focal_loss", ("", "_and_grad")),
        ("hinge_loss", ("", "_and_grad")),
        ("margin_cross_entropy", ("", "_and_grad")),
        ("nll_loss", ("",)),
    )
    for suffix in suffixes
]
ARRAYS = {layout: make for layout, make in LAYOUTS.items() if layout not in ("memoryview", "list")}


@pytest.mark.once  # the levels share the code that reads labels
@pytest.mark.parametrize("layout", [*ARRAYS, "broadcast"])
@pytest.mark.parametrize("name", LABEL_FUNCTIONS)
def test_out_of_range_in_every_function(name, layout):
    """In every dtype and byte order: found before it is an index, and before anything is written."""
    function, n_classes = getattr(fastce, name), 10
    x, y = nasty(np.float64, 30, n_classes, "normal")
    given = np.tanh(x) if name.startswith("margin") else x
    outs = [parameter for parameter in ("out", "hess_out") if name.endswith(("_and_grad", "_and_hess"))]
    outs = outs if name.endswith("_and_hess") else outs[:1]
    for dtype, swap in itertools.product(INTEGERS, (False, True)):
        info = np.iinfo(dtype)
        for wrong in {n_classes, info.max, info.max - 1, info.min or n_classes + 1, info.min // 2 or 11}:
            labels = y.astype(dtype)
            if layout == "broadcast":
                labels = np.full(1, wrong, dtype)
            labels[-1] = wrong
            if swap:
                labels = labels.astype(labels.dtype.newbyteorder())
            labels = np.broadcast_to(labels, 30) if layout == "broadcast" else ARRAYS[layout](labels)
            row = 0 if layout == "broadcast" else 29
            for written in ({}, {parameter: np.full(x.shape, 7.0) for parameter in outs}):
                with pytest.raises(IndexError, match=rf"target\[{row}\] is {wrong}; .*\[0, {n_classes}\)"):
                    function(given, labels, **written)
                assert all((a == 7).all() for a in written.values())


def test_the_first_wrong_label_is_named():
    x, y = np.zeros((2000, 3)), np.zeros(2000, int)
    y[[700, 1900]] = 5, 6
    with pytest.raises(IndexError, match=r"(?=.*\b5\b)(?=.*\b700\b)(?=.*\[0, 3\))"):
        fastce.cross_entropy(x, y, n_threads=4)


def test_position_in_many_dimensions():
    y = np.zeros((2, 3, 4), int)
    y[1, 2, 3] = 9
    with pytest.raises(IndexError, match=r"(?=.*\b1, 2, 3\b)(?=.*\b9\b)(?=.*\[0, 5\))"):
        fastce.cross_entropy(np.zeros((2, 5, 3, 4)), y, axis=1)


def test_wrong_label_of_a_single_row():
    with pytest.raises(IndexError, match=r"3.*\[0, 3\)"):
        fastce.cross_entropy(np.zeros(3), 3)


@pytest.mark.parametrize("label", [2**63, 2**64 - 1, 2**64 - 100])
def test_huge_unsigned(label):
    """Neither negative nor ignored, whatever the same bits mean as a signed integer."""
    y = np.array([0, label], np.uint64)
    with pytest.raises(IndexError, match=str(label)):
        fastce.cross_entropy(np.eye(2), y)


def test_labels_are_not_wrapped_to_ignore_index():
    """-100 as an unsigned byte is 156, which is a class of its own."""
    x = nasty(np.float64, 4, 200, "normal")[0]
    y = np.array([156, 1, 156, 199], np.uint8)
    assert (fastce.cross_entropy(x, y, reduction="none") > 0).all()
    y = np.array([-100, 1, 5, 99], np.int8)
    with pytest.raises(IndexError, match="-100"):
        fastce.cross_entropy(x, y, ignore_index=156)


def test_labels_are_not_truncated():
    """2**32 and 2**40 are not 0."""
    for wrong in (2**32, 2**40, -(2**32), -(2**33)):
        with pytest.raises(IndexError, match=str(wrong)):
            fastce.cross_entropy(np.eye(2), np.array([1, wrong]))


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 3, 6, 7, 255])
def test_ignore_index_inside_and_outside_the_range(ignore_index):
    x, y = nasty(np.float64, 48, 7)
    y[5::7] = ignore_index
    kept = y != ignore_index
    loss, grad = fastce.cross_entropy_and_grad(x, y, ignore_index=ignore_index, reduction="none")
    expected = fastce.cross_entropy_and_grad(x[kept], y[kept], ignore_index=None, reduction="none")
    assert bits(loss[kept]) == bits(expected[0])
    assert bits(grad[kept]) == bits(expected[1])
    assert bits(loss[~kept]) == bits(np.zeros((~kept).sum()))
    assert bits(grad[~kept]) == bits(np.zeros((int((~kept).sum()), 7)))


def test_ignore_index_of_unsigned_labels():
    x, y = nasty(np.float32, 20, 5)
    y[::4] = 255
    expected = fastce.cross_entropy(x, np.where(y == 255, -100, y), reduction="none")
    got = fastce.cross_entropy(x, y.astype(np.uint8), ignore_index=255, reduction="none")
    assert bits(got) == bits(expected)


@pytest.mark.parametrize("target", [np.array([True, False]), [True, False]])
def test_boolean_target(target):
    with pytest.raises(TypeError, match="bool"):
        fastce.cross_entropy(np.eye(2), target)


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        ("complex128", "complex"),
        ("object", "object"),
        ("str", "str|<U"),
        ("datetime64[s]", "datetime"),
    ],
)
def test_target_that_holds_no_integers(dtype, named):
    with pytest.raises(TypeError, match=named):
        fastce.cross_entropy(np.eye(2), np.array([0, 1]).astype(dtype))


def test_a_label_is_not_rounded():
    """A floating target of the target's shape is no set of labels."""
    with pytest.raises((TypeError, ValueError), match=r"float|shape"):
        fastce.cross_entropy(np.eye(2), np.array([0.0, 1.0]))


@pytest.mark.parametrize("ignore_index", [1.5, "0"])
def test_ignore_index_must_be_an_integer(ignore_index):
    with pytest.raises(TypeError, match=r"ignore_index is .*expected an int or None"):
        fastce.cross_entropy(np.eye(2), [0, 1], ignore_index=ignore_index)


def test_an_empty_list_has_no_dtype_of_its_own():
    assert fastce.cross_entropy(np.empty((0, 3)), [], reduction="sum") == 0
    with pytest.raises(ValueError, match="float64, target probabilities"):
        fastce.cross_entropy(np.empty((0, 3)), np.empty(0))
