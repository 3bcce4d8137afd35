"""Focal loss and margins of cosines against the reference, also where they are steep, flat or clipped."""

import numpy as np
import pytest
from bounds import focal_grad_bound, focal_loss_bound, margin_scales
from conftest import (
    DTYPES,
    FLOATS,
    GRAD_ULP,
    KINDS,
    LOSS_ULP,
    assert_ulp,
    bits,
    compute_dtype,
    largest,
    nasty,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastce
from fastce import reference

CLASS_COUNTS = (1, 2, 3, 10, 33, 64, 65, 113, 128, 129, 1000, 8193, 16400)
GAMMAS = (0, 0.5, 1, 2, 5)


def n_rows(n_classes):
    return len(KINDS) if n_classes < 5000 else 6


# ---- Focal loss ----------------------------------------------------------------------------------


def assert_normal(actual, exact, bound, scale=None, label=""):
    """assert_ulp but for the subnormal numbers of the precision computed in, which are products of two."""
    scale = abs(exact) if scale is None else scale
    normal = np.isnan(scale) | (scale == 0) | (scale >= np.finfo(compute_dtype(actual.dtype)).tiny)
    assert_ulp(actual[normal], exact[normal], bound, scale[normal], label)


def check_focal(x, y, gamma, **options):
    options = {"gamma": gamma, "reduction": "none", **options}
    loss, grad = fastce.focal_loss_and_grad(x, y, **options)
    exact_loss, exact_grad = reference.focal_loss_and_grad(x, y, **options)
    assert loss.dtype == compute_dtype(x.dtype)
    assert grad.dtype == x.dtype
    assert_normal(loss, exact_loss, focal_loss_bound(x.dtype, gamma), label="loss")
    assert_normal(grad, exact_grad, focal_grad_bound(x.dtype, gamma), label="gradient")
    assert bits(fastce.focal_loss(x, y, **options)) == bits(loss)
    return loss, grad


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_focal(dtype, gamma, rng):
    for n_classes in CLASS_COUNTS:
        x, y = nasty(dtype, n_rows(n_classes), n_classes)
        y[::9] = -100
        check_focal(x, y, gamma)
        s, w = rng.uniform(1, 2, len(y)), rng.uniform(1, 2, n_classes)
        check_focal(x, y, gamma, sample_weight=s, weight=w)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gamma_0_is_cross_entropy(dtype):
    for n_classes in (2, 10, 57, 1000):
        x, y = nasty(dtype, len(KINDS), n_classes)
        loss, grad = fastce.focal_loss_and_grad(x, y, gamma=0, reduction="none")
        expected = fastce.cross_entropy_and_grad(x, y, reduction="none")
        assert_ulp(loss, expected[0].astype(np.longdouble), LOSS_ULP[loss.dtype])
        assert_ulp(grad, expected[1].astype(np.longdouble), GRAD_ULP[dtype])


@pytest.mark.parametrize("gamma", GAMMAS[1:])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_focal_of_sure_rows(dtype, gamma):
    """u^gamma (-log p_y) and its gradient, which falls as u^(1 + gamma), keep their digits."""
    leads = np.array([0, 1, 5, 10, 20, 25, 30, 36])
    x = np.zeros((len(leads), 5), dtype)
    x[:, 3] = leads
    loss, grad = check_focal(x, np.full(len(leads), 3), gamma)
    u, tiny = 4 * np.exp(-36.0), float(np.finfo(dtype).tiny)
    assert (np.diff(loss)[loss[1:] > tiny] < 0).all()
    assert loss[-1] == pytest.approx(u ** (1 + gamma), rel=1e-5, abs=tiny)
    assert grad[-1, 3] == pytest.approx(-(1 + gamma) * u ** (1 + gamma), rel=1e-5, abs=tiny)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_at_the_ends(gamma):
    x = np.array([[0, -np.inf, -np.inf], [-np.inf, 0, 1], [np.nan, 0, 0], [np.inf, 0, 0], [800.0, 0, 0]])
    loss, grad = fastce.focal_loss_and_grad(x, np.zeros(5, int), gamma=gamma, reduction="none")
    assert loss[0] == 0
    assert not np.signbit(grad[0]).any()
    assert not grad[0].any()
    assert loss[1] == np.inf
    assert grad[1] == pytest.approx([-1, 1 / (1 + np.e), np.e / (1 + np.e)], rel=1e-15)
    assert np.isnan(loss[2:4]).all()
    assert np.isnan(grad[2:4]).all()
    assert loss[4] <= 1e-300
    assert abs(grad[4]).max() <= 1e-300


@settings(max_examples=60)
@given(
    gamma=st.sampled_from(GAMMAS) | st.floats(0, 8),
    seed=st.integers(0, 2**16),
    axis=st.integers(-3, 2),
    how=st.sampled_from([{}, {"reduction": "sum"}, {"normalizer": 3.0}]),
    ignore_index=st.sampled_from([-100, 0, None]),
)
def test_focal_reduced(gamma, seed, axis, how, ignore_index):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 4, 5)) * 3
    y = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    y.flat[0] = 1
    options = {"axis": axis, "gamma": gamma, "ignore_index": ignore_index, **how}
    options |= {"sample_weight": rng.uniform(0.5, 2, y.shape), "weight": rng.uniform(0.5, 2, x.shape[axis])}
    loss, grad = fastce.focal_loss_and_grad(x, y, **options)
    exact, exact_grad = reference.focal_loss_and_grad(x, y, **options)
    # A row's bound, and a rounding for each of at most 20 rows.
    assert abs(loss - exact) <= (focal_loss_bound(x.dtype, gamma) + 20) * 2.0**-52 * exact
    assert_ulp(grad, exact_grad, focal_grad_bound(x.dtype, gamma))


