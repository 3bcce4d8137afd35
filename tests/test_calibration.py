"""Calibration against plain formulas, scikit-learn's temperature and torchmetrics' bins."""

import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import special

from fastce import calibration, reference


def batch(rng, n, n_classes, dtype=np.float64):
    z = rng.normal(size=(n, n_classes)) * 2
    y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    return z.astype(dtype), y


@pytest.mark.parametrize("scale", [0.01, 1, 5, 300])
@pytest.mark.parametrize("n_classes", [2, 3, 37, 1000])
def test_temperature_is_scikit_learns(rng, n_classes, scale, level):
    pytest.importorskip("sklearn", "1.8")
    from sklearn.calibration import _TemperatureScaling

    z, y = batch(rng, 500, n_classes)
    weight = rng.uniform(0, 2, 500)
    theirs = 1 / _TemperatureScaling().fit(z * scale, y, sample_weight=weight).beta_
    assert calibration.fit_temperature(z * scale, y, sample_weight=weight) == pytest.approx(theirs, rel=1e-6)
    narrow = calibration.fit_temperature((z * scale).astype(np.float32), y, sample_weight=weight)
    assert narrow == pytest.approx(theirs, rel=1e-6)


def test_the_derivative_is_zero_there(rng, level):
    z, y = batch(rng, 400, 20)
    T = calibration.fit_temperature(z, y)
    p = special.softmax(z / T, axis=1)
    slope = (p * z).sum(axis=1) - z[np.arange(400), y]
    assert abs(slope.mean()) < 1e-9


def test_a_sample_of_the_rows_changes_nothing(rng, monkeypatch):
    z, y = batch(rng, 4000, 50)
    whole = calibration.fit_temperature(z, y)
    monkeypatch.setattr(calibration, "_FEW", 1000)
    assert calibration.fit_temperature(z, y) == pytest.approx(whole, rel=1e-12)
    z[2000, 3] = np.nan
    with pytest.raises(ValueError, match=r"logits\[2000\] holds NaN"):
        calibration.fit_temperature(z, y)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 5, 32, 33])
def test_rows_across_vectors(rng, n_classes, dtype, level):
    """Of few classes, in any layout, beside rows that do not count, whatever these hold."""
    z, y = batch(rng, 5000, n_classes, dtype)
    kept = rng.random(5000) < 0.7
    weight = rng.uniform(1, 2, 5000)
    exact = calibration.fit_temperature(z[kept].astype(np.float64), y[kept], sample_weight=weight[kept])
    z[~kept] = rng.choice([np.nan, np.inf, -np.inf], (np.count_nonzero(~kept), 1))
    for given in (z, np.asfortranarray(z), np.repeat(z, 2, axis=1)[:, ::2]):
        by_label = calibration.fit_temperature(given, np.where(kept, y, -100), sample_weight=weight)
        by_weight = calibration.fit_temperature(given, y, sample_weight=np.where(kept, weight, 0))
        assert by_label == by_weight == pytest.approx(exact, rel=1e-6 if dtype != np.float64 else 1e-12)
    kept[1234] = True
    z[1234] = np.nan
    with pytest.raises(ValueError, match=r"logits\[1234\] holds NaN"):
        calibration.fit_temperature(z, np.where(kept, y, -100))


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_few_rows_have_no_sample(rng, monkeypatch, shape):
    z, y = rng.normal(size=(*shape, 100)), np.full(shape, 1)
    z[..., 1] = 1.5
    whole = calibration.fit_temperature(z, y)
    monkeypatch.setattr(calibration, "_FEW", 4)
    assert calibration.fit_temperature(z, y) == whole


def test_ends_of_the_range():
    x = np.eye(4) * 3
    with pytest.warns(RuntimeWarning, match="every target has the largest logit"):
        assert calibration.fit_temperature(x, [0, 1, 2, 3]) == pytest.approx(np.exp(-10))
    with pytest.warns(RuntimeWarning, match="say nothing of the targets"):
        assert calibration.fit_temperature(-x, [0, 1, 2, 3]) == pytest.approx(np.exp(10))
    for far in (1e10, 1e30):  # the least temperature is beyond the range, by far
        x = np.array([[far, 0], [0, far], [0, far]])
        with pytest.warns(RuntimeWarning, match="the loss falls without end as the temperature grows"):
            assert calibration.fit_temperature(x, [0, 1, 0]) == pytest.approx(np.exp(10))
    assert calibration.fit_temperature(np.ones((3, 4)), [0, 1, 2]) == 1
    x = np.full((3, 1000), -2 * np.exp(10), np.float32)  # at that temperature their exps times their squares
    x[:, 0] = 0
    with pytest.warns(RuntimeWarning, match="the loss falls without end as the temperature grows"):
        assert calibration.fit_temperature(x, [1, 2, 3]) == pytest.approx(np.exp(10))


