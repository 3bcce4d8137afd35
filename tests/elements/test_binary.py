"""The binary losses against the twin, in ULP; what infinities, NaN and zeros give."""

import ml_dtypes
import numpy as np
import pytest
from bounds import binary_focal_factor, binary_scale
from conftest import DTYPES, FLOATS, GRAD_ULP, HALVES, LOSS_ULP, assert_ulp, bits, compute_dtype
from hypothesis import given
from hypothesis import strategies as st

import fastce
from fastce import reference

GAMMAS = (0, 0.5, 1, 2, 2.7, 3, 4, 5)


def some_logits(dtype, n=4000, seed=0):
    """Everyday ones, tiny ones, all sizes at which exp(-|x|) is not 0, and beyond."""
    rng = np.random.default_rng(seed)
    end = 750 if dtype == np.float64 else 106
    x = np.concatenate(
        [
            rng.normal(size=n) * 3,
            rng.uniform(-end, end, n),
            np.exp(rng.uniform(-60, 0, n // 4)) * rng.choice([-1, 1], n // 4),
            [0.0, -0.0, end, -end, 2 * end, -2 * end, 6e4, -6e4],
        ]
    )
    return rng.permutation(x).astype(dtype)


def some_weights(n, seed=1):
    return np.exp(np.random.default_rng(seed).uniform(-6, 6, n))


def test_levels(level):
    """The level fixture reaches these functions."""
    assert fastce._kernels.elementwise.__name__.endswith(level)


# ---- Accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.int64, bool, np.uint8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_targets(dtype, target_dtype):
    x = some_logits(dtype)
    y = (np.arange(x.size) % 3 == 0).astype(target_dtype)
    got = fastce.binary_cross_entropy_with_logits_and_hess(x, y, reduction="none")
    exact = reference.binary_cross_entropy_with_logits_and_hess(x, y, reduction="none")
    assert [a.dtype for a in got] == [compute_dtype(dtype), dtype, dtype]
    assert_ulp(got[0], exact[0], LOSS_ULP[compute_dtype(dtype)], label="loss")
    assert_ulp(got[1], exact[1], GRAD_ULP[dtype], label="gradient")
    assert_ulp(got[2], exact[2], GRAD_ULP[dtype], label="hessian")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weights(dtype):
    x = some_logits(dtype)
    y = np.arange(x.size) % 2
    for options in (
        {"weight": some_weights(x.size)},
        {"pos_weight": some_weights(x.size)},
        {"weight": some_weights(x.size), "pos_weight": some_weights(x.size, 2)},
        {"weight": some_weights(x.size).astype(np.float32), "pos_weight": 3},
    ):
        got = fastce.binary_cross_entropy_with_logits_and_hess(x, y, reduction="none", **options)
        exact = reference.binary_cross_entropy_with_logits_and_hess(
            x, y, reduction="none", **options
        )
        for a, b, bound in zip(got, exact, (LOSS_ULP, GRAD_ULP, GRAD_ULP), strict=True):
            assert_ulp(a, b, bound[dtype], label=str(list(options)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large_weights_bring_small_numbers_back(dtype):
    """Of exps that are subnormal or 0 in the logits' dtype no digit is lost before they are weighted."""
    x = np.linspace(-730, 730, 1001) if dtype == np.float64 else np.linspace(-150, 150, 1001)
    x = x.astype(dtype)
    weight = 1e300 if dtype == np.float64 else 1e38
    y = x > 0
    for options in ({"weight": weight}, {"pos_weight": weight}):
        got = fastce.binary_cross_entropy_with_logits_and_hess(x, y, reduction="none", **options)
        exact = reference.binary_cross_entropy_with_logits_and_hess(
            x, y, reduction="none", **options
        )
        for a, b, bound in zip(got, exact, (LOSS_ULP, GRAD_ULP, GRAD_ULP), strict=True):
            assert_ulp(a, b, bound[dtype], label=str(options))


@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_soft_targets(dtype, target_dtype, rng):
    """The gradient is a difference of two terms: the larger one's ULP."""
    x = some_logits(dtype)
    y = rng.choice([0, 1e-30, 1e-5, 0.3, 0.5, 0.9, 1 - 2.0**-20, 1], x.size).astype(target_dtype)
    weight, pos_weight = some_weights(x.size), some_weights(x.size, 2)
    got = fastce.binary_cross_entropy_with_logits_and_hess(
        x, y, weight=weight, pos_weight=pos_weight, reduction="none"
    )
    exact = reference.binary_cross_entropy_with_logits_and_hess(
        x, y, weight=weight, pos_weight=pos_weight, reduction="none"
    )
    assert_ulp(got[0], exact[0], LOSS_ULP[dtype], label="loss")
    assert_ulp(got[1], exact[1], GRAD_ULP[dtype], binary_scale(x, y, weight, pos_weight), "gradient")
    assert_ulp(got[2], exact[2], GRAD_ULP[dtype], label="hessian")


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [*FLOATS, HALVES[1]], ids=str)
def test_focal_loss(dtype, gamma):
    """The gradient is a sum: where it is a subnormal float64 both its terms were rounded to a whole unit."""
    x = some_logits(dtype)
    y = np.arange(x.size) % 2
    more = LOSS_ULP[compute_dtype(dtype)] * (binary_focal_factor(dtype, gamma, y) - 1)
    for alpha in (None, 0.25):
        options = {"gamma": gamma, "alpha": alpha, "reduction": "none", "weight": some_weights(x.size)}
        loss, grad = fastce.binary_focal_loss_and_grad(x, y, **options)
        exact = reference.binary_focal_loss_and_grad(x, y, **options)
        assert_ulp(loss, exact[0], LOSS_ULP[compute_dtype(dtype)] + more, label="loss")
        bound = (GRAD_ULP[dtype] + more).max()
        size = np.abs(exact[1]) / float(ml_dtypes.finfo(dtype).smallest_normal)
        assert_ulp(grad[size >= 1], exact[1][size >= 1], bound, label="gradient")
        distance = reference.ulp_distance(grad[size < 1], exact[1][size < 1])
        assert (distance <= 1 + bound * size[size < 1]).all()
        assert bits(fastce.binary_focal_loss(x, y, **options)) == bits(loss)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_loss_of_soft_targets(gamma, rng):
    """Relative to the largest that the gradient's terms can be together."""
    x, y = rng.normal(size=2000) * 5, rng.choice([0, 0.1, 0.5, 0.8, 1], 2000)
    loss, grad = fastce.binary_focal_loss_and_grad(x, y, gamma=gamma, reduction="none")
    exact = reference.binary_focal_loss_and_grad(x, y, gamma=gamma, reduction="none")
    np.testing.assert_allclose(loss, exact[0].astype(float), rtol=1e-14, atol=0)
    size = (1 + gamma) * (1 + np.abs(x))
    assert (np.abs(grad - exact[1]) <= 1e-15 * size).all()


def some_probabilities(dtype, n=3000):
    rng = np.random.default_rng(3)
    p = [rng.random(n), np.exp(rng.uniform(-102, 0, n)), 1 - np.exp(rng.uniform(-36, 0, n))]
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    return np.concatenate([*p, [0, 1, 1, 0, least, 1 - 2.0**-53, 2.0**-146, 2.0**-144]]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities(dtype):
    p = some_probabilities(dtype)
    for y in (0, 1, np.arange(p.size) % 2, np.linspace(0, 1, p.size)):
        for weight in (None, some_weights(p.size)):
            got = fastce.binary_cross_entropy(p, y, weight=weight, reduction="none")
            exact = reference.binary_cross_entropy(p, y, weight=weight, reduction="none")
            assert got.dtype == compute_dtype(dtype)
            assert_ulp(got, exact, LOSS_ULP[compute_dtype(dtype)])


# ---- Infinities, NaN, zeros ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pos_weight", [None, 3])
def test_infinite_logits(dtype, pos_weight):
    x = np.array([np.inf, np.inf, -np.inf, -np.inf, np.inf, -np.inf], dtype)
    y = [1, 0, 1, 0, 0.5, 0.5]
    loss, grad, hess = fastce.binary_cross_entropy_with_logits_and_hess(
        x, y, pos_weight=pos_weight, reduction="none"
    )
    w = pos_weight or 1
    assert bits(loss) == bits(np.array([0, np.inf, np.inf, 0, np.inf, np.inf], loss.dtype))
    assert bits(grad) == bits(np.array([0, 1, -w, 0, 0.5, -0.5 * w], dtype))
    assert bits(hess) == bits(np.zeros(6, dtype))
    for gamma in GAMMAS:
        loss, grad = fastce.binary_focal_loss_and_grad(x, y, gamma=gamma, reduction="none")
        u = 0.5**gamma
        assert bits(loss) == bits(np.array([0, np.inf, np.inf, 0, np.inf, np.inf], loss.dtype))
        expected = np.array([0, 1, -1, 0, 0.5 * u, -0.5 * u]).astype(dtype)
        np.testing.assert_array_equal(np.abs(grad[:4]), np.abs(expected[:4]))
        np.testing.assert_allclose(grad.astype(float), expected.astype(float), rtol=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_coefficients_of_0_wipe_out_infinities_and_not_nan(dtype):
    x = np.array([np.inf, -np.inf, np.nan, np.inf, -np.inf, np.nan], dtype)
    y = [0, 1, 1, 0, 1, 0]
    nan, zero = [False, False, True] * 2, np.where([False, False, True] * 2, np.nan, 0)
    got = fastce.binary_cross_entropy_with_logits_and_hess(x, y, weight=0.0, reduction="none")
    for a in got:
        np.testing.assert_array_equal(a.astype(float), zero)
    loss, grad = fastce.binary_focal_loss_and_grad(x, y, weight=0.0, reduction="none")
    np.testing.assert_array_equal(loss, zero)
    np.testing.assert_array_equal(grad.astype(float), zero)
    loss, grad = fastce.binary_focal_loss_and_grad(x, 1, alpha=0.0, reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), nan)
    np.testing.assert_array_equal(loss[~np.isnan(loss)], 0)
    loss = fastce.binary_cross_entropy_with_logits(x, 1, pos_weight=0, reduction="none")
    np.testing.assert_array_equal(loss, zero)


@pytest.mark.parametrize("n", [1, 3, 8, 17, 1025])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_element(dtype, n):
    x = some_logits(dtype)[:n].copy()
    y = np.arange(n) % 2
    before = fastce.binary_cross_entropy_with_logits_and_hess(x, y, reduction="none")
    focal = fastce.binary_focal_loss_and_grad(x, y, reduction="none")
    for place in {0, n // 2, n - 1}:
        spoilt = x.copy()
        spoilt[place] = np.nan
        after = fastce.binary_cross_entropy_with_logits_and_hess(spoilt, y, reduction="none")
        after += fastce.binary_focal_loss_and_grad(spoilt, y, reduction="none")
        for a, b in zip(after, before + focal, strict=True):
            assert np.isnan(a[place])
            assert bits(np.delete(a, place)) == bits(np.delete(b, place))
        assert np.isnan(fastce.binary_cross_entropy_with_logits(spoilt, y))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_negative_zeros(dtype):
    """Where a gradient underflows it is +0, on either side."""
    x = np.array([2000, -2000, np.inf, -np.inf], dtype)
    for function in (
        fastce.binary_cross_entropy_with_logits_and_grad,
        fastce.binary_focal_loss_and_grad,
    ):
        for a in function(x, [1, 0, 1, 0], reduction="none"):
            assert bits(a) == bits(np.zeros(4, a.dtype))


def test_the_ends_of_probabilities():
    p = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    got = fastce.binary_cross_entropy(p, [0, 1, 0, 1, 0.25, 0.25], reduction="none")
    np.testing.assert_array_equal(got, [0, 100, 100, 0, 25, 75])


# ---- The gradient is the derivative --------------------------------------------------------------


@given(
    x=st.floats(-30, 30),
    y=st.sampled_from([0, 0.2, 0.5, 1]),
    gamma=st.sampled_from(GAMMAS),
    pos_weight=st.floats(0.1, 10),
)
def test_differences(x, y, gamma, pos_weight):
    """Eighth-order central differences in float64, whose step of 1/8 leaves an error of 1e-9."""
    step, coefficients = 0.125, np.array([4 / 5, -1 / 5, 4 / 105, -1 / 280])
    offsets = step * np.arange(1, 5)

    def derivative(f):
        return float(((f(x + offsets) - f(x - offsets)) * coefficients).sum() / step)

    def bce(x):
        return fastce.binary_cross_entropy_with_logits_and_grad(
            x, y, pos_weight=pos_weight, reduction="none"
        )

    def focal(x):
        return fastce.binary_focal_loss_and_grad(x, y, gamma=gamma, reduction="none")

    _, grad, hess = fastce.binary_cross_entropy_with_logits_and_hess(
        [x], y, pos_weight=pos_weight, reduction="none"
    )
    assert grad[0] == pytest.approx(derivative(lambda x: bce(x)[0]), abs=1e-7)
    assert hess[0] == pytest.approx(derivative(lambda x: bce(x)[1]), abs=1e-7)
    assert focal([x])[1][0] == pytest.approx(derivative(lambda x: focal(x)[0]), abs=1e-6)
