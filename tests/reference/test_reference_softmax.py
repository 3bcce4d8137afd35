"""The twin's softmax losses against textbook formulas in hundreds of digits, differentiated by mpmath."""

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from fastce import reference
from fastce.reference import _arithmetic
from fastce.reference.softmax import largest_terms

pytestmark = [pytest.mark.once, pytest.mark.slow]

# Rounding of the wide numbers: gaps of up to 64 times 2**-64, and a few roundings more.
TOLERANCE = 2.0**-55
N_CLASSES = 4

ROWS = {
    "normal": [0.3, -1.2, 2.5, 0.7],
    "confident": [1.0, 28.0, -2.0, 0.5],
    "surer": [60.0, 0.25, -1.0, 1.0],
    "offset": [300.25, 301.0, 298.0, 303.5],
    "tied": [5.0, 5.0, -7.0, -7.5],
}
OPTIONS = {
    "plain": {},
    "weight": {"weight": [0.5, 2.0, 1.25, 3.0]},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, weight": {"label_smoothing": 0.3, "weight": [0.5, 2.0, 0.0, 3.0]},
    "z-loss": {"z_loss": 0.01},
    "temperature": {"temperature": 1.7},
    "softcap": {"softcap": 30.0},
    "wide softcap": {"softcap": 1e4, "temperature": 0.5},
    "tight softcap": {"softcap": 2.0},
    "all": {
        "weight": [0.5, 2.0, 1.25, 3.0],
        "label_smoothing": 0.2,
        "z_loss": 0.5,
        "temperature": 2.5,
        "softcap": 40.0,
    },
}
TARGETS = {
    "label": 1,
    "one-hot": [0.0, 1.0, 0.0, 0.0],
    "soft": [0.125, 0.25, 0.0, 0.625],
    "unnormalised": [0.5, 0.75, 2.0, 0.0],
}


@pytest.fixture(params=["native", "mpmath"])
def arithmetic(request, monkeypatch):
    """The arithmetic of this platform, and that of platforms whose longdouble is a double."""
    if request.param == "mpmath":
        mpmath_numbers = _arithmetic._mpmath_arithmetic()
        monkeypatch.setattr(_arithmetic, "_arithmetic", lambda: mpmath_numbers)


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(300):
        yield


def textbook(x, target, weight=None, label_smoothing=0.0, z_loss=0.0, temperature=1.0, softcap=None):
    """The loss of one row as the papers write it."""
    n = len(x)
    q = [mpf(int(j == target)) for j in range(n)] if isinstance(target, int) else list(map(mpf, target))
    w = list(map(mpf, weight or [1.0] * n))
    epsilon = mpf(label_smoothing)
    z = [v if softcap is None else softcap * mpmath.tanh(v / softcap) for v in x]
    z = [v / mpf(temperature) for v in z]
    lse = mpmath.log(mpmath.fsum(map(mpmath.exp, z)))
    terms = (((1 - epsilon) * q[j] + epsilon / n) * w[j] * (lse - z[j]) for j in range(n))
    return mpmath.fsum(terms) + mpf(z_loss) * lse**2


def derivatives(function, x, order):
    """The derivative of some order by each of the numbers in `x`."""

    def along(j):
        return lambda v: function([*x[:j], v, *x[j + 1 :]])

    return [mpmath.diff(along(j), x[j], order) for j in range(len(x))]


def error(actual, exact, scale=None):
    """Largest error of `actual` relative to the exact numbers, or to `scale`."""
    scale = exact if scale is None else scale
    arrays = (np.ravel(np.asarray(a, dtype=object)) for a in (actual, exact, scale))
    return max(abs(mpf(str(a)) - e) / abs(mpf(str(s))) for a, e, s in zip(*arrays, strict=True))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("row", ROWS)
def test_cross_entropy(row, options, target, arithmetic):
    x, options, target = ROWS[row], OPTIONS[options], TARGETS[target]
    loss, grad, hess = reference.cross_entropy_and_hess(x, target, **options, reduction="sum")
    assert loss == reference.cross_entropy(x, target, **options, reduction="sum")
    largest_loss, largest_grad = largest_terms(x, target, **options, reduction="sum")

    def exact(logits):
        return textbook(logits, target, **options)

    logits = list(map(mpf, x))
    first, second = derivatives(exact, logits, 1), derivatives(exact, logits, 2)
    hard = target in (1, TARGETS["one-hot"]) and not options.keys() & {"label_smoothing", "z_loss"}
    assert error(loss, exact(logits), None if hard else largest_loss) < TOLERANCE
    assert error(grad, first, None if hard else largest_grad) < TOLERANCE
    if options.get("softcap", 1e4) == 1e4:
        # The terms of the second derivative are all positive but for the curve of a softcap.
        assert error(hess, second) < TOLERANCE
    else:
        assert error(hess, second, np.maximum(abs(hess), largest_grad)) < TOLERANCE
    if hard and not options.keys() & {"softcap"}:
        assert largest_loss <= loss
        assert (largest_grad <= abs(grad) * (1 + TOLERANCE)).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("row", ROWS)
