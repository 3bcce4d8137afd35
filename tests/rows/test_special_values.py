"""NaN and infinities: what they do to their own row, and that they do nothing to others."""

import numpy as np
import pytest
from conftest import DTYPES, GRAD_ULP, assert_ulp, bits, nasty

import fastce
from fastce import reference

SHAPES = ((1, 3), (40, 2), (40, 10), (33, 65), (5, 1003))
POISON = {
    "nan": lambda row, y: row.__setitem__(y - 1, np.nan),
    "nan at the target": lambda row, y: row.__setitem__(y, np.nan),
    "-nan": lambda row, y: row.__setitem__(y - 1, -np.float64("nan")),
    "nan beside +inf": lambda row, y: row.__setitem__([y - 1, y], [np.nan, np.inf]),
    "+inf": lambda row, y: row.__setitem__(y - 1, np.inf),
    "+inf at the target": lambda row, y: row.__setitem__(y, np.inf),
    "+inf twice": lambda row, y: row.__setitem__([y - 1, y], np.inf),
    "+inf and -inf": lambda row, y: row.__setitem__([y - 1, y], [np.inf, -np.inf]),
    "nothing but -inf": lambda row, y: row.fill(-np.inf),
    "all nan": lambda row, y: row.fill(np.nan),
    "-inf and a nan": lambda row, y: (row.fill(-np.inf), row.__setitem__(y, np.nan)),
}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stays_in_its_own_row(dtype, poison):
    for n_rows, n_classes in SHAPES:
        x, y = nasty(dtype, n_rows, n_classes)
        loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
        for i in {0, n_rows // 2, n_rows - 1}:
            poisoned = x.copy()
            POISON[poison](poisoned[i], y[i])
            others = np.arange(n_rows) != i
            for axis in (1, 0):
                logits = poisoned if axis else np.ascontiguousarray(poisoned.T)
                got, got_grad = fastce.cross_entropy_and_grad(
                    logits, y, axis=axis, reduction="none"
                )
                got_grad = got_grad if axis else got_grad.T
                assert np.isnan(got[i])
                assert np.isnan(got_grad[i]).all()
                if axis:  # the other walk may round differently; test_layouts bounds it
                    assert bits(got[others]) == bits(loss[others])
                    assert bits(got_grad[others]) == bits(grad[others])
                assert not np.isnan(got[others & ~np.isnan(loss)]).any()
                assert np.isnan(fastce.cross_entropy(logits, y, axis=axis, reduction="none")[i])
            assert np.isnan(fastce.cross_entropy(poisoned, y))


@pytest.mark.parametrize("position", [0, 1, 31, 32, 63, 64, 500, 1001, 1002])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_anywhere_in_a_long_row(dtype, position):
    """A maximum taken by a vector instruction easily forgets a NaN."""
    x, y = nasty(dtype, 3, 1003, "normal")
    y[:] = 7
    for value in (np.nan, np.inf):
        poisoned = x.copy()
        poisoned[1, position] = value
        loss, grad = fastce.cross_entropy_and_grad(poisoned, y, reduction="none")
        assert np.isnan(loss).tolist() == [False, True, False]
        assert np.isnan(grad).all(axis=1).tolist() == [False, True, False]
        assert np.isnan(grad).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("n_classes", [2, 3, 10, 33, 1003])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_class_has_probability_zero(dtype, n_classes):
    x, y = nasty(dtype, 20, n_classes, "masked -inf")
    grad = fastce.cross_entropy_and_grad(x, y, reduction="none")[1]
    masked = np.isneginf(x.astype(float))
    assert bits(grad[masked]) == bits(np.zeros(int(masked.sum()), dtype))
    # As if the masked classes were not there.
    for row, label, g in zip(x, y, grad, strict=True):
        kept = ~np.isneginf(row.astype(float))
        exact = reference.cross_entropy_and_grad(row[kept], kept[:label].sum())[1]
        assert_ulp(g[kept], exact, GRAD_ULP[g.dtype])


@pytest.mark.parametrize("n_classes", [2, 3, 10, 33, 1003])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_target(dtype, n_classes):
    x, y = nasty(dtype, 20, n_classes, "target -inf")
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
    assert np.isposinf(loss).all()
    assert np.isfinite(grad.astype(float)).all()
    assert_ulp(grad[np.arange(20), y], np.full(20, -1.0), GRAD_ULP[dtype])
    assert fastce.cross_entropy(x, y) == np.inf
    assert fastce.cross_entropy(x, y, reduction="sum") == np.inf


def test_only_the_target_is_finite():
    """It has probability 1: nothing to learn."""
    for n_classes in (2, 10, 65):
        x = np.full((1, n_classes), -np.inf)
        x[0, 1] = 3
        loss, grad = fastce.cross_entropy_and_grad(x, [1])
        assert loss == 0
        assert not grad.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ignored_rows_are_never_read(dtype):
    for n_rows, n_classes in SHAPES:
        x, y = nasty(dtype, n_rows, n_classes)
        ignored = np.arange(n_rows) % 3 == 0
        y[ignored] = -100
        expected = fastce.cross_entropy_and_grad(x, y, reduction="none")
        total = fastce.cross_entropy(x, y)
        for value in (np.nan, np.inf, -np.inf):
            x[ignored] = value
            loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
            assert bits(loss) == bits(expected[0])
            assert bits(grad) == bits(expected[1])
            assert bits(loss[ignored]) == bits(np.zeros(int(ignored.sum()), loss.dtype))
            assert bits(grad[ignored]) == bits(np.zeros_like(grad[ignored]))
            assert np.array_equal(fastce.cross_entropy(x, y), total, equal_nan=True)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_classes", [2, 10, 200])
def test_ignored_rows_have_no_slope(level, n_classes, order, rng):
    """Where derivatives are multiplied by those of a capped logit or of an angle, which here are NaN."""
    x, y = rng.uniform(-1, 1, (40, n_classes)), np.arange(40) % n_classes
    x[::2], y[::2] = np.nan, -100
    x = np.asarray(x, order=order)
    for derivatives in (
        fastce.cross_entropy_and_grad(x, y, softcap=5)[1:],
        fastce.cross_entropy_and_hess(x, y, softcap=5)[1:],
        fastce.margin_cross_entropy_and_grad(x, y)[1:],
    ):
        for a in derivatives:
            assert not a[::2].any()
            assert a[1::2].all()


def test_the_weight_of_an_ignored_row_is_not_read():
    x, y = np.eye(4), np.array([0, -100, 2, -100])
    good = fastce.cross_entropy_and_grad(x, y, sample_weight=[1, 1, 2, 1])
    nan = fastce.cross_entropy_and_grad(x, y, sample_weight=[1, np.nan, 2, np.inf])
    assert good[0] == nan[0]
    assert bits(good[1]) == bits(nan[1])


def test_a_weight_that_is_nan_stays_in_its_row():
    x, y = nasty(np.float64, 6, 5, "normal")
    weight = np.ones(6)
    weight[2] = np.nan
    loss, grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight, reduction="none")
    assert np.isnan(loss).tolist() == [False, False, True, False, False, False]
    assert np.isnan(grad).all(axis=1).tolist() == [False, False, True, False, False, False]
    assert np.isnan(fastce.cross_entropy(x, y, sample_weight=weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_are_never_negative(dtype):
    """Not even -0."""
    for n_classes in (1, 2, 10, 33, 1000):
        x, y = nasty(dtype, 200, n_classes)
        loss = fastce.cross_entropy(x, y, reduction="none")
        assert not np.signbit(loss[~np.isnan(loss)]).any()


def test_no_warnings_and_no_floating_point_flags():
    """Warnings are errors here; NumPy's own error state is not consulted either."""
    x, y = nasty(np.float32, 100, 33)
    x[3] = np.nan
    with np.errstate(all="raise"):
        fastce.cross_entropy_and_grad(x, y)
        fastce.cross_entropy(x, y, reduction="none")
