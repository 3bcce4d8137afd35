"""Gradients and Hessians for boosted trees against the twin: layouts, dtypes, options, what is refused."""

import numpy as np
import pytest
from conftest import assert_ulp

import fastce._kernels
from fastce.reference import boosting as reference

INFINITE = -np.inf  # no floor

# A gradient off the maximum is a product of an exp (0.9 ULP) with a quotient and a weight, half an ULP each,
# and their roundings; a Hessian a product of two such, as in bounds.py. The pairs of a focal loss come in
# float64.
GRAD_ULP, HESS_ULP = 4, 8

# Around a tile's 128 rows, and more classes than a tile takes with as many.
CASES = [(1, 2), (127, 3), (129, 10), (60, 33), (17, 140)]
OPTIONS = [
    *[("multiple", 2.0, 0.0), ("multiple", 1.0, 2.0), ("magnitude", 1.0, 0.0)],
    *[("whole", 1.0, 0.0), ("whole", 1.0, 2.0), ("whole", 1.0, 0.5), ("multiple", 1.5, 0.7)],
]


def assert_close(actual, exact, bound, scale=None, label=""):
    """Within the bound above the subnormal range, where it is promised; below, products round again."""
    scale = np.abs(exact) if scale is None else scale
    assert_ulp(actual, exact, bound, np.maximum(scale, float(np.finfo(actual.dtype).smallest_normal)), label)


def matrix(shape, dtype, layout):
    """An array to be filled, in some memory layout."""
    if layout == "strided":
        return np.empty((shape[0], 2 * shape[1] + 1), dtype)[:, 1 : 2 * shape[1] + 1 : 2]
    return np.empty(shape, dtype, order=layout)


def softmax_derivatives(
    x,
    y,
    weight=None,
    class_weight=None,
    way=("multiple", 1.0),
    least=INFINITE,
    gamma=0.0,
    smoothing=0.0,
    layout="C",
    n_threads=None,
):
    grad, hess = matrix(x.shape, np.float32, layout), matrix(x.shape, np.float32, layout)
    arguments = (x, y, weight, class_weight, *way, least, gamma, smoothing)
    fastce._kernels.boosting.softmax_derivatives(*arguments, grad, hess, n_threads)
    return grad, hess


def batch(rng, shape, dtype, layout, scale=3.0):
    x = matrix(shape, dtype, layout)
    x[...] = rng.normal(size=shape) * scale
    labels = rng.integers(shape[1], size=shape[0])
    x[np.arange(0, shape[0], 3), labels[::3]] += 30  # sure rows, where p - 1 loses all digits
    return x, labels


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("curvature", "factor", "gamma"), OPTIONS)
def test_labels(level, rng, dtype, layout, curvature, factor, gamma):
    for shape in CASES:
        x, labels = batch(rng, shape, dtype, layout)
        weight, class_weight = rng.random(shape[0]).astype(np.float32), rng.random(shape[1])
        options = (curvature, factor, INFINITE, gamma, 0.0)
        exact = reference.softmax_derivatives(x, labels, weight, class_weight, *options)
        grad, hess = softmax_derivatives(
            x, labels.astype(np.float32), weight, class_weight, options[:2], gamma=gamma, layout=layout
        )
        focal = 2 * gamma  # as api.md has it for focal losses
        assert_close(grad, exact[0], GRAD_ULP + focal, label=shape)
        gauss_newton = reference.softmax_derivatives(
            x, labels, weight, class_weight, "multiple", *options[1:]
        )
        scale = np.maximum(np.abs(exact[1]), np.abs(gauss_newton[1] - exact[1]))  # a difference of two terms
        assert_close(
            hess, exact[1], HESS_ULP + 2 * focal, scale=scale if curvature == "whole" else None, label=shape
        )


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("curvature", "factor", "gamma"), OPTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_and_smoothed_labels(level, rng, dtype, layout, curvature, factor, gamma, smoothing):
    for shape in CASES[:-1]:
        x, labels = batch(rng, shape, dtype, layout)
        soft = np.asarray(rng.dirichlet(np.ones(shape[1]), shape[0]), dtype, order=layout)
        weight, class_weight = rng.random(shape[0]), rng.random(shape[1])
        for target in (soft, labels.astype(np.int16)):
            options = (curvature, factor, INFINITE, gamma, smoothing)
            exact = reference.softmax_derivatives(x, target, weight, class_weight, *options)
            grad, hess = softmax_derivatives(
                x, target, weight, class_weight, options[:2], gamma=gamma, smoothing=smoothing, layout=layout
            )
            # A difference of terms of which each is right: half as large again, of their sizes.
            p, p_not, u, _ = reference.terms(x, target, weight, class_weight, gamma, smoothing)
            size = p * u.sum(axis=1, keepdims=True) + u * p_not
            assert_close(grad, exact[0], 1.5 * (GRAD_ULP + 2 * gamma), scale=size, label=shape)
            gauss_newton = reference.softmax_derivatives(
                x, target, weight, class_weight, "multiple", *options[1:]
            )
            size = np.abs(gauss_newton[1] - exact[1]) + np.abs(gauss_newton[1])
            size = size.sum(axis=1, keepdims=True) + size
            assert_close(hess, exact[1], 1.5 * HESS_ULP + 4 * gamma, scale=size, label=shape)


