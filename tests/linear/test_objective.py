"""fastce.linear.objective: scikit-learn's loss object, differences, parts of rows, bits."""

import numpy as np
import pytest
from conftest import FLOATS, bits
from scipy import sparse
from sklearn._loss.loss import HalfBinomialLoss, HalfMultinomialLoss
from sklearn.linear_model._linear_loss import LinearModelLoss

from fastce.linear import arguments, objective


def problem(n_classes, dtype=np.float64, n_rows=400, n_features=9, kind="dense"):
    rng = np.random.default_rng([n_classes, n_rows])
    x = rng.normal(size=(n_rows, n_features)).astype(dtype)
    if kind == "csr":
        x = sparse.csr_array(x * (rng.random(x.shape) < 0.3))
    return x, rng.integers(0, n_classes, n_rows), rng.random(n_rows) + 0.1


@pytest.fixture(params=["dense", "blas", "csr"])
def kind(request, monkeypatch):
    if request.param == "blas":
        monkeypatch.setattr(arguments, "FEW_WEIGHTS", 0)
    return request.param


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3, 12])
def test_scikit_learn(n_classes, fit_intercept, dtype, kind):
    x, y, s = problem(n_classes, dtype, kind=kind)
    f = objective(x, y, n_classes, sample_weight=s, fit_intercept=fit_intercept, l2=0.3)
    base = HalfBinomialLoss() if n_classes == 2 else HalfMultinomialLoss(n_classes=n_classes)
    theirs = LinearModelLoss(base, fit_intercept)
    rng = np.random.default_rng(0)
    coef, v = rng.normal(size=f.shape), rng.normal(size=f.shape)

    def as_theirs(a):
        return (a[0] if n_classes == 2 else np.asfortranarray(a)).astype(dtype)

    data = {"X": x, "y": y.astype(dtype), "sample_weight": s.astype(dtype), "l2_reg_strength": 0.3}
    loss, grad = theirs.loss_gradient(as_theirs(coef), **data)
    _, product = theirs.gradient_hessian_product(as_theirs(coef), **data)
    tolerance = 200 * float(np.finfo(dtype).eps)  # theirs adds up 400 rows in the dtype
    got, g = f.loss_and_grad(coef)
    assert got == pytest.approx(float(loss), rel=tolerance)
    assert f.loss(coef) == got
    assert g.dtype == np.float64
    assert g.shape == f.shape
    assert f.weight_sum == pytest.approx(s.sum())
    np.testing.assert_allclose(g, grad.reshape(f.shape), atol=tolerance * np.abs(grad).max())
    hv = f.hessian_product(coef, v)
    expected = product(as_theirs(v)).reshape(f.shape)
    np.testing.assert_allclose(hv, expected, atol=tolerance * np.abs(expected).max())
    flat = f.loss_and_grad(coef.ravel())
    assert flat[0] == got
    assert bits(flat[1]) == bits(g.ravel())
    point = f.at(coef)
    assert point.loss == got
    assert bits(point.hessian_product(v)) == bits(hv)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_hessians(n_classes, kind):
    x, y, s = problem(n_classes, kind=kind)
    f = objective(x, y, n_classes, sample_weight=s, l2=0.2)
    rng = np.random.default_rng(1)
    coef, v = rng.normal(size=f.size), rng.normal(size=f.size)
    h = f.hessian(coef)
    np.testing.assert_allclose(h @ v, f.hessian_product(coef, v), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.diag(h), f.hessian_diagonal(coef), rtol=1e-10)
    assert np.abs(h - h.T).max() < 1e-14
    step = 1e-5 * v
    difference = (f.loss_and_grad(coef + step)[1] - f.loss_and_grad(coef - step)[1]) / 2e-5
    np.testing.assert_allclose(h @ v, difference, atol=1e-8)
    dense = x.toarray() if kind == "csr" else x
    extended = np.concatenate([dense, np.ones((400, 1))], axis=1)
    np.testing.assert_allclose(f.gram(), (extended * (s / s.sum())[:, None]).T @ extended, atol=1e-13)
    first, second = f.moments()
    np.testing.assert_allclose(first, s @ dense / s.sum(), atol=1e-14)
    np.testing.assert_allclose(second, s @ dense**2 / s.sum(), atol=1e-14)
    np.testing.assert_allclose(f.logits(coef), extended @ coef.reshape(f.shape).T, atol=1e-12)