# ---- Margins -------------------------------------------------------------------------------------

MARGINS = {
    "none": (1, 0, 0),
    "ArcFace": (1, 0.5, 0),
    "CosFace": (1, 0, 0.35),
    "SphereFace": (4, 0, 0),
    "combined": (1, 0.3, 0.2),
    "all": (1.5, 0.25, 0.125),
    "steep": (3, 0.5, 0.1),
    "beyond pi": (1, 4, 0),
    "beyond a turn": (1, 7.5, 0.25),
    "tiny": (1, 1e-8, 0),
    "back": (1, -0.5, 0),
    "steep and beyond pi": (2, 4, 0),
    "steep and back": (1.5, -2, 0),
}


def cosines(kind, rng, n_rows, n_classes, dtype):
    """A batch of cosines and its labels."""
    x, y, row = (
        rng.uniform(-1, 1, (n_rows, n_classes)),
        rng.integers(n_classes, size=n_rows),
        np.arange(n_rows),
    )
    near_1 = 1 - 10.0 ** rng.uniform(-17, -1, x.shape)
    if kind == "near the ends":
        x = near_1 * rng.choice([-1, 1], x.shape)
    elif kind == "confident":
        x = -near_1
        x[row, y] = near_1[row, y]
    elif kind == "wrong":
        x = near_1
        x[row, y] = -near_1[row, y]
    elif kind == "at the ends and beyond":
        x = rng.choice([-np.inf, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, np.inf], x.shape)
    elif kind == "sure":  # the target at 1, all others at -1
        x = np.full(x.shape, -1.0)
        x[row, y] = 1
    elif kind == "surely wrong":
        x = np.ones(x.shape)
        x[row, y] = -1
    return x.astype(dtype), y


COSINES = ("uniform", "near the ends", "confident", "wrong", "at the ends and beyond", "sure", "surely wrong")


