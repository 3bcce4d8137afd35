"""fastce.log_loss is scikit-learn's: its tests, messages and warnings, its numbers and a few more digits."""

import importlib
import inspect
import subprocess
import sys
import warnings

import mpmath
import numpy as np
import pytest
import sklearn
from sklearn import metrics

import fastce

pytestmark = pytest.mark.once  # NumPy and scikit-learn, no kernels

context = mpmath.mp.clone()
context.prec = 200
theirs = importlib.import_module("sklearn.metrics.tests.test_classification")
COLLECTED = {
    f"test_of_scikit_learn_{name.removeprefix('test_')}": test
    for name, test in vars(theirs).items()
    if name.startswith("test_") and inspect.isfunction(test) and "log_loss" in test.__code__.co_names
}
# Before 1.5 scikit-learn renormalises rows, warns of eps and has other messages.
OLD = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 5)
if OLD:
    COLLECTED.clear()
globals().update(COLLECTED)  # pytest finds them here, with their parameters


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """scikit-learn's tests call fastce."""
    monkeypatch.setattr(theirs, "log_loss", fastce.log_loss)


@pytest.mark.skipif(OLD, reason="behaves as scikit-learn 1.5 and later: pip install -U scikit-learn")
def test_scikit_learn_has_tests():
    assert "test_of_scikit_learn_log_loss" in COLLECTED
    assert len(COLLECTED) >= 5


def both(*args, **options):
    """What each of the two returns or raises, with the warnings that it gives."""
    results = []
    for function in (fastce.log_loss, metrics.log_loss):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = function(*args, **options)
            except Exception as error:
                result = (type(error), str(error))
        results.append((result, [(w.category, str(w.message)) for w in caught]))
    return results


STRINGS = ["spam", "ham", "eggs", "ham", "spam"]
THREE = np.array([[0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.25, 0.25, 0.5], [0, 0, 1]])
TWO = [0.1, 0.8, 0.25, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": False},
        {"sample_weight": [1, 0, 2.5, 3, 0.25]},
        {"normalize": False, "sample_weight": [1, 0, 2.5, 3, 0.25]},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("y_true", "y_proba", "labels"),
    [
        (STRINGS, THREE, None),
        ([7, 3, 3, 7, 7], TWO, None),
        ([7, 3, 3, 7, 7], [[p] for p in TWO], None),
        ([7, 3, 3, 7, 7], [[1 - p, p] for p in TWO], None),
        ([True, False, True, True, False], TWO, None),
        (np.array(["yes", "no", "no", "no", "yes"], object), TWO, None),
        (["b"] * 5, THREE, ["a", "b", "c"]),
        (["b"] * 5, TWO, ["a", "b"]),
        ([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1]], THREE, None),
    ],
    ids=["strings", "1-D", "column", "2-D", "bools", "objects", "labels", "two labels", "indicators"],
)
def test_same_values(y_true, y_proba, labels, options, dtype):
    y_proba = np.array(y_proba, dtype)
    (got, caught), (expected, expected_warnings) = both(y_true, y_proba, labels=labels, **options)
    assert type(got) is float
    # scikit-learn adds up five rows in the dtype of the probabilities, and rounds 1 - p to it.
    assert got == pytest.approx(expected, rel=20 * float(np.finfo(dtype).eps), abs=0)
    assert caught == expected_warnings


@pytest.mark.skipif(OLD, reason="behaves as scikit-learn 1.5 and later: pip install -U scikit-learn")
@pytest.mark.parametrize(
    ("y_true", "y_proba", "options"),
    [
        (STRINGS, THREE[:4], {}),
        (STRINGS, THREE[:, :2], {}),
        (STRINGS, THREE * 2, {}),
        (STRINGS, THREE * 0.5, {}),
        (STRINGS, -THREE, {}),
        (STRINGS, THREE * np.nan, {}),
        (STRINGS, THREE + 0j, {}),
        (STRINGS, [*THREE.astype(str).tolist(), ["x"]], {}),
        (STRINGS, None, {}),
        (STRINGS, 0.5, {}),
        (STRINGS, THREE[None], {}),
        (STRINGS, "spam", {}),
        (None, THREE, {}),
        (["ham"] * 5, THREE, {}),
        (STRINGS, THREE, {"labels": ["spam", "ham", "eggs"]}),
        (STRINGS, THREE, {"labels": ["ham", "spam"]}),
        (STRINGS, THREE, {"labels": ["ham"]}),
        (STRINGS, THREE, {"labels": ["ham", "eggs", "spam", "egg"]}),
        (STRINGS, THREE, {"labels": "ham"}),
        (STRINGS, THREE, {"sample_weight": [1, 2]}),
        (STRINGS, THREE, {"sample_weight": 3}),
        (STRINGS, THREE, {"sample_weight": [0] * 5}),
        (STRINGS, THREE, {"normalize": "yes"}),
        ([0.5, 1.5, 2.5, 0.5, 1.5], THREE, {}),
    ],
)
def test_same_errors_and_warnings(y_true, y_proba, options):
    (got, caught), (expected, expected_warnings) = both(y_true, y_proba, **options)
    assert isinstance(expected, tuple) or expected_warnings, "neither an error nor a warning"
    assert caught == expected_warnings
    assert got == (expected if isinstance(expected, tuple) else pytest.approx(expected, rel=1e-14, abs=0))


