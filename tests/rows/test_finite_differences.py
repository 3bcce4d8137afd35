"""Derivatives against differences of the loss, or of the gradient: no formula of theirs takes part."""

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


# --- options, other losses, Hessians --------------------------------------------------------------

# Of the largest element. The losses below are smaller than 8 and their gradients above 0.05, so that the
# differences' rounding error (as above, 2**-50 * 4 * 2.1 * 2**5 = 2.4e-13) is 5e-12 of it; the truncation is
# as much again.
RELATIVE = 2e-11
OPTIONS = {
    "weight": {"weight": [0.5, 1, 2, 0, 1.5]},
    "smoothing": {"label_smoothing": 0.3},
    "smoothing, weight": {"label_smoothing": 0.3, "weight": [0.5, 1, 2, 0, 1.5]},
    "all smooth": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 0.1},
    "temperature": {"temperature": 1.7},
    "softcap": {"softcap": 6.0},
    "all": {
        "label_smoothing": 0.2,
        "z_loss": 0.05,
        "temperature": 1.4,
        "softcap": 7.0,
        "weight": [0.5, 1, 2, 0.25, 1.5],
        "sample_weight": [0.5, 2.0, 1.0],
    },
}


def target_of(kind, rng, shape=(3, 5)):
    if kind == "labels":
        return rng.integers(0, shape[1], shape[0])
    q = rng.random(shape)
    return q / q.sum(axis=1, keepdims=True) if kind == "probabilities" else q


def assert_close(derivative, numeric, bound=RELATIVE):
    assert np.abs(derivative - numeric).max() <= bound * np.abs(derivative).max()


def own_differences(gradient, x):
    """The derivative of each element of a gradient by its own place."""
    hess = np.zeros(x.shape)
    for position in np.ndindex(x.shape):
        for k, coefficient in STENCIL.items():
            for sign in (1, -1):
                shifted = x.copy()
                shifted[position] += sign * k * STEP
                hess[position] += sign * coefficient * gradient(shifted)[position] / STEP
    return hess


@pytest.mark.parametrize("kind", ["labels", "probabilities", "other sums"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, reduction, kind, rng):
    x, target = rng.normal(size=(3, 5)), target_of(kind, rng)
    options = {**OPTIONS[options], "reduction": reduction}
    if kind == "labels":
        target[0] = 0  # so that the weights are not all 0
    _, grad, hess = fastce.cross_entropy_and_hess(x, target, **options)
    assert_close(grad, differences(lambda z: fastce.cross_entropy(z, target, **options), x))
    assert_close(grad, fastce.cross_entropy_and_grad(x, target, **options)[1], 1e-14)
    numeric = own_differences(lambda z: fastce.cross_entropy_and_grad(z, target, **options)[1], x)
    assert_close(hess, numeric)


@pytest.mark.parametrize("options", ["weight", "smoothing", "temperature", "softcap", "z_loss"])
def test_hessian_of_long_rows(options, rng):
    """Where a row is swept in chunks, a few elements of it."""
    n_classes = 9000
    x, y = rng.normal(size=(1, n_classes)), np.array([4321])
    x[0, [7, 4321, 8999]] += 9
    options = dict(OPTIONS[options])
    if "weight" in options:
        options["weight"] = np.resize(options["weight"], n_classes)
        options["weight"][4321] = 1
    options["reduction"] = "sum"
    _, grad, hess = fastce.cross_entropy_and_hess(x, y, **options)
    for j in (7, 4321, 8999):
        numeric = [0.0, 0.0]
        for k, coefficient in STENCIL.items():
            for sign in (1, -1):
                shifted = x.copy()
                shifted[0, j] += sign * k * STEP
                loss, by_logits = fastce.cross_entropy_and_grad(shifted, y, **options)
                numeric[0] += sign * coefficient * loss / STEP
                numeric[1] += sign * coefficient * by_logits[0, j] / STEP
        assert grad[0, j] == pytest.approx(numeric[0], rel=1e-10)
        assert hess[0, j] == pytest.approx(numeric[1], rel=1e-10)


@pytest.mark.parametrize("gamma", [0, 1, 1.5, 2, 5])
def test_focal(gamma, rng):
    x, y = rng.normal(size=(3, 5)), rng.integers(0, 5, 3)
    options = {"gamma": gamma, "weight": rng.uniform(0.5, 1, 5), "sample_weight": rng.uniform(0.5, 1, 3)}
    grad = fastce.focal_loss_and_grad(x, y, **options)[1]
    # A power of 1 - p_y has larger derivatives than cross-entropy.
    assert_close(grad, differences(lambda z: fastce.focal_loss(z, y, **options), x), 1e-10)


@pytest.mark.parametrize(
    ("margins", "target_cosine"),
    [
        ((1, 0.5, 0), 0.2),
        ((1, 0.5, 0), -0.3),
        ((1, 0, 0.35), 0.4),
        ((4, 0, 0), 0.35),  # in the second half turn of 4 theta
        ((4, 0, 0), -0.3),  # in the third
        ((1.5, 0.25, 0.125), 0.1),
        ((3, 0.5, 0.1), 0.0),
        ((1, 2.5, 0), -0.4),  # beyond pi: the straight line
    ],
    ids=str,
)
def test_margins(margins, target_cosine, rng):
    """Away from the ends of half turns, where the second derivative jumps, and from ±1."""
    x = rng.uniform(-0.3, 0.3, (2, 4))
    y = np.array([1, 3])
    x[[0, 1], y] = target_cosine
    options = dict(zip(("margin1", "margin2", "margin3"), margins, strict=True), scale=3.0, reduction="sum")
    grad = fastce.margin_cross_entropy_and_grad(x, y, **options)[1]
    numeric, step = np.zeros(x.shape), 2.0**-7
    for position in np.ndindex(x.shape):
        for k, coefficient in STENCIL.items():
            for sign in (1, -1):
                shifted = x.copy()
                shifted[position] += sign * k * step
                loss = fastce.margin_cross_entropy(shifted, y, **options)
                numeric[position] += sign * coefficient * loss / step
    # Losses below 32 and steps of 2**-7: 2**-48 * 2 * 2.1 * 2**7 = 2e-12.
    assert_close(grad, numeric, 2e-11)