def check_margin(x, y, scale, margins, **options):
    """Within the bounds for labels, of numbers that are differences themselves."""
    margin1, margin2, margin3 = margins
    options |= {"scale": scale, "margin1": margin1, "margin2": margin2, "margin3": margin3}
    loss, grad = fastce.margin_cross_entropy_and_grad(x, y, reduction="none", **options)
    exact, exact_grad = reference.margin_cross_entropy_and_grad(x, y, reduction="none", **options)
    assert loss.dtype == compute_dtype(x.dtype)
    assert grad.dtype == x.dtype

    loss_scale, grad_scale = margin_scales(x, y, exact, exact_grad, scale, *margins)
    assert_ulp(loss, exact, LOSS_ULP[loss.dtype], loss_scale, "loss")
    assert_normal(grad, exact_grad, GRAD_ULP[x.dtype], grad_scale, "gradient")
    clipped = abs(x) > 1
    assert not grad[clipped].any()
    assert bits(fastce.margin_cross_entropy(x, y, reduction="none", **options)) == bits(loss)
    return loss, grad


@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_margin(dtype, margins, rng):
    for n_classes in CLASS_COUNTS:
        few = 7 if n_classes < 5000 else 2
        for scale in (1, 16, 64, 1000) if n_classes < 1000 else (30,):
            for kind in COSINES:
                x, y = cosines(kind, rng, few, n_classes, dtype)
                check_margin(x, y, scale, MARGINS[margins])


@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_target_of_all_angles(dtype, margins):
    """The target's logit falls with its angle, beyond pi too, and the loss rises without a jump."""
    x = np.zeros((4001, 3), dtype)
    x[:, 1] = np.cos(np.linspace(0, np.pi, 4001))
    loss, grad = check_margin(x, np.ones(4001, int), 8, MARGINS[margins])
    if margins == "back":  # the target's logit rises until its angle is the margin
        x, loss, grad = x[700:], loss[700:], grad[700:]
    assert (np.diff(loss) >= 0).all()
    assert (grad[1:-1, 1] <= 1e-12).all()  # it is 0 after each half turn, give or take an ULP of the angle
    if margins != "ArcFace" and MARGINS[margins][:2] != (1, 0.3):
        # A step of pi / 4000 changes the logit by at most 8 margin1 of that.
        assert np.diff(loss).max() <= 8 * MARGINS[margins][0] * np.pi / 4000 * 1.01


