"""The oracle itself, against 1000 digits of mpmath and against numbers known by other means."""

import ml_dtypes
import mpmath
import numpy as np
import pytest
from conftest import DTYPES, KINDS, nasty

from fastce import reference
from fastce.reference import _arithmetic, ulp_distance

pytestmark = [pytest.mark.once, pytest.mark.slow]


def exact_row(x, y):
    """Loss and gradient of one row by the textbook formulas, in digits enough for all to cancel."""
    with mpmath.workdps(1000):
        x = [mpmath.mpf(float(v)) for v in x]
        lse = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in x))
        return lse - x[y], [mpmath.exp(v - lse) - (j == y) for j, v in enumerate(x)]


def relative_error(actual, exact):
    """Error relative to the exact number, as if the smallest float64 were zero."""
    with mpmath.workdps(1000):
        return abs(mpmath.mpf(str(actual)) - exact) / (abs(exact) + mpmath.mpf(2) ** -1100)


@pytest.fixture(params=["native", "mpmath"])
def arithmetic(request, monkeypatch):
    """The arithmetic of this platform, and that of platforms whose longdouble is a double."""
    if request.param == "mpmath":
        mpmath_numbers = _arithmetic._mpmath_arithmetic()
        monkeypatch.setattr(_arithmetic, "_arithmetic", lambda: mpmath_numbers)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("target -inf", "extreme")])
def test_against_mpmath(kind, arithmetic):
    for n_classes in (1, 2, 5, 40):
        x, label = nasty(np.float64, 2, n_classes, kind)
        loss, grad = reference.cross_entropy_and_grad(x, label, reduction="none")
        for i, y in enumerate(label):
            exact_loss, exact_grad = exact_row(x[i], y)
            # x - m loses up to |x - m| 2**-64, at most 2**-54.5 where exp is not 0 in float64: a
            # quarter of its ULP.
            assert relative_error(loss[i], exact_loss) < 2.0**-54
            for got, expected in zip(grad[i], exact_grad, strict=True):
                assert relative_error(got, expected) < 2.0**-54


def test_known_values(arithmetic):
    loss, grad = reference.cross_entropy_and_grad(np.float32([20, 0, 0]), 0)
    exact = 2 * np.exp(-20.0)  # log1p(r) is r to 9 digits
    assert float(loss) == pytest.approx(exact, rel=1e-8)
    assert np.asarray(grad, float) == pytest.approx([-exact, exact / 2, exact / 2], rel=1e-8)
    assert float(reference.cross_entropy(np.zeros((2, 3, 8)), np.ones((2, 3), int))) == np.log(8)


def test_mean_weights_normalizer_and_ignored_rows(arithmetic):
    x, y = np.zeros((4, 2)), np.array([0, 1, -100, 1])
    s = np.array([1.0, 2.0, 7.0, 5.0])
    assert float(reference.cross_entropy(x, y, sample_weight=s)) == np.log(2)
    assert float(reference.cross_entropy(x, y, sample_weight=s, normalizer=16)) == np.log(2) / 2
    loss, grad = reference.cross_entropy_and_grad(x, y, sample_weight=s)
    assert np.array_equal(np.asarray(grad[:, 0], float), [-1 / 16, 2 / 16, 0, 5 / 16])
    loss, grad = reference.cross_entropy_and_grad(x, np.full(4, -100))
    assert np.isnan(float(loss))
    assert not grad.any()
    assert reference.cross_entropy(x, np.full(4, -100), normalizer=3.0) == 0
    assert reference.cross_entropy(x, np.full(4, -100), reduction="sum") == 0


@pytest.mark.parametrize("axis", [0, 1, 2, -3])
def test_axis(axis, rng):
    x, y = rng.normal(size=(3, 3, 3)), rng.integers(0, 3, (3, 3))
    loss, grad = reference.cross_entropy_and_grad(x, y, axis=axis, reduction="none")
    last = reference.cross_entropy_and_grad(np.moveaxis(x, axis, -1), y, reduction="none")
    assert np.array_equal(loss, last[0])
    assert np.array_equal(np.moveaxis(grad, axis, -1), last[1])


def test_refusals():
    x = np.zeros((2, 3))
    with pytest.raises(IndexError, match=r"3 at \(1,\) is outside \[0, 3\)"):
        reference.cross_entropy(x, [0, 3])
    with pytest.raises(TypeError, match="complex"):
        reference.cross_entropy(x + 0j, [0, 1])
    with pytest.raises(TypeError, match="bool"):
        reference.cross_entropy(x, [True, False])
    with pytest.raises(ValueError, match="shape"):
        reference.cross_entropy(x, [0])
    with pytest.raises(ValueError, match="no classes"):
        reference.cross_entropy(np.zeros((2, 0)), [0, 0])
    with pytest.raises(ValueError, match="reduction"):
        reference.cross_entropy(x, [0, 1], reduction="average")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ulp_distance(dtype, arithmetic):
    info = ml_dtypes.finfo(dtype)
    wide = _arithmetic.wide
    eps, tiny, unit, largest = (
        wide(float(v))[()]
        for v in (info.eps, info.smallest_normal, info.smallest_subnormal, info.max)
    )

    def one(actual, exact, scale=None):
        return ulp_distance(np.asarray(actual, dtype), exact, scale)

    assert one(1, 1 + eps) == 1
    assert one(1, 1 - eps / 4) == 0.5  # below 1 the unit is half as large
    assert one(-3, -3 - eps) == 0.5
    assert one(float(tiny), tiny + unit) == 1
    assert one(0, unit / 4) == 0.25  # constant spacing in the subnormal range
    assert one(float(unit), 0) == 1
    assert one(0, 0) == 0
    assert one(0, tiny - unit) == float(tiny / unit) - 1
    assert one(0, eps, scale=1) == 1
    assert one(np.inf, largest * 2) == 0
    assert one(-np.inf, largest * 2) == np.inf
    assert one(np.inf, largest) == np.inf
    assert one(float(info.max), np.inf) == np.inf
    assert one(np.nan, np.nan) == 0
    assert one(np.nan, 1) == np.inf
    assert one(1, np.nan) == np.inf
    assert one([1, np.nan], [1, 1]).tolist() == [0, np.inf]