def test_focal_loss(row, gamma, arithmetic):
    x = list(map(mpf, ROWS[row]))

    def exact(logits):
        p = mpmath.exp(logits[1]) / mpmath.fsum(map(mpmath.exp, logits))
        return (1 - p) ** gamma * -mpmath.log(p)

    loss, grad = reference.focal_loss_and_grad(ROWS[row], 1, gamma=gamma)
    assert loss == reference.focal_loss(ROWS[row], 1, gamma=gamma)
    assert error(loss, exact(x)) < TOLERANCE
    assert error(grad, derivatives(exact, x, 1)) < TOLERANCE


def test_focal_loss_at_the_ends(arithmetic):
    """A certain target has no loss; an impossible one has that of cross-entropy, and its gradient."""
    for gamma in (0.0, 2.0):
        for x, y in (([3.0], 0), ([0.0, -np.inf], 0)):
            loss, grad = reference.focal_loss_and_grad(x, y, gamma=gamma)
            assert loss == 0
            assert not grad.any()
        loss, grad = reference.focal_loss_and_grad([0.0, -np.inf], 1, gamma=gamma)
        assert loss == np.inf
        assert grad.tolist() == [1, -1]


def test_weighted_rows_of_the_other_losses(arithmetic):
    x = np.array([[0.5, -0.25, 0.75], [np.nan, 0, 0], [0.1, 0.9, -0.3]])
    y, s, w = np.array([1, -100, 2]), np.array([2.0, np.nan, 3.0]), [np.nan, 0.5, 4.0]
    for loss_and_grad in (reference.focal_loss_and_grad, reference.margin_cross_entropy_and_grad):
        rows, row_grad = loss_and_grad(x, y, reduction="none")
        factor = np.array([2 * 0.5, 0, 3 * 4])
        loss, grad = loss_and_grad(x, y, weight=w, sample_weight=s)
        assert error(loss, mpf(str((rows * factor).sum())) / 13) < TOLERANCE
        assert not grad[1].any()
        assert error(grad[::2], (row_grad * factor[:, None])[::2] / 13) < TOLERANCE


def combined_margin(cosine, y, scale, margin1, margin2, margin3):
    """The margin of the papers, with its extension, by the textbook."""
    theta = mpmath.acos(cosine[y])
    turned = margin1 * theta + margin2
    if turned <= mpmath.pi:
        phi = mpmath.cos(turned)
    elif margin1 == 1:
        phi = cosine[y] - margin2 * mpmath.sin(mpf(margin2))
    else:
        k = mpmath.floor(turned / mpmath.pi)
        phi = (-1) ** k * mpmath.cos(turned) - 2 * k
    z = [scale * (phi - margin3) if j == y else scale * v for j, v in enumerate(cosine)]
    return mpmath.log(mpmath.fsum(map(mpmath.exp, z))) - z[y]


@pytest.mark.parametrize("y", range(N_CLASSES))
@pytest.mark.parametrize(
    "margins",
    [(1, 0, 0), (1, 0.5, 0), (1, 0, 0.35), (4, 0, 0), (2, 0, 0), (1.5, 0.25, 0.125), (3, 0.5, 0.1)],
    ids=str,
)
def test_margin_cross_entropy(margins, y, arithmetic):
    x = [0.75, -0.5, 0.125, -0.96875]
    names = dict(zip(("margin1", "margin2", "margin3"), margins, strict=True))

    def exact(cosine):
        return combined_margin(cosine, y, 16, *map(mpf, margins))

    loss, grad = reference.margin_cross_entropy_and_grad(x, y, scale=16.0, **names)
    assert loss == reference.margin_cross_entropy(x, y, scale=16.0, **names)
    assert error(loss, exact(list(map(mpf, x)))) < TOLERANCE
    assert error(grad, derivatives(exact, list(map(mpf, x)), 1)) < TOLERANCE


def test_margins_at_the_ends(arithmetic):
    """Cosines outside [-1, 1] count as the nearest of the two, without a gradient; slopes are finite."""
    x = np.float32([1.5, 1.0, -1.0, -2.0])
    for y in range(4):
        loss, grad = reference.margin_cross_entropy_and_grad(x, y, margin2=0.0, margin3=0.25, scale=2.0)
        plain, plain_grad = reference.cross_entropy_and_grad(2 * np.clip(x, -1, 1) - 0.5 * np.eye(4)[y], y)
        assert error(loss, mpf(str(plain))) < TOLERANCE
        assert error(grad[1:3], 2 * plain_grad[1:3]) < TOLERANCE
        assert not grad[[0, 3]].any()
    slope = reference.margin_cross_entropy_and_grad(x, 1)[1][1]
    least_sine = 2.0**-11.5  # the root of float32's eps
    p = reference.margin_cross_entropy(np.float64(x), 1)
    expected = -64 * (np.cos(0.5) + np.sin(0.5) / least_sine) * -np.expm1(-float(p))
    assert float(slope) == pytest.approx(expected, rel=1e-14)
    assert reference.margin_cross_entropy([np.nan, 0], 0) != 0


