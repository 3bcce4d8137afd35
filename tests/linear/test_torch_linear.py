"""torch.nn.functional.linear_cross_entropy's answers: whole logits and chunks, options, reductions."""

import numpy as np
import pytest
from conftest import FLOATS

import fastce
from fastce.linear import arguments, products

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastce[torch-tests]'")
F = torch.nn.functional

SHAPE = (70, 24, 33)
# In units of eps times the sizes of what is added up: a logit is a sum of 24 products in either library, a
# gradient one of 70 or 33, each off by as much as its logits, which are below 20.
SUM = 30.0


@pytest.fixture(params=["kernels", "whole rows", "parts"])
def way(request, monkeypatch):
    if request.param != "kernels":
        monkeypatch.setattr(arguments, "FEW_WEIGHTS", 0)
    if request.param == "parts":
        monkeypatch.setattr(products, "LEAST_ROWS", 1 << 20)
        monkeypatch.setattr(products, "HELD_BYTES", 1 << 10)


def problem(dtype):
    rng = np.random.default_rng(SHAPE)
    n_rows, n_features, n_classes = SHAPE
    x, w = rng.normal(size=(n_rows, n_features)), rng.normal(size=(n_classes, n_features))
    return *(a.astype(dtype) for a in (x, w, rng.normal(size=n_classes))), rng.integers(0, n_classes, n_rows)


def options_of_theirs(dtype, case):
    """Whole logits, and chunks where torch has them."""
    if dtype != np.float32 or case.keys() & {"q", "label_smoothing"}:
        return [{}]
    return [{}, {"options": torch.nn.LinearCrossEntropyOptions(batch_chunk_size=16)}]


CASES = {
    "plain": {},
    "no bias": {"bias": False},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "ignored": {"ignore_index": 3},
    "probabilities": {"q": True},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_loss_and_gradients(dtype, case, way):
    x, w, b, y = problem(dtype)
    given = dict(case)
    b = b if given.pop("bias", True) else None
    if given.pop("q", False):
        y = np.random.default_rng(2).dirichlet(np.ones(SHAPE[2]), SHAPE[0]).astype(dtype)
    if given.get("weight"):
        given["weight"] = np.linspace(0.5, 2, SHAPE[2]).astype(dtype)
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, **given)

    for more in options_of_theirs(dtype, case):
        leaves = [None if a is None else torch.tensor(a, requires_grad=True) for a in (x, w, b)]
        theirs = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in given.items()} | more
        result = F.linear_cross_entropy(*leaves[:2], torch.tensor(y), linear_bias=leaves[2], **theirs)
        result.sum().backward()
        tolerance = SUM * np.finfo(dtype).eps
        np.testing.assert_allclose(loss, result.detach().numpy(), rtol=tolerance)
        of_a_row = 1 if given.get("reduction", "mean") != "mean" else 1 / len(x)
        for ours, leaf, n_terms in zip(grad, leaves, (1, len(x), len(x)), strict=True):
            if leaf is not None:
                largest = of_a_row * n_terms * max(np.abs(x).max(), np.abs(w).max())
                np.testing.assert_allclose(ours, leaf.grad.numpy(), rtol=0, atol=tolerance * largest)


def test_sure_rows_have_digits_that_torch_has_not(way):
    """p_y w_y is taken from w_y there: of a lead of 25 nothing is left in float32."""
    w = 5 * np.eye(8, dtype=np.float32)
    y = np.arange(8)
    x = 5 * np.eye(8, dtype=np.float32)[y]
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y)
    exact, exact_grad = fastce.reference.linear_cross_entropy_and_grad(x, w, y)
    assert loss == pytest.approx(float(exact), rel=1e-6)
    for a, e in zip(grad[:2], exact_grad, strict=False):
        np.testing.assert_allclose(a, e.astype(float), rtol=1e-6)
    theirs = F.linear_cross_entropy(*map(torch.tensor, (x, w, y))).item()
    assert theirs != pytest.approx(float(exact), rel=0.5)
