"""Every digit: losses and gradients in ULP of the exact result, on every kind of nasty row."""

import numpy as np
import pytest
from conftest import (
    BATCH_SIZES,
    CLASS_COUNTS,
    DTYPES,
    FLOATS,
    GRAD_ULP,
    KINDS,
    LOSS_ULP,
    assert_ulp,
    compute_dtype,
    nasty,
)

import fastce
from fastce import reference

WEIGHTS = (1e-20, 1e-6, 1e6, 1e20)


def check(x, y, label, **options):
    """Per-row losses and the gradient of a batch, within the bounds of the documentation."""
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none", **options)
    exact_loss, exact_grad = reference.cross_entropy_and_grad(x, y, reduction="none", **options)
    assert loss.dtype == compute_dtype(x.dtype)
    assert grad.dtype == x.dtype
    assert_ulp(loss, exact_loss, LOSS_ULP[loss.dtype], label=f"loss, {label}")
    assert_ulp(grad, exact_grad, GRAD_ULP[grad.dtype], label=f"gradient, {label}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kind(dtype, kind):
    counts = CLASS_COUNTS if dtype in FLOATS else CLASS_COUNTS[:-4]
    for n_classes in counts:
        x, y = nasty(dtype, 3 if n_classes < 5000 else 1, n_classes, kind)
        check(x, y, f"C={n_classes}")


@pytest.mark.parametrize("n_rows", BATCH_SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_size(dtype, n_rows):
    """Rows of all kinds beside each other, for all tails of a tile of rows."""
    for n_classes in (1, 2, 3, 8, 10, 16, 17, 33, 65, 100) if n_rows < 1000 else (2, 3, 10, 17):
        x, y = nasty(dtype, n_rows, n_classes)
        check(x, y, f"C={n_classes}")


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sample_weight(dtype, weight, rng):
    """A weight scales losses and gradients without costing digits, whichever way it takes them."""
    for n_classes in (2, 10, 33, 1000, 16385):
        x, y = nasty(dtype, (2 if n_classes < 5000 else 1) * len(KINDS), n_classes)
        check(x, y, f"C={n_classes}", sample_weight=weight * rng.uniform(1, 2, len(x)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_of_the_mean(dtype, rng):
    """The factor 1 / sum(s) is one more rounding in float64, none at all in the logits' dtype."""
    for n_classes in (3, 10, 129, 1000):
        x, y = nasty(dtype, 3 * len(KINDS), n_classes)
        weight = rng.uniform(0, 3, len(x))
        grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight)[1]
        exact = reference.cross_entropy_and_grad(x, y, sample_weight=weight)[1]
        assert_ulp(grad, exact, GRAD_ULP[grad.dtype], label=f"C={n_classes}")


def test_known_value():
    """Where the usual formulas return 0, or -0."""
    loss, grad = fastce.cross_entropy_and_grad(np.float32([[20, 0, 0]]), [0])
    # The mean is a float64 of a float32 loss or better: 2 ULP of float32 are 2**-22.
    assert loss == pytest.approx(4.122307236312e-09, rel=2.0**-22, abs=0)
    # 4 ULP of float32.
    assert grad[0, 0] == pytest.approx(-4.122307227815e-09, rel=2.0**-21, abs=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_offset_changes_nothing(dtype, rng):
    """On a grid that survives the offset exactly: the same results but for the rounding of each."""
    x, y = rng.integers(-64, 64, (50, 37)).astype(dtype) / 4, rng.integers(0, 37, 50)
    exact = reference.cross_entropy_and_grad(x, y, reduction="none")
    for offset in (2.0, -100.0, 2.0**12, -(2.0**17)):
        loss, grad = fastce.cross_entropy_and_grad(x + dtype.type(offset), y, reduction="none")
        assert_ulp(loss, exact[0], LOSS_ULP[dtype])
        assert_ulp(grad, exact[1], GRAD_ULP[dtype])