def test_mean_denominators(arithmetic):
    x = np.zeros((3, 2))
    s, w = [1.0, 2.0, 5.0], [3.0, 1.0]
    labels, q = np.array([0, 1, -100]), np.array([[1, 0], [0, 1], [0.5, 0.5]])
    log2 = np.log(2)
    assert float(reference.cross_entropy(x, labels, weight=w, sample_weight=s)) == pytest.approx(log2)
    dense = reference.cross_entropy(x, q, weight=w, sample_weight=s)
    assert float(dense) == pytest.approx((3 + 2 * 1 + 5 * 2) / 8 * log2)
    by_four = reference.cross_entropy(x, q, weight=w, normalizer=4)
    assert float(by_four) == pytest.approx((3 + 1 + 2) / 4 * log2)
    hess = reference.cross_entropy_and_hess(x, labels, weight=w, sample_weight=s)[2]
    expected = np.array([[3, 3], [2, 2], [0, 0]]) / 5 / 4
    assert np.asarray(hess, float) == pytest.approx(expected)
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1.0}):
        nothing = reference.cross_entropy_and_hess(x, [-100] * 3, **options)
        assert np.isnan(float(nothing[0]))
        assert not nothing[1].any()
        assert not nothing[2].any()
    assert np.isnan(float(reference.cross_entropy(x, [0, 1, 1], sample_weight=[0, 0, 0])))
    for shape in ((0, 3), (0, 0), (2, 0, 3)):
        loss, grad, hess = reference.cross_entropy_and_hess(np.zeros(shape), np.zeros(shape[:-1], int))
        assert np.isnan(float(loss))
        assert grad.shape == hess.shape == shape


def test_zero_coefficients_and_infinities(arithmetic):
    x = [0.0, -np.inf, 0.0]
    loss, grad, hess = reference.cross_entropy_and_hess(x, [0.5, 0.0, 0.5])
    assert float(loss) == np.log(2)
    assert grad.tolist() == [0, 0, 0]
    assert hess.tolist() == [0.25, 0, 0.25]
    assert reference.cross_entropy(x, 1) == np.inf
    assert reference.cross_entropy(x, 0, label_smoothing=0.1) == np.inf
    assert reference.cross_entropy(x, 1, weight=[1.0, 0.0, 1.0], reduction="sum") == 0
    assert float(reference.cross_entropy(x, 0, weight=[1.0, np.nan, np.nan])) == np.log(2)
    # softcap leaves no infinity: -c and c, flat there
    loss, grad, hess = reference.cross_entropy_and_hess([np.inf, -np.inf], 1, softcap=3.0)
    assert float(loss) == pytest.approx(6 + np.log1p(np.exp(-6)))
    assert grad.tolist() == hess.tolist() == [0, 0]
    for row in ([np.inf, 0.0], [np.nan, 0.0], [-np.inf, -np.inf]):
        for result in reference.cross_entropy_and_hess(row, 0, z_loss=0.1):
            with np.errstate(invalid="ignore"):  # older NumPy warns where mpmath's NaN becomes a float
                assert np.isnan(np.asarray(result, float)).all()
    assert np.isnan(float(reference.cross_entropy([np.nan, np.inf], 0, softcap=1.0)))


def test_axis_of_probability_targets(rng, arithmetic):
    x, q = rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4))
    q, w = q.astype(np.float32), rng.random(3)
    given = reference.cross_entropy_and_hess(x, q, axis=1, weight=w, reduction="none")
    moved = (np.moveaxis(a, 1, -1) for a in (x, q))
    last = reference.cross_entropy_and_hess(*moved, weight=w, reduction="none")
    assert np.array_equal(given[0], last[0])
    for a, b in zip(given[1:], last[1:], strict=True):
        assert np.array_equal(np.moveaxis(a, 1, -1), b)


def test_refusals():
    x, q = np.zeros((2, 3)), np.zeros((2, 3))
    for name, value in (("label_smoothing", 1.5), ("z_loss", -1), ("temperature", 0), ("softcap", np.nan)):
        with pytest.raises(ValueError, match=name):
            reference.cross_entropy(x, [0, 1], **{name: value})
    with pytest.raises(ValueError, match="ignore_index"):
        reference.cross_entropy(x, q, ignore_index=1)
    with pytest.raises(ValueError, match="logits' shape"):
        reference.cross_entropy(x, q[:1])
    with pytest.raises(ValueError, match="weight"):
        reference.cross_entropy(x, [0, 1], weight=[1, 2])
    with pytest.raises(ValueError, match="gamma"):
        reference.focal_loss(x, [0, 1], gamma=-1)
    with pytest.raises(TypeError, match="integers"):
        reference.focal_loss(x, q)