@pytest.mark.parametrize("out", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("curvature", "factor", "gamma"), OPTIONS)
def test_logistic(level, rng, dtype, out, curvature, factor, gamma):
    for n in (1, 5, 1023, 3000):
        x = (rng.normal(size=n) * 12).astype(dtype)
        weight = rng.random(n)
        for target, smoothing in ((rng.integers(2, size=n), 0.0), (rng.random(n), 0.1)):
            options = (curvature, factor, INFINITE, gamma, smoothing)
            exact = reference.logistic_derivatives(x, target, weight, 2.5, -1.0, *options)
            ders = np.empty((n, 2), out)
            fastce._kernels.boosting.logistic_derivatives(
                x, target, weight, 2.5, -1.0, *options, ders[:, 0], ders[:, 1]
            )
            # Computed in float64: 8 and 16 ULP of it and half a one of float32.
            hard = target.dtype.kind == "i"
            least = 0.5 if out == np.float32 else 0
            bound = least + (0.01 if least else 8 + 4 * gamma)
            size = None if hard else np.abs(exact[0]) + 3.5 * weight
            assert_close(ders[:, 0], exact[0], bound, scale=size)
            size = np.abs(exact[1]) + np.abs(
                exact[1]
                - reference.logistic_derivatives(
                    x, target, weight, 2.5, -1.0, "multiple", factor, INFINITE, gamma, smoothing
                )[1]
            )
            size = size if hard else size + 3.5 * weight
            assert_close(
                ders[:, 1], exact[1], 2 * bound, scale=size if curvature == "whole" or not hard else None
            )


def test_logistic_is_a_softmax_of_two(level, rng):
    x, y = rng.normal(size=100), rng.random(100)
    rows, q = np.stack([0 * x, x], axis=1), np.stack([1 - y, y], axis=1)
    _, pair = softmax_derivatives(rows, q, way=("whole", 1.0), gamma=1.5)
    ders = np.empty((100, 2), np.float32)
    fastce._kernels.boosting.logistic_derivatives(
        x, y, None, 1.0, 1.0, "whole", 1.0, INFINITE, 1.5, 0.0, *ders.T
    )
    np.testing.assert_allclose(ders[:, 1], pair[:, 1], rtol=1e-4, atol=1e-7)


def test_the_twin_is_the_derivative_of_the_loss():
    """By differences of the loss, in wide precision, of soft, smoothed and weighted focal rows."""
    rng = np.random.default_rng(3)
    x, q = rng.normal(size=(4, 5)).astype(np.longdouble), rng.dirichlet(np.ones(5), 4)
    weight, class_weight, gamma, smoothing, step = rng.random(4), rng.random(5), 1.7, 0.1, np.longdouble(1e-5)

    def loss(x):
        p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        u = weight[:, None] * class_weight * ((1 - smoothing) * q + smoothing / 5)
        return (u * (1 - p) ** gamma * -np.log(p)).sum()

    grad, hess = reference.softmax_derivatives(
        x, q, weight, class_weight, "whole", 1.0, INFINITE, gamma, smoothing
    )
    for i in range(4):
        for j in range(5):
            d = np.zeros_like(x)
            d[i, j] = step
            assert abs((loss(x + d) - loss(x - d)) / (2 * step) - grad[i, j]) < 1e-9
            assert abs((loss(x + d) - 2 * loss(x) + loss(x - d)) / step**2 - hess[i, j]) < 1e-6