def test_layouts_ignored_rows_and_threads(rng, level):
    z, y = batch(rng, 300, 12, np.float32)
    expected = calibration.fit_temperature(z, y), calibration.brier_score(z, y)
    planes = np.ascontiguousarray(z.reshape(10, 30, 12).transpose(0, 2, 1))
    got = [
        f(planes, y.reshape(10, 30), axis=1) for f in (calibration.fit_temperature, calibration.brier_score)
    ]
    assert tuple(got) == expected
    some = z.reshape(10, 30, 12)[:, ::2], y.reshape(10, 30)[:, ::2]
    assert calibration.fit_temperature(*some) == calibration.fit_temperature(*map(np.ascontiguousarray, some))
    more = np.vstack([z, np.full((5, 12), np.nan, np.float32)])
    assert calibration.brier_score(more, np.append(y, [-100] * 5)) == pytest.approx(expected[1], rel=1e-14)
    one, three = (
        calibration.fit_temperature(np.tile(z, (40, 1)), np.tile(y, 40), n_threads=n) for n in (1, 3)
    )
    assert one == three


def bins(confidence, right, n_bins):
    """torchmetrics' bins: the lower edge belongs to each, and 1 has its own."""
    edges = np.linspace(0, 1, n_bins + 1, dtype=confidence.dtype)
    for low, high in zip(edges, [*edges[1:], np.inf], strict=True):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            yield inside.mean(), abs(right[inside].mean() - confidence[inside].astype(np.float64).mean())


@pytest.mark.parametrize("n_bins", [1, 2, 15])
@pytest.mark.parametrize("n_classes", [2, 3, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_by_its_formula(rng, dtype, n_classes, n_bins, level):
    z, y = batch(rng, 600, n_classes, dtype)
    z[:3] *= 1000
    p = special.softmax(z.astype(np.float64), axis=1).astype(dtype)
    share, distance = np.transpose(list(bins(p.max(axis=1), p.argmax(axis=1) == y, n_bins)))
    expected = {
        "l1": (share * distance).sum(),
        "l2": np.sqrt((share * distance**2).sum()),
        "max": distance.max(),
    }
    for norm, error in expected.items():
        for given, from_logits in ((z, True), (p, False)):
            got = calibration.calibration_error(given, y, n_bins=n_bins, norm=norm, from_logits=from_logits)
            # A confidence may be rounded across an edge of a bin: none of these is within an ULP of one.
            assert got == pytest.approx(error, abs=8 * float(np.finfo(dtype).eps))
    one_hot = np.eye(n_classes)[y]
    exact = special.softmax(z.astype(np.float64), axis=1)
    brier = np.square(exact - one_hot).sum(axis=1).mean()
    assert calibration.brier_score(z, y) == pytest.approx(brier, rel=16 * float(np.finfo(dtype).eps))


def test_one_number_for_class_1(rng, level):
    z = rng.normal(size=500) * 3
    y = (rng.random(500) < special.expit(z)).astype(int)
    two = np.stack([np.zeros(500), z], axis=1)
    assert calibration.fit_temperature(z * 4, y) == pytest.approx(
        calibration.fit_temperature(two * 4, y), rel=1e-12
    )
    p = special.expit(z)
    assert calibration.brier_score(z, y) == pytest.approx(np.mean((p - y) ** 2), rel=1e-14)
    assert calibration.brier_score(p, y, from_logits=False) == pytest.approx(np.mean((p - y) ** 2), rel=1e-14)
    share, distance = np.transpose(list(bins(p, y == 1, 15)))
    assert calibration.calibration_error(z, y) == pytest.approx((share * distance).sum(), rel=1e-12)


def test_the_first_of_equal_probabilities_and_rows_left_out():
    p = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.25, 0.25, 0.5], [9, np.nan, -1], [0, 0, 0]])
    y, options = np.array([0, 1, 2, -100, 0], np.int8), {"n_bins": 2, "from_logits": False}
    for dtype in (np.float32, np.float64):
        curve = calibration.reliability_curve(p.astype(dtype), y, **options)
        np.testing.assert_allclose(curve.accuracy, [2 / 3, 1, np.nan])
        np.testing.assert_allclose(curve.proportion, [3 / 4, 1 / 4, 0])
        brier = calibration.brier_score(p.astype(dtype), y, from_logits=False)
        assert brier == pytest.approx((0.56 + 0.56 + 0.375 + 1) / 4, rel=1e-6)
    weight = [1, 0, 3, 5, 0]
    assert calibration.brier_score(p, y, from_logits=False, sample_weight=weight) == pytest.approx(
        (0.56 + 3 * 0.375) / 4, rel=1e-14
    )
    with pytest.raises(
        IndexError, match=r"target\[3\] is -100; expected a class index in \[0, 3\) or ignore_"
    ):
        calibration.brier_score(p, y, from_logits=False, ignore_index=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_of_equal_logits(level, dtype):
    z = np.array([[2, 2, 0], [2, 2, 0], [0, 2, 2], [0, 2, 2]], dtype)
    assert calibration.reliability_curve(z, [0, 1, 1, 2], n_bins=1).accuracy[0] == 0.5


def test_sure_rows_keep_their_digits():
    score = calibration.brier_score(np.array([[40.0, 0.0]]), [0])
    assert score == pytest.approx(2 * np.exp(-40) ** 2, rel=1e-14, abs=0)
    assert calibration.brier_score(np.array([40.0]), [1]) == pytest.approx(np.exp(-40) ** 2, rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[0.0, 1.0]], [2]), {}, IndexError, r"target\[0\] is 2; expected a class index in \[0, 2\)"),
        (([[0.0, 1.0]], [0.5]), {}, TypeError, "target has dtype float64"),
        (([[0.0, 1.0]], [[0]]), {}, ValueError, "target has shape"),
        (([[0.0, np.nan]], [0]), {}, ValueError, r"logits\[0\] holds NaN"),
        (([[0.0, 1.5]], [0]), {"from_logits": False}, ValueError, r"logits\[0\] holds a number outside"),
        (([[0.0, 1.0]], [0]), {"n_bins": 0}, ValueError, "n_bins is 0"),
        (([[0.0, 1.0]], [0]), {"n_bins": True}, TypeError, "n_bins is True; expected an int"),
        (([[0.0, 1.0]], [0]), {"axis": True}, TypeError, "axis is True; expected an int"),
        (([[0.0, 1.0]], [0]), {"ignore_index": True}, TypeError, "ignore_index is True; expected an int"),
        (([[0.0, 1.0]], [0]), {"norm": "l3"}, ValueError, "norm is 'l3'"),
        (([[0.0, 1.0]], [0]), {"sample_weight": [-1]}, ValueError, "sample_weight holds negative"),
        (([[0.0, 1.0]], [0]), {"sample_weight": [1, 2]}, ValueError, "sample_weight has shape"),
    ],
)
def test_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        calibration.calibration_error(*arguments, **options)


