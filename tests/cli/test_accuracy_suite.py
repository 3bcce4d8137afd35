"""The accuracy suite of the command line finds what is wrong, where it is, and nothing else."""

from types import SimpleNamespace

import numpy as np
import pytest

import fastce
from fastce import _kernels
from fastce.cli import bounds, main
from fastce.cli.accuracy import truth
from fastce.cli.common import UserError
from fastce.cli.rivals import Batch

pytestmark = pytest.mark.once

KIND = "normal × 3"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of a few rows, checked anew by each test, and the number of threads put back."""
    monkeypatch.setattr(bounds, "CLASS_COUNTS", (2, 33, 100))
    monkeypatch.setattr(bounds, "ELEMENTS", 700)
    before = fastce.get_num_threads()
    bounds.check.cache_clear()
    yield
    bounds.check.cache_clear()
    fastce.set_num_threads(before)


@pytest.fixture
def exact():
    x, y = bounds.KINDS[KIND](np.random.default_rng(0), (9, 5))
    x[4, (y[4] + 1) % 5] = -np.inf
    return truth(Batch(x.astype(np.float32), y, reduction="none"))


def rounded(exact):
    return exact.losses.astype(np.float32), exact.gradient.astype(np.float32)


def up(value, n):
    """The n-th float32 above the magnitude of `value`."""
    return np.copysign((np.abs(value).view(np.int32) + np.int32(n)).view(np.float32), value)


@pytest.mark.parametrize("kind", bounds.KINDS)
def test_kind(kind):
    x, y = bounds.KINDS[kind](np.random.default_rng(0), (50, 7))
    assert x.shape == (50, 7)
    assert y.shape == (50,)
    assert np.isfinite(x[np.arange(50), y]).all()
    assert not (np.isnan(x) | np.isposinf(x)).any()


def test_rounding_alone_is_half_an_ulp(exact):
    errors = exact.errors_of(*rounded(exact))
    assert 0 < max(errors[:3]) <= 0.5


@pytest.mark.parametrize("wrong", ["loss", "off_target", "target"])
def test_error_stands_where_it_is(exact, wrong):
    losses, gradient = rounded(exact)
    column = {"off_target": (exact.batch.labels[2] + 1) % 5, "target": exact.batch.labels[2]}
    array, at = (losses, 2) if wrong == "loss" else (gradient, (2, column[wrong]))
    array[at] = up(array[at], 6)
    errors = exact.errors_of(losses, gradient)
    assert 5.5 <= getattr(errors, wrong) <= 6.5
    assert sorted(errors[:3])[1] <= 0.5
    assert errors.gradient == max(errors.off_target, errors.target)


def test_nan_counts_even_in_place_of_zero(exact):
    losses, gradient = rounded(exact)
    gradient[4, (exact.batch.labels[4] + 1) % 5] = np.nan
    assert exact.errors_of(losses, gradient).off_target == np.inf


def test_every_level_in_order():
    findings = bounds.find("float64", KIND, n_threads=1)
    assert [finding.level for finding in findings] == list(_kernels.runnable())
    for finding in findings:
        assert list(finding.worst) == list(bounds.BOUNDS["float64"])
        assert finding.n_rows == 2 * (350 + 21 + 7)  # in two layouts
        assert finding.met


def test_level_is_put_back():
    before = _kernels.kernels
    for name in _kernels.runnable():
        with bounds.at_level(name):
            assert _kernels.kernels is _kernels.load(name)
        assert _kernels.kernels is before
        with pytest.raises(IndexError), bounds.at_level(name):
            fastce.cross_entropy([[1.0, 2.0]], [2])
        assert _kernels.kernels is before


@pytest.mark.parametrize("fault", ["other loss alone", "one element not written"])
def test_faulty_kernels_do_not_pass(monkeypatch, fault):
    """One level that is wrong with 33 classes, class axis first."""
    right, faulty = _kernels.kernels, _kernels.runnable()[-1]

    def is_wrong(x):
        return x.shape[1] == 33 and not x.flags.c_contiguous

    def cross_entropy(order, logits, *args):
        before = args[-1].copy() if order else None
        result = right.cross_entropy(order, logits, *args)
        if order == 0 and fault == "other loss alone" and is_wrong(logits):
            result[3] = np.nextafter(result[3], np.inf)
        if order == 1 and fault == "one element not written" and is_wrong(args[-1]):
            args[-1][3, 3] = before[3, 3]
        return result

    wrong, load = SimpleNamespace(cross_entropy=cross_entropy), _kernels.load
    monkeypatch.setattr(_kernels, "load", lambda name: wrong if name == faulty else load(name))
    *others, finding = bounds.find("float64", KIND, n_threads=1)
    assert all(other.met for other in others)
    assert not finding.met
    if fault == "other loss alone":
        assert finding.n_different == 1
        assert finding.share <= 1
    else:
        assert finding.n_different == 0
        assert finding.worst[finding.closest] == (np.inf, 33, "first")


def test_over_a_bound_looks_like_it():
    assert bounds._text(2.0) == "2.00"
    assert bounds._text(2.0001) == "2.01"


@pytest.mark.skipif(
    np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant, reason="needs a wide long double"
)
def test_command(capsys):
    assert main(["bench", "--suite", "accuracy", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 120
    n_levels = len(_kernels.runnable())
    for kind in (*bounds.KINDS, "worst of all"):
        assert sum(line.strip().startswith(kind) for line in lines) == 2
    assert f"of {2 * len(bounds.KINDS) * n_levels} lines" in printed
    assert "largest share of a bound: float" in printed
    assert "checking" not in printed


def test_command_without_wide_long_double(monkeypatch, capsys):
    monkeypatch.setattr(bounds, "require_wide_reference", _refuse)
    assert main(["bench", "--suite", "accuracy"]) == 2
    assert "fastce bench: no long double" in capsys.readouterr().err


def _refuse():
    raise UserError("no long double")