def test_hessian_of_negative_weights(kind):
    x, y, s = problem(4, kind=kind)
    s[::3] *= -0.5
    f = objective(x, y, 4, sample_weight=s)
    coef, v = np.random.default_rng(1).normal(size=(2, f.size))
    np.testing.assert_allclose(f.hessian(coef) @ v, f.hessian_product(coef, v), rtol=1e-10, atol=1e-12)


def test_parts_add_up(kind):
    x, y, s = problem(5, kind=kind)
    whole = objective(x, y, 5, sample_weight=s)
    parts = [
        objective(x[p], y[p], 5, sample_weight=s[p], normalizer=s.sum())
        for p in (slice(0, 130), slice(130, 400))
    ]
    coef, v = np.random.default_rng(2).normal(size=(2, *whole.shape))
    loss, grad = whole.loss_and_grad(coef)
    assert sum(p.loss(coef) for p in parts) == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(sum(p.loss_and_grad(coef)[1] for p in parts), grad, atol=1e-15)
    np.testing.assert_allclose(
        sum(p.hessian_product(coef, v) for p in parts), whole.hessian_product(coef, v), atol=1e-14
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_same_bits_for_any_number_of_threads(n_classes, dtype):
    for kind in ("dense", "csr"):
        x, y, s = problem(n_classes, dtype, n_rows=5000, n_features=21, kind=kind)
        results = []
        for n_threads in (1, 2, 3):
            f = objective(x, y, n_classes, sample_weight=s, n_threads=n_threads)
            coef, v = np.random.default_rng(2).normal(size=(2, *f.shape))
            loss, grad = f.loss_and_grad(coef)
            results.append((loss, bits(grad), bits(f.hessian_product(coef, v)) if kind == "dense" else None))
        assert results[0] == results[1] == results[2], kind


def test_binary_as_two_rows():
    x, y, _ = problem(2)
    one, two = objective(x, y, 2), objective(x, y, 2, binary=False)
    coef = np.random.default_rng(0).normal(size=one.shape)
    loss, grad = one.loss_and_grad(coef)
    both, pair = two.loss_and_grad(np.concatenate([-coef / 2, coef / 2]))
    assert both == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(pair[1] - pair[0], 2 * grad[0], atol=1e-14)


def test_sure_rows_keep_their_digits():
    """Logits of 30 and more: the gradient is a sum of tails, each exact."""
    x = np.array([[1.0], [-1.0], [1.1]])
    f = objective(x, [1, 0, 1], 2, fit_intercept=False)
    grad = f.loss_and_grad(np.array([[40.0]]))[1][0, 0]
    exact = -np.sum(np.abs(x[:, 0]) * np.exp(-40 * np.abs(x[:, 0]))) / 3
    assert grad == pytest.approx(exact, rel=1e-13)


def test_refusals():
    x, y, _ = problem(3)
    with pytest.raises(IndexError, match=r"target\[\d+\] is 2; expected a class index in \[0, 2\)"):
        objective(x, y, 2)
    with pytest.raises(ValueError, match=r"coef has shape \(3, 9\); expected \(3, 10\) or \(30,\)"):
        objective(x, y, 3).loss(np.zeros((3, 9)))
    with pytest.raises(TypeError, match="coef has dtype complex128"):
        objective(x, y, 3).loss(np.zeros((3, 10), complex))
    with pytest.raises(TypeError, match=r"n_classes is 3\.0; expected an int"):
        objective(x, y, 3.0)
    with pytest.raises(ValueError, match="binary is True with 3 classes"):
        objective(x, y, 3, binary=True)
    with pytest.raises(ValueError, match=r"X has shape \(400,\)"):
        objective(x[:, 0], y, 3)
