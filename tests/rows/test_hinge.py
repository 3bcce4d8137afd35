"""Hinge losses against the reference, fractions, and what PyTorch, scikit-learn and Caffe compute."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
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

import fastce
from fastce import reference
from fastce.reference.hinge import KINDS as HINGES

CLASS_COUNTS = (1, 2, 3, 10, 33, 64, 65, 113, 128, 129, 1000, 8193, 16400)
ALL = [{"kind": kind, "p": p} for kind in HINGES for p in (1, 2)]


def name_of(option):
    return f"{option['kind']} {option['p']}"


def check(x, y, **options):
    """Within the bounds of labels: a term has one rounding, its square three, its factors three more."""
    options = {"reduction": "none", **options}
    loss, grad = fastce.hinge_loss_and_grad(x, y, **options)
    exact, exact_grad = reference.hinge_loss_and_grad(x, y, **options)
    assert loss.dtype == compute_dtype(x.dtype)
    assert grad.dtype == x.dtype
    if x.dtype == np.float64:  # what is beyond the largest number is infinite, whatever divides it
        axis = options.get("axis", -1)
        huge = np.isfinite(x) & (abs(x) > 1e150)
        usual = ~huge.any(axis=axis)
        assert_ulp(loss[usual], exact[usual], LOSS_ULP[loss.dtype], label="loss")
        usual = np.broadcast_to(np.expand_dims(usual, axis), x.shape)
        assert_ulp(grad[usual], exact_grad[usual], GRAD_ULP[x.dtype], label="gradient")
    else:
        assert_ulp(loss, exact, LOSS_ULP[loss.dtype], label="loss")
        assert_ulp(grad, exact_grad, GRAD_ULP[x.dtype], label="gradient")
    assert bits(fastce.hinge_loss(x, y, **options)) == bits(loss)
    return loss, grad


@pytest.mark.parametrize("option", ALL, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hinge(dtype, option, rng):
    for n_classes in CLASS_COUNTS:
        x, y = nasty(dtype, len(KINDS) if n_classes < 500 else 5, n_classes)
        y[::9] = -100
        check(x, y, **option)
        s, w = rng.uniform(1, 2, len(y)), rng.uniform(1, 2, n_classes)
        check(np.asfortranarray(x), y, margin=0.3, sample_weight=s, weight=w, **option)


@pytest.mark.parametrize("option", ALL, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_and_nan_anywhere(dtype, option, rng):
    for n_classes in (1, 2, 3, 10, 57, 113, 300):
        x, y = nasty(dtype, 60, n_classes, ("normal", "ties", "target -inf", "masked -inf"))
        for value, share in ((np.nan, 0.01), (np.inf, 0.02), (-np.inf, 0.05)):
            x[rng.random(x.shape) < share] = value
        x[7] = -np.inf
        x[8], x[8, y[8]] = -np.inf, 0
        x[9], x[9, y[9]] = -largest(dtype), -np.inf  # as low as a number can be, and yet above the target
        for layout in (np.asarray, np.asfortranarray):
            check(layout(x), y, **option)
            check(layout(x), y, sample_weight=rng.integers(0, 2, len(y)), **option)


@pytest.mark.parametrize("kind", HINGES)
def test_infinities_one_by_one(kind):
    """As the formula has them; a class at -inf has no term, and inf - inf is NaN."""
    inf, nan = np.inf, np.nan
    x = np.array([[0, -inf, 0.5], [-inf, 0, 0], [-inf, -inf, -inf], [inf, 0, 0], [0, inf, 0], [inf, inf, 0]])
    expected = {
        "one_vs_rest": [1 + 1.5, inf, inf, 2, inf, inf],
        "multi_margin": [1.5 / 3, inf, nan, 0, inf, nan],
        "crammer_singer": [1.5, inf, nan, 0, inf, nan],
    }[kind]
    loss, grad = fastce.hinge_loss_and_grad(x, np.zeros(6, int), kind=kind, reduction="none")
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(np.isnan(grad), np.isnan(loss)[:, None] & np.ones(3, bool))
    assert np.isfinite(grad[~np.isnan(loss)]).all()
    if kind == "multi_margin":
        np.testing.assert_array_equal(grad[1], np.array([-2, 1, 1]) / 3)
    x[1, 1] = nan
    loss, grad = fastce.hinge_loss_and_grad(x, np.zeros(6, int), kind=kind, reduction="none")
    assert np.isnan(loss[1])
    assert np.isnan(grad[1]).all()


# ---- Digits and kinks ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HINGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_exact_near_the_kink(dtype, kind, rng):
    """Scores a few units in the last place from where a term begins: its digits and its side are known."""
    eps, margin = float(np.finfo(dtype).eps), 0.1
    x_y = rng.uniform(-3, 3, (200, 1))
    near = -margin if kind == "one_vs_rest" else x_y - margin
    for n_classes in (3, 70):
        x = (near * (1 + eps * rng.integers(-3, 4, (200, n_classes)))).astype(dtype)
        x[:, :1] = x_y if kind != "one_vs_rest" else margin * (1 + eps * rng.integers(-3, 4, (200, 1)))
        options = {"kind": kind, "margin": margin, "reduction": "none"}
        loss, grad = fastce.hinge_loss_and_grad(x, np.zeros(200, int), **options)
        for i in range(0, 200, 7):
            score, m = [Fraction(float(a)) for a in x[i]], Fraction(margin)
            gap = m if kind == "one_vs_rest" else m - score[0]
            terms = [max(Fraction(0), a + gap) for a in score[1:]]
            slopes = [int(h > 0) for h in terms]
            if kind == "crammer_singer":
                slopes = [int(j == np.argmax(terms) and h > 0) for j, h in enumerate(terms)]
                terms = [max(terms)]
            own = max(Fraction(0), m - score[0]) if kind == "one_vs_rest" else Fraction(0)
            exact, below = sum(terms, own), -int(own > 0) if kind == "one_vs_rest" else -sum(slopes)
            divisor = n_classes if kind == "multi_margin" else 1
            exact = exact / divisor
            assert_ulp(loss[i], np.longdouble(exact.numerator) / np.longdouble(exact.denominator), 2)
            np.testing.assert_array_equal(np.rint(grad[i] * divisor), [below, *slopes])


@pytest.mark.parametrize("option", ALL, ids=name_of)
def test_subgradient_at_the_kink(option):
    x = np.array([[1.0, -1, 0, -1], [1, 0, 0, 0]])
    y = [0, 0]
    loss, grad = fastce.hinge_loss_and_grad(x[:, [0, 1, 3]], y, reduction="none", **option)
    assert loss[0] == 0
    assert not grad[0].any()
    if option["kind"] != "one_vs_rest":  # a gap of 1 exactly
        loss, grad = fastce.hinge_loss_and_grad(x, y, reduction="none", **option)
        assert not loss.any()
        assert not grad.any()
        assert not np.signbit(grad).any()


@pytest.mark.parametrize("layout", [np.asarray, np.asfortranarray])
@pytest.mark.parametrize("n_classes", [4, 40, 200])
def test_the_first_of_equal_rivals_has_the_slope(n_classes, layout, rng):
    x = rng.integers(-1, 2, (50, n_classes)).astype(float)
    y = rng.integers(0, n_classes, 50)
    grad = fastce.hinge_loss_and_grad(layout(x), y, kind="crammer_singer", reduction="none")[1]
    row = np.arange(50)
    others = x.copy()
    others[row, y] = -np.inf
    rival = others.argmax(axis=1)
    expected = np.zeros_like(x)
    lacks = 1 - x[row, y] + others[row, rival] > 0
    expected[row, y], expected[row, rival] = -1.0 * lacks, lacks
    np.testing.assert_array_equal(grad, expected)


@pytest.mark.parametrize("kind", HINGES)
def test_squares_have_the_slope_of_their_differences(kind, rng):
    """Where no term is near its kink, differences of a square are exact but for their rounding."""
    x, y, step = rng.normal(size=(20, 6)) * 3, rng.integers(0, 6, 20), 2.0**-18
    options = {"kind": kind, "p": 2}
    grad = fastce.hinge_loss_and_grad(x, y, reduction="sum", **options)[1]
    for i, j in itertools.product(range(20), range(6)):
        high, low = x.copy(), x.copy()
        high[i, j] += step
        low[i, j] -= step
        rise = fastce.hinge_loss(high, y, reduction="sum", **options)
        rise -= fastce.hinge_loss(low, y, reduction="sum", **options)
        assert grad[i, j] == pytest.approx(rise / (2 * step), abs=2 * step)


def test_beyond_the_largest_number():
    """Of float32 nothing is lost on the way; of float64 what is too large for it is infinite."""
    x = np.array([[-3e38, 3e38]], np.float32)
    assert fastce.hinge_loss(x, [0], kind="crammer_singer") == 2 * float(np.float32(3e38))
    loss, grad = fastce.hinge_loss_and_grad(x, [0], kind="crammer_singer", p=2, normalizer=2.0)
    assert loss == 2 * float(np.float32(3e38)) ** 2
    np.testing.assert_array_equal(grad, [[-np.inf, np.inf]])
    grad = fastce.hinge_loss_and_grad(x, [0], kind="multi_margin", p=2, normalizer=16.0)[1]
    assert_ulp(grad, np.array([[-1, 1]]) * np.longdouble(np.float32(3e38)) / 8, 1)
    assert fastce.hinge_loss(x.astype(float) * 5e269, [0], kind="crammer_singer") == np.inf


# ---- What others compute ---------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("margin", [1.0, 0.25])
@pytest.mark.parametrize("n_classes", [2, 10, 200])
def test_pytorch(n_classes, margin, p, rng):
    torch = pytest.importorskip("torch")
    x, y, w = rng.normal(size=(30, n_classes)), rng.integers(0, n_classes, 30), rng.uniform(0.5, 2, n_classes)
    scores, labels = torch.tensor(x, requires_grad=True), torch.tensor(y)
    for weight in (None, w):
        for reduction in ("none", "sum", "mean"):
            options = {"kind": "multi_margin", "p": p, "margin": margin}
            options |= {"weight": weight, "reduction": reduction}
            if reduction == "mean":
                options["normalizer"] = len(y)  # theirs divides by the number of rows
            given = None if weight is None else torch.tensor(weight)
            theirs = torch.nn.functional.multi_margin_loss(
                scores, labels, p=p, margin=margin, weight=given, reduction=reduction
            )
            (slope,) = torch.autograd.grad(theirs.sum(), scores)
            loss, grad = fastce.hinge_loss_and_grad(x, y, **options)
            # A row's terms, added one after the other: as many roundings.
            np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=(n_classes + 5) * 2.0**-52)
            np.testing.assert_allclose(grad, slope.numpy(), rtol=(n_classes + 5) * 2.0**-52, atol=1e-16)


def test_scikit_learn(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    x, y, s = rng.normal(size=(40, 5)), np.arange(40) % 5, rng.uniform(0.5, 2, 40)
    for weight in (None, s):
        ours = fastce.hinge_loss(x, y, kind="crammer_singer", sample_weight=weight)
        assert ours == pytest.approx(metrics.hinge_loss(y, x, sample_weight=weight), rel=1e-14)
        sign, f = np.where(y % 2, 1, -1), x[:, 0]  # of two classes: one score, above 0 for the second
        both = np.stack([-f, f], axis=1) / 2
        theirs = metrics.hinge_loss(sign, f, sample_weight=weight)
        for kind in ("crammer_singer", "multi_margin"):
            ours = fastce.hinge_loss(both, y % 2, kind=kind, sample_weight=weight)
            assert ours * (2 if kind == "multi_margin" else 1) == pytest.approx(theirs, rel=1e-14)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("shape", [(30, 4), (30, 90)])
def test_caffe(shape, p, rng):
    """HingeLossLayer's forward and backward pass: norms L1 and L2, by the number of rows."""
    x, y = rng.normal(size=shape), rng.integers(0, shape[1], shape[0])
    row = np.arange(len(y))
    diff = x.copy()
    diff[row, y] *= -1
    diff = np.maximum(0, 1 + diff)
    loss = (diff**p).sum() / len(y)
    diff[row, y] *= -1
    slope = (np.sign(diff) if p == 1 else 2 * diff) / len(y)
    ours, grad = fastce.hinge_loss_and_grad(x, y, p=p)
    assert ours == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(grad, slope, rtol=1e-13)


