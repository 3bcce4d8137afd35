"""Many classes far apart in memory: tiles held as a whole, or in bands, whose sums move with the maximum."""

import numpy as np
import pytest
from bounds import SOFTMAX_ULP, log_sum_scale
from conftest import DTYPES, LOSS_ULP, assert_ulp, bits, compute_dtype

import fastce
from fastce import reference

SOFTMAXES = (fastce.softmax, fastce.log_softmax, fastce.logsumexp)


def columns(dtype, n_classes):
    """Columns whose maximum rises slowly, at once or late, within and beyond where sums can move with it."""
    rng = np.random.default_rng(n_classes)
    noise, rise = rng.normal(size=n_classes), np.linspace(0, 1, n_classes)
    late = np.where(np.arange(n_classes) == n_classes - 2, 1.0, -1.0)
    masked = np.where(rise < 0.7, -np.inf, 0.0)
    wide = 295 if np.dtype(dtype).itemsize > 2 else 100
    x = [
        noise,
        40 * rise,
        -40 * rise,
        wide * late,
        60 * late,
        masked + noise,
        masked - wide * 0.9,
        8 * noise + 90,
    ]
    x += [wide * (2 * rise - 1), 1000 * late, 4000 + 10 * rise, -4000 - 10 * late, 1500 * rise, masked + 2000]
    x += [np.full(n_classes, -3.3), np.full(n_classes, -np.inf), np.where(late > 0, 5.0, -np.inf)]
    return np.stack(x, axis=1).astype(dtype)


@pytest.mark.parametrize("n_classes", [113, 225, 1000, 1300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moving_maxima(level, dtype, n_classes):
    x = np.tile(columns(dtype, n_classes), 40)  # whole bands, and a rest
    row = compute_dtype(dtype)
    y = np.random.default_rng(1).integers(0, n_classes, x.shape[1])
    y[1::17], y[3::17] = n_classes - 1, n_classes - 2
    for function in SOFTMAXES:
        got, exact = function(x, axis=0), getattr(reference, function.__name__)(x[:, :17], axis=0)
        scale = log_sum_scale(x[:, :17].T, exact) if function is fastce.logsumexp else None
        assert_ulp(got[..., :17], exact, SOFTMAX_ULP[dtype], scale)
    loss = fastce.cross_entropy(x, y, axis=0, reduction="none")
    exact = reference.cross_entropy(x[:, :17], y[:17], axis=0, reduction="none")
    assert_ulp(loss[:17], exact, LOSS_ULP[row])


@pytest.mark.parametrize("n_rows", [17, 511, 680])
@pytest.mark.parametrize("n_classes", [300, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neighbours(level, dtype, n_classes, n_rows):
    """A row's bits are its own: alone, among others that are read twice, and whichever thread has it."""
    kinds = columns(dtype, n_classes)
    of = np.random.default_rng(2).integers(0, kinds.shape[1], n_rows)
    x, y = np.ascontiguousarray(kinds[:, of]), np.arange(17)[of] * 17
    for function in SOFTMAXES:
        whole = function(x, axis=0)
        assert bits(whole) == bits(function(x, axis=0, n_threads=3))
        assert bits(whole) == bits(function(kinds, axis=0)[..., of])
    given = {"axis": 0, "reduction": "none"}
    loss, grad = fastce.cross_entropy_and_grad(x, y, **given)
    assert bits(fastce.cross_entropy(x, y, n_threads=2, **given)) == bits(loss)
    own_loss, own_grad = fastce.cross_entropy_and_grad(kinds, np.arange(17) * 17, **given)
    assert bits(own_loss[of]) == bits(loss)
    assert bits(own_grad[:, of]) == bits(grad)
    in_place = x.copy()
    fastce.cross_entropy_and_grad(in_place, y, out=in_place, **given)
    assert bits(in_place) == bits(grad)
