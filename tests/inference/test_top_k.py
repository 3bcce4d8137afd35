"""`top_k` against a stable sort."""

import numpy as np
import pytest
from conftest import DTYPES, bits, nasty

from fastce.inference import top_k
from fastce.reference import inference as reference

# Few, some, and all of them.
COUNTS = (1, 2, 50, 63, 64, 65, 300, 1000)


@pytest.mark.parametrize("n_classes", [1000, 9001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_twin(dtype, n_classes):
    x, _ = nasty(dtype, 30, n_classes, ("normal", "ties", "jitter", "masked -inf", "uniform", "extreme"))
    for k in COUNTS:
        values, indices = top_k(x, k)
        exact = reference.top_k(x, k)
        assert values.dtype == x.dtype
        np.testing.assert_array_equal(values.astype(np.float64), exact[0])
        np.testing.assert_array_equal(indices, exact[1])


@pytest.mark.parametrize("k", [5, 32, 33, 64, 65, 700])
@pytest.mark.parametrize("order", ["ascending", "descending", "organ pipe", "equal"])
def test_orders(order, k):
    x = np.arange(20_000.0, dtype=np.float32)
    x = {"ascending": x, "descending": x[::-1], "organ pipe": np.minimum(x, x[::-1]), "equal": 0 * x}[order]
    np.testing.assert_array_equal(top_k(x, k)[1], reference.top_k(x, k)[1])


def test_axes_threads_and_order():
    x, _ = nasty(np.float32, 3, 30_000, ("normal", "ties", "wide"))
    plain = top_k(x, 40)
    for n_threads in (1, 2, 3):
        for given in (x, np.asfortranarray(x)):
            for a, b in zip(top_k(given, 40, n_threads=n_threads), plain, strict=True):
                assert bits(a) == bits(b)
    np.testing.assert_array_equal(top_k(x.T, 40, axis=0)[1], plain[1])
    np.testing.assert_array_equal(np.sort(top_k(x, 400, sorted=False)[1]), np.sort(top_k(x, 400)[1]))


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_equal_ones_of_a_row_that_threads_share(n_threads):
    """Of those the first, in whatever order they are on the list of a thread."""
    for k in range(900, 1500, 100):
        for n_larger in range(1, 6):
            x = np.repeat(np.float32([0, 2, 0, 1]), [10_000, n_larger, 3400 - n_larger, 26_600])
            expected = [*range(10_000, 10_000 + n_larger), *range(13_400, 13_400 + k - n_larger)]
            np.testing.assert_array_equal(top_k(x, k, n_threads=n_threads)[1], expected)


def test_special_values():
    x = np.array([[0.0, np.nan, 1], [np.inf, -np.inf, 0], [-0.0, 0.0, -1], [-np.inf] * 3])
    values, indices = top_k(x, 2)
    np.testing.assert_array_equal(values, [[np.nan] * 2, [np.inf, 0], [0, 0], [-np.inf] * 2])
    np.testing.assert_array_equal(indices, [[-1, -1], [0, 2], [0, 1], [0, 1]])
    assert top_k(x, 0)[0].shape == (4, 0)


@pytest.mark.once
@pytest.mark.parametrize(
    ("k", "error"), [(4, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_refusals(k, error):
    with pytest.raises(error, match=f"k is {k}; expected an int"):
        top_k(np.zeros((2, 3)), k)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0, 4)], ids=str)
def test_no_rows(shape):
    for find in (top_k, reference.top_k):
        assert [found.shape for found in find(np.empty(shape), 0)] == [(*shape[:-1], 0)] * 2