@pytest.mark.parametrize("shape", [(5000, 10), (300, 200)])
def test_threads_and_rows_change_no_bit(level, rng, shape):
    x, labels = batch(rng, shape, np.float32, "C")
    whole = softmax_derivatives(x, labels, gamma=2.0, n_threads=1)
    for n_threads in (2, 3, 7):
        for a, b in zip(whole, softmax_derivatives(x, labels, gamma=2.0, n_threads=n_threads), strict=True):
            assert a.tobytes() == b.tobytes()
    parts = [softmax_derivatives(x[k : k + 77], labels[k : k + 77], gamma=2.0) for k in range(0, len(x), 77)]
    for a, b in zip(whole, zip(*parts, strict=True), strict=True):
        assert a.tobytes() == np.concatenate(b).tobytes()
    columns = softmax_derivatives(np.asfortranarray(x), labels, gamma=2.0, layout="F")
    for a, b in zip(whole, columns, strict=True):
        assert (a == b).all()


def test_floor_and_what_is_not_finite(level):
    x = np.array([[200, 0, 0], [np.nan, 0, 0], [-np.inf, 0, 0], [np.inf, 0, 0]], np.float32)
    grad, hess = softmax_derivatives(x, np.zeros(4, int), way=("multiple", 2.0), least=1e-16)
    assert (hess[0] == np.float32(1e-16)).all()
    assert np.isnan(grad[[1, 3]]).all()
    assert np.isnan(hess[[1, 3]]).all()
    assert grad[2].tolist() == [-1, 0.5, 0.5]


def test_the_maximum_may_stand_more_than_once(level):
    x = np.zeros((1, 4), np.float32)
    grad, hess = softmax_derivatives(x, np.array([1]))
    assert grad.tolist() == [[0.25, -0.75, 0.25, 0.25]]
    assert hess.tolist() == [[0.1875] * 4]


@pytest.mark.parametrize("label", [-1, 3, 1.5, np.nan, np.inf])
def test_a_label_that_is_no_class_is_named(level, label):
    y = np.array([0, 1, label, 2], np.float32)
    with pytest.raises(IndexError, match=r"label \S+ at row 2; expected a class, a whole number in \[0, 3\)"):
        softmax_derivatives(np.zeros((4, 3), np.float32), y)


def test_a_label_outside_0_and_1_is_named(level):
    ders = np.empty((2, 3), np.float32)
    arguments = (None, 1.0, 1.0, "multiple", 1.0, INFINITE, 0.0, 0.0, *ders)
    for label in (-0.5, 2.0, np.nan):
        with pytest.raises(ValueError, match=r"label \S+ at row 1; expected a number in \[0, 1\]"):
            fastce._kernels.boosting.logistic_derivatives(np.zeros(3), np.array([0, label, 1]), *arguments)


def test_what_could_write_beside_is_refused():
    x, y, good = np.zeros((4, 3), np.float32), np.zeros(4), np.empty((4, 3), np.float32)
    read_only = good.copy()
    read_only.flags.writeable = False
    call = fastce._kernels.boosting.softmax_derivatives
    for error, grad in (
        (ValueError, good[:3]),
        (ValueError, good.T),
        (ValueError, read_only),
        (TypeError, good.astype(np.float64)),
    ):
        with pytest.raises(error):
            call(x, y, None, None, "multiple", 1.0, INFINITE, 0.0, 0.0, grad, good)
    for target in (y[:3], np.zeros((3, 4)), np.zeros((4, 3), complex), np.zeros(4, complex)):
        with pytest.raises((TypeError, ValueError)):
            call(x, target, None, None, "multiple", 1.0, INFINITE, 0.0, 0.0, good, good.copy())