@pytest.mark.parametrize("margin2", [5e-324, 1e-17, 1e-9, 1e-8, 1e-4, 0.5, 3, np.pi, 3.2, 4, 2 * np.pi, 1e6])
def test_beyond_pi_the_slope_is_that_of_the_cosine(margin2):
    """At -1 with any margin, however small, and everywhere with one of more than pi."""
    x = np.array([[-1, 0, 0.5], [1, 0.25, 0.5], [0.25, 0, 0.5]])[: 3 if margin2 > np.pi else 1]
    options = {"scale": 4.0, "margin1": 1.0, "margin2": margin2, "reduction": "none"}
    loss, grad = fastce.margin_cross_entropy_and_grad(x, np.zeros(len(x), int), **options)
    moved = x.copy()
    moved[:, 0] -= margin2 * np.sin(margin2)
    exact, exact_grad = reference.cross_entropy_and_grad(4 * moved, np.zeros(len(x), int), reduction="none")
    # exps of numbers as large as the margin are off by as much
    np.testing.assert_allclose(loss, exact.astype(float), rtol=1e-14 * (1 + margin2))
    np.testing.assert_allclose(grad, 4 * exact_grad.astype(float), rtol=1e-14 * (1 + margin2), atol=1e-300)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_no_margin_is_cross_entropy_of_scaled_cosines(dtype, rng):
    x, y = rng.integers(-64, 65, (50, 10)).astype(dtype) / 64, rng.integers(0, 10, 50)
    loss, grad = fastce.margin_cross_entropy_and_grad(x, y, scale=32, margin2=0, reduction="none")
    exact, exact_grad = reference.cross_entropy_and_grad(32 * x, y, reduction="none")
    assert_ulp(loss, exact, LOSS_ULP[dtype])
    assert_ulp(grad, 32 * exact_grad, GRAD_ULP[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosines_out_of_range_count_as_the_nearest(dtype):
    """Infinite ones too; NaN stays in its row."""
    x = np.array([[np.inf, 0.5, -np.inf], [0.5, np.inf, -7], [0.5, 2, -0.25]], dtype)
    y = np.array([0, 0, 1])
    for margins in MARGINS.values():
        options = dict(
            zip(("margin1", "margin2", "margin3"), margins, strict=True), scale=4, reduction="none"
        )
        loss, grad = fastce.margin_cross_entropy_and_grad(x, y, **options)
        inside = np.clip(x, dtype.type(-1), dtype.type(1))
        expected, inside_grad = fastce.margin_cross_entropy_and_grad(inside, y, **options)
        assert bits(loss) == bits(expected)
        assert bits(grad) == bits(np.where(abs(x) <= 1, inside_grad, 0).astype(dtype))
        for place in range(3):
            poisoned = x.copy()
            poisoned[1, place] = np.nan
            got, got_grad = fastce.margin_cross_entropy_and_grad(poisoned, y, **options)
            assert np.isnan(got[1])
            assert np.isnan(got_grad[1].astype(float)[abs(x[1].astype(float)) <= 1]).all()
            assert bits(got[::2]) == bits(loss[::2])
            assert bits(got_grad[::2]) == bits(grad[::2])


def test_one_class():
    """Certain, whatever its cosine and margin."""
    x = np.linspace(-1.2, 1.2, 25)[:, None]
    for margins in MARGINS.values():
        options = dict(zip(("margin1", "margin2", "margin3"), margins, strict=True))
        loss, grad = fastce.margin_cross_entropy_and_grad(x, np.zeros(25, int), reduction="none", **options)
        assert bits(loss) == bits(np.zeros(25))
        assert bits(grad) == bits(np.zeros((25, 1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_classes", [3, 57, 200, 9000])
def test_margin_in_place(dtype, n_classes, rng):
    x, y = cosines("uniform", rng, 5, n_classes, dtype)
    y[3] = -100
    for options in ({}, {"margin1": 4, "margin2": 0, "sample_weight": rng.uniform(0, 2, 5)}):
        for layout in (np.array, np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]):
            given = layout(x)
            loss, grad = fastce.margin_cross_entropy_and_grad(given, y, **options)
            got, same = fastce.margin_cross_entropy_and_grad(given, y, out=given, **options)
            assert same is given
            assert got == loss
            assert bits(given) == bits(grad)
            assert not grad[3].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_margin_of_the_largest_numbers(dtype):
    x = np.array([[largest(dtype), -largest(dtype), 0.5]], dtype)
    loss, grad = check_margin(x, np.array([2]), 16, (1, 0.5, 0))
    assert np.isfinite(loss).all()
    assert grad[0, 2] < 0


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    margins=st.sampled_from(list(MARGINS.values())),
    axis=st.integers(-3, 2),
    how=st.sampled_from([{}, {"reduction": "sum"}, {"normalizer": 3.0}]),
)
def test_margin_reduced(seed, margins, axis, how):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.9, 0.9, (3, 4, 5)).astype(np.float32)
    y = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    y.flat[1] = -100
    options = dict(zip(("margin1", "margin2", "margin3"), margins, strict=True), scale=8, axis=axis, **how)
    options |= {"sample_weight": rng.uniform(0.5, 2, y.shape), "weight": rng.uniform(0.5, 2, x.shape[axis])}
    loss, grad = fastce.margin_cross_entropy_and_grad(x, y, **options)
    exact, exact_grad = reference.margin_cross_entropy_and_grad(x, y, **options)
    assert loss == pytest.approx(float(exact), rel=2.0**-22)  # rows may have been rounded to float32
    assert_ulp(grad, exact_grad, GRAD_ULP[x.dtype])