# ---- Options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HINGES)
def test_reductions_and_axes(kind, rng):
    x, y = rng.normal(size=(4, 5, 3, 2)), rng.integers(0, 5, (4, 3, 2))
    y[0, 0] = -100
    s, w = rng.uniform(0.5, 2, y.shape), rng.uniform(0.5, 2, 5)
    for how in ({}, {"reduction": "sum"}, {"normalizer": 7.0}):
        options = {"kind": kind, "axis": 1, "sample_weight": s, "weight": w, **how}
        loss, grad = fastce.hinge_loss_and_grad(x, y, **options)
        exact, exact_grad = reference.hinge_loss_and_grad(x, y, **options)
        assert abs(loss - exact) <= 20 * 2.0**-52 * exact  # a row's bound, and a rounding for each
        assert_ulp(grad, exact_grad, GRAD_ULP[x.dtype])


def test_what_p_may_be():
    x = [[0.5, 2.0]]
    assert fastce.hinge_loss(x, [0], p=np.int8(2)) == fastce.hinge_loss(x, [0], p=2.0) == 0.25 + 9
    for p in (0, 1.5, 3, -1, np.nan):
        with pytest.raises(ValueError, match=rf"^p is .*{p}.*; expected"):
            fastce.hinge_loss(x, [0], p=p)


@pytest.mark.parametrize("kind", ["multi-margin", "", None, 1, ["multi_margin"]])
def test_another_kind(kind):
    with pytest.raises(ValueError, match=r"^kind is .*; expected 'one_vs_rest', 'multi_margin', 'crammer"):
        fastce.hinge_loss([[0.0, 1.0]], [0], kind=kind)
