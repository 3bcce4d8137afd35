"""The gradient against differences of the loss: no formula of the gradient takes part."""

import numpy as np
import pytest

import fastce

# Central differences of order 8 (the coefficients of f(x + k h) - f(x - k h)).
STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
STEP = 2.0**-5
# Losses here are below 16, so they carry 4 ULP of 2**-49 at most; the stencil's coefficients sum to
# 2.1 (both sides), divided by the step: 2**-49 * 4 * 2.1 * 2**5 = 5e-13. The truncation is h**8 /
# 630 times the ninth derivative of logsumexp, which is below 1000 for softmax arguments: 2**-40 *
# 1000 / 630 = 1.4e-12.
TOLERANCE = 2e-12


def differences(function, x):
    """Gradient of a scalar function of an array, element by element."""
    grad = np.zeros(x.shape)
    for position in np.ndindex(x.shape):
        for k, coefficient in STENCIL.items():
            for sign in (1, -1):
                shifted = x.copy()
                shifted[position] += sign * k * STEP
                grad[position] += sign * coefficient * function(shifted) / STEP
    return grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 4), 1), ((3, 17), 1), ((2, 6, 3), 1), ((7,), 0)])
def test_gradient(shape, axis, reduction, rng):
    x = rng.normal(size=shape) * 1.5
    rows = np.delete(shape, axis)
    y = rng.integers(0, shape[axis], rows)
    options = {"axis": axis, "reduction": reduction, "sample_weight": rng.uniform(0.5, 1, rows)}
    grad = fastce.cross_entropy_and_grad(x, y, **options)[1]
    numeric = differences(lambda z: fastce.cross_entropy(z, y, **options), x)
    assert np.abs(grad - numeric).max() < TOLERANCE * max(1, y.size)


def test_gradient_with_normalizer_and_ignored_rows(rng):
    x = rng.normal(size=(4, 5))
    y = np.array([0, 3, 4, 4])
    options = {"ignore_index": 3, "normalizer": 2.5}
    numeric = differences(lambda z: fastce.cross_entropy(z, y, **options), x)
    grad = fastce.cross_entropy_and_grad(x, y, **options)[1]
    assert np.abs(grad - numeric).max() < 4 * TOLERANCE
    assert not grad[1].any()


def test_confident_target(rng):
    """Loss and gradient of a row that is sure are tiny, and still right relative to their size."""
    x = rng.normal(size=(1, 6))
    x[0, 2] = 30
    numeric = differences(lambda z: fastce.cross_entropy(z, [2]), x)
    grad = fastce.cross_entropy_and_grad(x, [2])[1]
    # The same bound as above, but relative to the loss: log1p(r) is as smooth as r itself.
    assert np.abs(grad - numeric).max() < TOLERANCE * fastce.cross_entropy(x, [2])


def test_none_is_the_gradient_of_the_sum(rng):
    x, y = rng.normal(size=(6, 9)), rng.integers(0, 9, 6)
    by_row = fastce.cross_entropy_and_grad(x, y, reduction="none")[1]
    assert np.array_equal(by_row, fastce.cross_entropy_and_grad(x, y, reduction="sum")[1])
