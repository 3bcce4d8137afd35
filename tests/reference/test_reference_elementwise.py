"""The twin's binary losses, special functions and information measures against mpmath and SciPy."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import NEW_SIGNS
from mpmath import mpf

from fastce import reference
from fastce.reference import _arithmetic, information

pytestmark = pytest.mark.once

TOLERANCE = 2.0**-57  # a few roundings of wide numbers, and exponents of up to 50 times 2**-64
LOGITS = [-50.0, -3.25, -1e-9, 0.0, 0.5, 2.0, 40.0]


@pytest.fixture(params=["native", "mpmath"], autouse=True)
def arithmetic(request, monkeypatch):
    """The arithmetic of this platform, and that of platforms whose longdouble is a double."""
    if request.param == "mpmath":
        mpmath_numbers = _arithmetic._mpmath_arithmetic()
        monkeypatch.setattr(_arithmetic, "_arithmetic", lambda: mpmath_numbers)


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(100):
        yield


def error(actual, exact, scale=0.0):
    """Largest error of `actual` relative to the exact numbers, or to `scale` if that is larger."""
    arrays = np.broadcast_arrays(*(np.asarray(a, dtype=object).ravel() for a in (actual, exact, scale)))
    sizes = ((mpf(str(a)), mpf(e), max(abs(mpf(e)), mpf(str(s)))) for a, e, s in zip(*arrays, strict=True))
    return max(0 if a == e else abs(a - e) / size for a, e, size in sizes)


def mp_sigma(x):
    return 1 / (1 + mpmath.exp(-x))


@pytest.mark.parametrize("pos_weight", [1.0, 3.0])
@pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
def test_binary_cross_entropy_with_logits(y, pos_weight):
    def exact(x):
        return -pos_weight * y * mpmath.log(mp_sigma(x)) - (1 - mpf(y)) * mpmath.log(mp_sigma(-x))

    loss, grad, hess = reference.binary_cross_entropy_with_logits_and_hess(
        LOGITS, y, pos_weight=pos_weight, reduction="none"
    )
    values = list(map(mpf, LOGITS))
    # With a soft target the gradient is a difference of two terms.
    up = np.array([float(mp_sigma(v)) for v in values])
    terms = 0.0 if y in (0, 1) else np.maximum(y * pos_weight * (1 - up), (1 - y) * up)
    assert error(loss, [exact(x) for x in values]) < TOLERANCE
    assert error(grad, [mpmath.diff(exact, x) for x in values], terms) < TOLERANCE
    assert error(hess, [mpmath.diff(exact, x, 2) for x in values]) < TOLERANCE
    plain = reference.binary_cross_entropy_with_logits(LOGITS, y, pos_weight=pos_weight, reduction="none")
    assert plain.tolist() == loss.tolist()


def test_binary_broadcasting_reductions_and_infinities():
    x, y = np.array([[0.0, np.inf, -np.inf], [0.0, -np.inf, np.inf]]), [1, 1, 0]
    loss, grad, hess = reference.binary_cross_entropy_with_logits_and_hess(x, y, reduction="none")
    log2 = math.log(2)
    assert loss.astype(float).tolist() == [[log2, 0, 0], [log2, np.inf, np.inf]]
    assert grad.tolist() == [[-0.5, 0, 0], [-0.5, -1, 1]]
    assert hess.tolist() == [[0.25, 0, 0], [0.25, 0, 0]]
    options = {"weight": [[2.0], [3.0]], "pos_weight": [1.0, 5.0, 7.0]}
    x = np.zeros((2, 3))
    loss, grad = reference.binary_cross_entropy_with_logits_and_grad(x, [True, False, True], **options)
    assert float(loss) == pytest.approx((2 + 3) * (1 + 1 + 7) / 6 * log2)
    expected = np.outer([2, 3], [-1, 1, -7]) / 2
    assert grad.astype(float) == pytest.approx(expected / 6)
    summed = reference.binary_cross_entropy_with_logits(x, [1, 0, 1], reduction="sum", **options)
    divided = reference.binary_cross_entropy_with_logits(x, [1, 0, 1], normalizer=4, **options)
    assert summed == 4 * divided
    loss, grad = reference.binary_cross_entropy_with_logits_and_grad(np.zeros((0, 3)), 1)
    assert np.isnan(float(loss))
    assert grad.shape == (0, 3)
    assert np.isnan(float(reference.binary_cross_entropy_with_logits(np.nan, 1)))


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
def test_binary_focal_loss(y, gamma, alpha):
    def exact(x):
        p = mp_sigma(x)
        surprise = -y * mpmath.log(p) - (1 - mpf(y)) * mpmath.log(1 - p)
        p_t = p * y + (1 - p) * (1 - y)
        balance = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
        return balance * (1 - p_t) ** gamma * surprise

    loss, grad = reference.binary_focal_loss_and_grad(LOGITS, y, gamma=gamma, alpha=alpha, reduction="none")
    values = list(map(mpf, LOGITS))
    assert error(loss, [exact(x) for x in values]) < TOLERANCE
    scale = 0.0 if y in (0, 1) else 1.0
    assert error(grad, [mpmath.diff(exact, x) for x in values], scale) < TOLERANCE
    again = reference.binary_focal_loss(LOGITS, y, gamma=gamma, alpha=alpha, reduction="none")
    assert again.tolist() == loss.tolist()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_binary_focal_loss_of_infinities(gamma):
    x, y = [np.inf, -np.inf, -np.inf, np.inf], [1, 0, 1, 0]
    loss, grad = reference.binary_focal_loss_and_grad(x, y, gamma=gamma, reduction="none")
    assert loss.tolist() == [0, 0, np.inf, np.inf]
    assert grad.tolist() == [0, 0, -1, 1]


def test_binary_cross_entropy():
    p, y = [0.0, 1.0, 0.25, 1e-300, 0.75], [1.0, 0.0, 0.0, 1.0, 0.5]
    exact = [100, 100, -mpmath.log(mpf("0.75")), 100, (-mpmath.log(mpf(3) / 16)) / 2]
    assert error(reference.binary_cross_entropy(p, y, reduction="none"), exact) < TOLERANCE
    assert reference.binary_cross_entropy([0.0, 1.0], [0, 1]) == 0
    assert reference.binary_cross_entropy([0.0, 1.0], [1, 1], weight=[0.5, 1]) == 25


def test_nll_loss():
    x, y = np.log([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]), [1, 0]
    loss = reference.nll_loss(x, y, weight=[1.0, 3.0, np.nan])
    assert float(loss) == pytest.approx((3 * math.log(4) + math.log(8)) / 4)
    assert reference.nll_loss([-np.inf, np.nan, 0], 0) == np.inf
    assert np.isnan(float(reference.nll_loss(x, [-100, -100])))
    assert reference.nll_loss(x.T, y, axis=0, reduction="sum") == -x[0, 1] - np.longdouble(x[1, 0])


def test_refused_values():
    for function in (reference.binary_cross_entropy_with_logits, reference.binary_cross_entropy):
        for y in (1.5, -0.1, np.nan):
            with pytest.raises(ValueError, match="target"):
                function([0.5], [y])
        with pytest.raises(ValueError, match="broadcast"):
            function([0.5, 0.5], [1, 1, 1])
        with pytest.raises(ValueError, match="reduction"):
            function([0.5], [1], reduction="average")
    for p in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="probs"):
            reference.binary_cross_entropy([p], [1])
    for name, value in (("gamma", -1), ("alpha", 2)):
        with pytest.raises(ValueError, match=name):
            reference.binary_focal_loss([0.5], [1], **{name: value})
    for p in (-0.1, np.nan):
        with pytest.raises(ValueError, match="p must hold"):
            information.entropy([p])
        with pytest.raises(ValueError, match="q must hold"):
            information.kl_divergence([1.0], [p])
    for base in (0, 1, -2, np.nan):
        with pytest.raises(ValueError, match="base"):
            information.self_information(0.5, base=base)
    with pytest.raises(ValueError, match="axis 2"):
        reference.softmax([[1.0]], axis=2)


# --- special functions ---

SPECIAL = [
    [1.0, 2.0, 3.0],
    [0.0, -30.0, -31.0],
    [1e4, 1e4 - 1, 5.0],
    [-np.inf, 0.0, 1.0],
    [-np.inf, -np.inf, -np.inf],
    [np.inf, 1.0, -np.inf],
    [np.inf, np.inf, 0.0],
    [np.nan, 1.0, np.inf],
]


@pytest.mark.parametrize("x", SPECIAL, ids=str)
def test_special_functions_like_scipy(x):
    for name in ("softmax", "log_softmax", "logsumexp"):
        with np.errstate(all="ignore"):  # older NumPy warns where mpmath's NaN becomes a float
            result = np.asarray(getattr(reference, name)(x), float)
            expected = getattr(scipy.special, name)(x)
        # SciPy's log_softmax takes the logarithm of a sum near 1: half an eps of 1 is lost.
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=2.0**-52, err_msg=name)


@pytest.mark.parametrize("x", [row for row in SPECIAL if np.isfinite(row).all()], ids=str)
def test_special_functions_to_the_last_digit(x):
    v = list(map(mpf, x))
    total = mpmath.fsum(map(mpmath.exp, v))
    tolerance = TOLERANCE if max(x) < 100 else 2.0**-49  # exp(-1e4)
    assert error(reference.logsumexp(x), mpmath.log(total)) < TOLERANCE
    assert error(reference.softmax(x), [mpmath.exp(a) / total for a in v]) < tolerance
    assert error(reference.log_softmax(x), [a - mpmath.log(total) for a in v]) < TOLERANCE


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), (2, 0), (0, 1, 2)])
def test_axes(axis, rng):
    x, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 1, 4))
    for name in ("softmax", "log_softmax"):
        result = getattr(reference, name)(x, axis=axis).astype(float)
        np.testing.assert_allclose(result, getattr(scipy.special, name)(x, axis=axis), rtol=1e-12)
    for keepdims in (False, True):
        options = {"axis": axis, "keepdims": keepdims, "b": b, "return_sign": True}
        for got, expected in zip(
            reference.logsumexp(x, **options), scipy.special.logsumexp(x, **options), strict=True
        ):
            assert np.shape(got) == np.shape(expected)
            np.testing.assert_allclose(np.asarray(got, float), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [1, -1]),
        ([1.0, 1.0], [1, -1]),
        ([np.inf, 1.0], [-2, 1]),
        ([np.inf, np.inf], [1, -1]),
        ([np.nan, 1.0], [0, 1]),
        ([np.inf, 1.0], [0, 1]),
        ([-np.inf, -np.inf], [1, 1]),
        ([-np.inf, 0.0], [-1, 1]),
        ([0.0, -50.0], [1e-20, 1]),
    ],
    ids=str,
)
def test_logsumexp_with_factors(a, b):
    if not np.isfinite(a).all() and not NEW_SIGNS:
        pytest.skip("SciPy's answers since 1.16: pip install -U scipy")
    for return_sign in (True, False):
        got = reference.logsumexp(a, b=b, return_sign=return_sign)
        with np.errstate(all="ignore"):
            expected = scipy.special.logsumexp(a, b=b, return_sign=return_sign)
        np.testing.assert_allclose(np.asarray(got, float), expected, rtol=1e-12)


def test_logsumexp_with_factors_larger_than_the_exponentials():
    exact = mpmath.log(mpmath.exp(1000) * mpf(1e-300) + mpf(1e300))
    assert error(reference.logsumexp([1000.0, 0.0], b=[1e-300, 1e300]), exact) < TOLERANCE
    exact = mpmath.log(mpf(1e-20) + mpmath.exp(-50))
    assert error(reference.logsumexp([0.0, -50.0], b=[1e-20, 1]), exact) < TOLERANCE


def test_logsumexp_of_nothing():
    assert reference.logsumexp([]) == -np.inf
    assert reference.logsumexp(np.zeros((3, 0)), axis=1).tolist() == [-np.inf] * 3
    assert reference.logsumexp(np.zeros((3, 0)), axis=0, keepdims=True).shape == (1, 0)
    assert reference.softmax(np.zeros((3, 0)), axis=1).shape == (3, 0)
    assert float(reference.log_softmax(3.0)) == 0


# --- information ---


def test_information_by_hand():
    assert float(information.self_information(0.125, base=2)) == 3
    assert information.self_information([1.0, 0.0]).tolist() == [0, np.inf]
    assert float(information.entropy([0.5, 0.25, 0.25, 0.0], base=2)) == 1.5
    assert float(information.cross_entropy([0.5, 0.5, 0], [0.25, 0.75, 0])) == pytest.approx(
        math.log(4 / math.sqrt(3))
    )
    assert information.cross_entropy([0.5, 0.5], [1, 0]) == np.inf
    assert information.kl_divergence([0.5, 0.5], [1, 0]) == np.inf
    assert information.kl_divergence([1, 0], [1, 0]) == 0
    assert float(information.kl_divergence([1, 0], [0.5, 0.5], base=2)) == 1
    assert float(information.kl_divergence([2.0, 4.0], [1.0, 1.0], base=2)) == 10  # not renormalised


def test_information_like_scipy(rng):
    p, q = (a / a.sum(axis=1, keepdims=True) for a in rng.random((2, 3, 5, 2)))
    for base in (None, 2):
        options = {"axis": 1, "base": base}
        for got, expected in (
            (information.entropy(p, **options), scipy.stats.entropy(p, **options)),
            (information.kl_divergence(p, q, **options), scipy.stats.entropy(p, q, **options)),
        ):
            np.testing.assert_allclose(got.astype(float), expected, rtol=1e-12)
        sum_of_both = information.entropy(p, **options) + information.kl_divergence(p, q, **options)
        both = information.cross_entropy(p, q, **options).astype(float)
        np.testing.assert_allclose(both, sum_of_both.astype(float), rtol=1e-12)


@pytest.mark.parametrize("distance", [0.5, 0.3, 0.2, 1e-3, 1e-8, 1e-15])
def test_divergence_of_neighbours(distance, rng):
    p = rng.random(8)
    p /= p.sum()
    q = p * (1 + distance * rng.uniform(-1, 1, 8))
    q /= q.sum()
    exact = mpmath.fsum(mpf(a) * mpmath.log(mpf(a) / mpf(b)) for a, b in zip(p, q, strict=True))
    # The sums of p and q differ by roundings, so the divergence of the nearest ones may be negative.
    assert error(information.kl_divergence(p, q), exact) < 2.0**-55
    logs = [-mpmath.log(mpf(a)) for a in p]
    assert error(information.self_information(p), logs) < TOLERANCE
    terms = (mpf(a) * b for a, b in zip(p, logs, strict=True))
    assert error(information.entropy(p), mpmath.fsum(terms)) < TOLERANCE
