"""Arrays of more elements than 32 bits count, all of them read and written: `pytest -m bigmem`."""

import math

import numpy as np
import pytest
from conftest import bits

import fastce

pytestmark = [pytest.mark.once, pytest.mark.bigmem]

MANY = 2**31


@pytest.fixture
def mapped(tmp_path):
    """Makes arrays of zeros, in a file whose pages don't exist until they are written to."""

    def make(shape, dtype):
        return np.memmap(tmp_path / "array", dtype, "w+", shape=shape)

    yield make
    (tmp_path / "array").unlink(missing_ok=True)


# Along rows; few classes, side by side and apart; many classes, apart.
SHAPES = [
    ((MANY // 2048 + 3, 2048), 1),
    ((MANY // 8 + 5, 8), 1),
    ((8, MANY // 8 + 5), 0),
    ((3, 300, MANY // 900 + 7), 1),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=lambda t: t.__name__)
def test_gradient(dtype, shape, axis, mapped):
    """In place, so that the far end is written as well as read."""
    x = mapped(shape, dtype)
    rows = np.moveaxis(x, axis, -1)
    *batch, n_classes = rows.shape
    labels, n_rows = np.zeros(batch, np.int16), math.prod(batch)
    rows[(-1,) * len(batch)] = np.arange(n_classes) % 5
    labels[(-1,) * len(batch)] = n_classes - 1
    last = fastce.cross_entropy(np.arange(n_classes, dtype=dtype) % 5, n_classes - 1)
    places = [np.unravel_index(row, batch) for row in (0, n_rows // 2, MANY // n_classes, n_rows - 1)]
    given = [(rows[place].copy(), labels[place]) for place in places]
    loss, grad = fastce.cross_entropy_and_grad(x, labels, axis=axis, reduction="sum", out=x)
    assert grad is x
    assert math.isclose(loss, (n_rows - 1) * math.log(n_classes) + last, rel_tol=2**-22)  # 2 ULP
    for place, row in zip(places, given, strict=True):
        expected = fastce.cross_entropy_and_grad(*row)[1]
        np.testing.assert_array_max_ulp(rows[place], expected, 4)  # lanes add up in another order than rows


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=lambda t: t.__name__)
def test_one_row(dtype, n_threads, mapped):
    """More classes than an int can number, the label the last: alone, and in pieces that threads share."""
    n_classes = MANY + 8195
    x = mapped((1, n_classes), dtype)
    x[0, -1], x[0, MANY] = -1, 3
    s = n_classes - 2 + math.exp(-1) + math.exp(3)
    loss, _ = fastce.cross_entropy_and_grad(x, [n_classes - 1], out=x, n_threads=n_threads)
    assert abs(np.float32(loss) - np.float32(math.log(s) + 1)) <= 2 * np.spacing(np.float32(loss))
    for place, exact in ((0, 1 / s), (MANY - 1, 1 / s), (MANY, math.exp(3) / s), (n_classes - 2, 1 / s)):
        assert abs(float(x[0, place]) - exact) <= 4 * np.spacing(dtype(exact)), place
    assert x[0, -1] == -1


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, mapped):
    n_classes = MANY + 8195
    x = mapped(n_classes, np.float32)
    x[-1] = 20
    out = getattr(fastce, name)(x, out=x)
    s = n_classes - 1 + math.exp(20)
    for place, exact in ((0, 1 / s), (MANY, 1 / s), (n_classes - 1, math.exp(20) / s)):
        exact = exact if name == "softmax" else math.log(exact)
        assert abs(float(out[place]) - exact) <= 4 * np.spacing(np.float32(abs(exact))), place


def test_logsumexp(mapped):
    n_classes = MANY + 8195
    x = mapped(n_classes, np.float16)
    assert abs(fastce.logsumexp(x) - np.float16(math.log(n_classes))) <= np.spacing(np.float16(21))


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=lambda t: t.__name__)
def test_elements(dtype, mapped):
    x = mapped(MANY + 1027, dtype)
    x[-1], x[MANY] = 4, -4
    target = np.zeros(x.shape, np.int8)
    target[-1] = 1
    loss, grad = fastce.binary_cross_entropy_with_logits_and_grad(x, target, reduction="sum", out=x)
    exact = (x.size - 2) * math.log(2) + 2 * math.log1p(math.exp(-4))
    assert math.isclose(loss, exact, rel_tol=2**-22)
    three = np.array([0, -4, 4], dtype)
    expected = fastce.binary_cross_entropy_with_logits_and_grad(three, [0, 0, 1], reduction="sum")[1]
    assert bits(grad[[0, MANY, -1]]) == bits(expected)
    assert (grad[MANY + 1 : -1] == 0.5).all()
    target[-1] = 2
    with pytest.raises(ValueError, match=rf"target\[{x.size - 1}\] is 2"):
        fastce.binary_cross_entropy_with_logits(x, target)


def test_labels():
    """One for each of more rows than an int can number."""
    n_rows = MANY + 70
    x, labels = np.broadcast_to(np.float32([-1, -2, -4]), (n_rows, 3)), np.zeros(n_rows, np.int8)
    labels[-1], labels[MANY] = 2, -100
    assert fastce.nll_loss(x, labels, reduction="sum") == n_rows - 2 + 4
    assert fastce.nll_loss(x, labels) == (n_rows - 2 + 4) / (n_rows - 1)
    labels[-1] = 3
    with pytest.raises(IndexError, match=rf"target\[{n_rows - 1}\] is 3"):
        fastce.cross_entropy(x, labels)


def test_hessian_of_more_maxima_than_float32_counts():
    """Each of 2**25 equal logits has p (1 - p), where lanes hold rows of classes that are a line apart."""
    n_classes = 2**25
    x = np.zeros((n_classes, 16), np.float32)[:, :1]
    x[3] = -1
    hess = fastce.cross_entropy_and_hess(x, [3], axis=0)[2]
    p = 1 / (n_classes - 1 + math.exp(-1))
    assert abs(hess[5, 0] - p * (1 - p)) <= 4 * np.spacing(np.float32(p))