def test_no_rows():
    assert np.isnan(calibration.calibration_error(np.empty((0, 3)), []))
    assert np.isnan(calibration.brier_score(np.empty((0, 3)), []))
    with pytest.raises(ValueError, match="no row counts"):
        calibration.fit_temperature(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match=r"logits\[0\] holds NaN, \+inf or -inf as the target's"):
        calibration.fit_temperature([[-np.inf, 0.0]], [0])


@st.composite
def batches(draw):
    """Logits (N, C) of any spread, some of them masked, with labels, weights and ignored rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, n_classes = draw(st.integers(1, 60)), draw(st.integers(2, 70))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    z = (rng.normal(size=(n, n_classes)) * draw(st.sampled_from([0.01, 1, 8, 100]))).astype(dtype)
    y = rng.integers(0, n_classes, n)
    if draw(st.booleans()):
        z[rng.random(z.shape) < 0.2] = -np.inf
        z[np.arange(n), y] = rng.normal(size=n)
    if draw(st.booleans()):
        y[1:][rng.random(n - 1) < 0.2] = -100
    options = {"sample_weight": rng.uniform(0.1, 2, n)} if draw(st.booleans()) else {}
    planes = draw(st.booleans())
    return (np.asfortranarray(z) if planes else z), y, options


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(case=batches(), norm=st.sampled_from(["l1", "l2", "max"]), n_bins=st.integers(1, 40))
def test_equals_the_twin(level, case, norm, n_bins):
    z, y, options = case
    eps = float(np.finfo(z.dtype).eps)
    exact = float(reference.calibration.brier_score(z, y, **options))
    # Squares of probabilities that are right to 4 ULP, 8 of them; sums of numbers of one sign add nothing.
    assert calibration.brier_score(z, y, **options) == pytest.approx(exact, rel=16 * eps, abs=1e-37)
    with warnings.catch_warnings():  # ends of the range
        warnings.simplefilter("ignore", RuntimeWarning)
        got = calibration.fit_temperature(z, y, **options)
    exact = reference.calibration.fit_temperature(z, y, **options)
    # The derivative's terms are right to 4 ULP of probabilities; its root is off by that over the slope.
    used, weight = y >= 0, options.get("sample_weight", np.ones(len(y)))[y >= 0]
    x = np.where(np.isinf(z), 0, z)[used].astype(np.float64)
    p = special.softmax(z[used].astype(np.float64) / exact, axis=1)
    mean = (p * x).sum(axis=1, keepdims=True)
    terms = (weight * (p * np.abs(x - x[np.arange(len(x)), y[used]][:, None])).sum(axis=1)).sum()
    slope = (weight * (p * (x - mean) ** 2).sum(axis=1)).sum()
    if 1e-4 < exact < 2e4:  # at the ends of the range, and beyond, there is no root
        assert got == pytest.approx(exact, rel=1e-7 + 8 * eps * terms / max(slope, 1e-300) * exact)
    p = reference.softmax(z, axis=1).max(axis=1).astype(np.float64)
    hypothesis.assume(np.abs(p * n_bins - np.round(p * n_bins)).min() > 1e-5)  # none may change its bin
    twin = reference.calibration.calibration_error(z, y, n_bins=n_bins, norm=norm, **options)
    error = calibration.calibration_error(z, y, n_bins=n_bins, norm=norm, **options)
    assert error == pytest.approx(twin, abs=8 * eps)