@pytest.mark.parametrize(
    ("y_true", "y_proba", "options"),
    [
        (STRINGS, THREE, {}),
        ([7, 3, 3, 7, 7], TWO, {}),
        ([2] * 5, [[p] for p in TWO], {"labels": [1, 2]}),
        (STRINGS, THREE, {"sample_weight": [1, 0, 2, 3, 4], "normalize": False}),
        ([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1]], THREE, {}),
        (STRINGS, THREE[:, :2], {}),
        (STRINGS, THREE * 0.5, {}),
    ],
)
def test_without_private_validators(y_true, y_proba, options, monkeypatch):
    """As with a scikit-learn before 1.7: the same results, errors and warnings."""
    expected = both(y_true, y_proba, **options)[0]
    monkeypatch.setattr("fastce.metrics._private_validators", lambda: None)
    assert both(y_true, y_proba, **options)[0] == expected


def test_without_scikit_learn(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        fastce.log_loss([0, 1], [0.2, 0.7])


def test_scikit_learn_is_imported_late():
    code = "import sys, fastce; assert not any(name.startswith('sklearn') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def exact(p, labels):
    p = [context.mpf(float(value)) for value in np.ravel(p)]
    return [-context.log(value if label else 1 - value) for value, label in zip(p, labels, strict=True)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_digits_of_a_single_column(dtype):
    """-log(1 - p) has no digits left if 1 - p is rounded first."""
    p = np.array([1.2 * np.finfo(dtype).eps, 1e-3, 0.5, 0.99, 1e-3], dtype)
    labels = [0, 0, 0, 1, 1]
    for label, loss, value in zip(labels, exact(p, labels), p, strict=True):
        y_true = [0, 1] if label == 0 else [1, 0]
        weight = [1, 0]  # the other row is there for its label
        got = fastce.log_loss(y_true, np.array([value, 0.5], dtype), sample_weight=weight)
        assert abs(got / float(loss) - 1) <= 4 * np.finfo(float).eps
    if dtype == np.float32:
        got = metrics.log_loss([0, 1], np.array([p[0], 0.5], dtype), sample_weight=[1, 0])
        assert abs(got / float(exact(p[:1], [0])[0]) - 1) > 1e-2


def test_sums_of_many_float32_rows(rng):
    """scikit-learn adds them up in float32."""
    p = rng.random(100_000, dtype=np.float32) * np.float32(0.5) + np.float32(0.25)
    labels = rng.integers(0, 2, p.size)
    expected = context.fsum(exact(p, labels))
    assert abs(float(fastce.log_loss(labels, p, normalize=False) / expected - 1)) <= 4e-16
    assert abs(float(fastce.log_loss(labels, p) * p.size / expected - 1)) <= 4e-16


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_clipping(dtype):
    eps = float(np.finfo(dtype).eps)
    for p in (np.array([1, 0], dtype), np.array([[0, 1], [1, 0]], dtype)):
        assert fastce.log_loss([0, 1], p) == pytest.approx(-np.log(eps), rel=1e-15, abs=0)
        assert fastce.log_loss([1, 0], p) == pytest.approx(-np.log1p(-eps), rel=1e-15, abs=0)
        assert fastce.log_loss([0, 1], p, eps=0.25) == pytest.approx(-np.log(0.25), rel=1e-15, abs=0)
        assert fastce.log_loss([0, 1], p, eps=0) == np.inf
        assert fastce.log_loss([1, 0], p, eps=0) == 0


@pytest.mark.parametrize("eps", [-1e-9, 0.6, 2, np.nan, np.inf])
def test_eps_out_of_range(eps):
    with pytest.raises(ValueError, match=f"eps is {eps}; expected 'auto' or a number"):
        fastce.log_loss([0, 1], [0.2, 0.7], eps=eps)


@pytest.mark.parametrize("eps", ["0.1", "none", None, [0.1], 0.1j, b"auto"])
def test_eps_of_another_type(eps):
    with pytest.raises(TypeError, match=r"eps is .*expected 'auto' or a number"):
        fastce.log_loss([0, 1], [0.2, 0.7], eps=eps)


def test_y_pred_as_the_installed_version_has_it():
    got, expected = both([0, 1], y_pred=[0.2, 0.7])
    assert got[1] == expected[1]
    assert got[0] == (expected[0] if isinstance(expected[0], tuple) else pytest.approx(expected[0]))
    got, expected = both([0, 1], [0.2, 0.7], y_pred=[0.2, 0.7])
    assert isinstance(expected[0], tuple)
    assert got == expected


@pytest.mark.parametrize("patched", ["sklearn.metrics.log_loss", "sklearn.metrics._classification.log_loss"])
@pytest.mark.parametrize("private", [True, False])
def test_in_the_place_of_scikit_learns(patched, private, monkeypatch):
    """Whose checks it needs, and which it still finds."""
    if not private:
        monkeypatch.setattr("fastce.metrics._private_validators", lambda: None)
    calls = [lambda: both([0, 1], [0.2, 0.7])[0], lambda: both([0, 1], y_pred=[0.2, 0.7])[0]]
    expected = [call() for call in calls]
    monkeypatch.setattr(patched, fastce.log_loss)
    assert [call() for call in calls] == expected
