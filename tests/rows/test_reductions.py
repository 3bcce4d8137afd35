"""Mean, sum and none; sample weights, ignored rows and the normalizer."""

import warnings

import numpy as np
import pytest
from conftest import FLOATS, GRAD_ULP, assert_ulp, compute_dtype, nasty

import fastce
from fastce import reference

# Rows whose loss is finite, so that sums mean something.
FINITE = (
    "normal",
    "wide",
    "confident 25",
    "wrong 12",
    "ties",
    "masked -inf",
    "swamped",
    "offset 1e4",
)


def check(x, y, **options):
    """Loss and gradient of any reduction against the reference."""
    loss, grad = fastce.cross_entropy_and_grad(x, y, **options)
    exact_loss, exact_grad = reference.cross_entropy_and_grad(x, y, **options)
    assert type(loss) is float
    # All terms are positive. Each carries its own 2 or 4 ULP (of float32 where it was rounded to
    # that), and adding n of them in float64 loses less than n / 2 ULP of float64 more. One more for
    # the division.
    eps = float(np.finfo(compute_dtype(x.dtype)).eps)
    bound = 4 * eps + (np.size(y) / 2 + 1) * 2.0**-52
    assert abs(loss - exact_loss) <= bound * abs(exact_loss)
    assert_ulp(grad, exact_grad, GRAD_ULP[grad.dtype])
    assert fastce.cross_entropy(x, y, **options) == loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n_classes", [1, 2, 10, 33, 1000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mean_and_sum(dtype, n_classes, reduction, rng):
    x, y = nasty(dtype, 70, n_classes, FINITE)
    weight = rng.uniform(0, 3, 70)
    check(x, y, reduction=reduction)
    check(x, y, reduction=reduction, sample_weight=weight)
    y[::3] = -100
    check(x, y, reduction=reduction)
    check(x, y, reduction=reduction, sample_weight=weight)


@pytest.mark.parametrize("ignored", [0, 70])
def test_normalizer(ignored, rng):
    x, y = nasty(np.float64, 70, 10, FINITE)
    y[:ignored] = -100
    check(x, y, normalizer=12.5)
    check(x, y, normalizer=7, sample_weight=rng.uniform(0, 3, 70))


@pytest.mark.parametrize("library", [fastce, reference])
def test_normalizer_of_an_empty_batch(library):
    """The number of rows that count may be 0: then so are loss and gradient."""
    x, y = np.full((3, 4), np.nan), np.full(3, -100)
    loss, grad = library.cross_entropy_and_grad(x, y, normalizer=0)
    assert loss == 0
    assert not grad.any()
    assert library.cross_entropy(x, y, normalizer=0) == 0
    assert library.cross_entropy(np.eye(2), [0, 1], normalizer=0) == np.inf
    assert library.cross_entropy(np.eye(2), [0, 1], normalizer=-0.0) == np.inf
    assert library.binary_cross_entropy_with_logits([], [], normalizer=0) == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_normalizer_of_rows_without_weight(dtype):
    """It may be the sum of their weights."""
    x, nothing = np.array([[0, -np.inf, 3], [1, 2, 900]], dtype), np.zeros(2)
    of_rows = {"sample_weight": nothing, "normalizer": nothing.sum()}
    for got in (
        fastce.cross_entropy_and_hess(x, [0, 1], **of_rows),
        fastce.cross_entropy_and_hess(x, [0, 1], **of_rows, label_smoothing=0.1, softcap=9),
        fastce.linear_cross_entropy_and_grad(np.eye(2), np.ones((3, 2)), [0, 1], **of_rows)[1],
        fastce.focal_loss_and_grad(x, [0, 1], **of_rows),
        fastce.margin_cross_entropy_and_grad(x, [0, 1], **of_rows),
        fastce.hinge_loss_and_grad(x, [0, 1], **of_rows),
        fastce.binary_cross_entropy_with_logits_and_hess(x, 1, weight=nothing[:, None], normalizer=0),
        fastce.binary_focal_loss_and_grad(x, 1, weight=nothing[:, None], normalizer=0),
    ):
        for part in got:
            assert part is None or not np.any(part)


@pytest.mark.parametrize("normalizer", [5e-324, 1e-310, 1e-270])
def test_normalizer_must_have_a_reciprocal(normalizer):
    for function, target in (
        (fastce.cross_entropy_and_grad, [0]),
        (fastce.binary_cross_entropy_with_logits_and_grad, [[0.0, 1.0, 1.0]]),
    ):
        with pytest.raises(ValueError, match=f"normalizer is {normalizer}; .* that is 0 or above 1e-270"):
            function(np.eye(1, 3), target, normalizer=normalizer)


def test_gradient_accumulation(rng):
    """Micro-batches with a common normalizer add up to the mean of the whole batch."""
    x, y = nasty(np.float64, 64, 17, FINITE)
    y[rng.random(64) < 0.3] = -100
    whole, grad = fastce.cross_entropy_and_grad(x, y)
    kept = int((y != -100).sum())
    parts = [
        fastce.cross_entropy_and_grad(x[i : i + 16], y[i : i + 16], normalizer=kept)
        for i in range(0, 64, 16)
    ]
    # Four numbers of one sign, rounded and added.
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=8 * 2.0**-52)
    assert np.array_equal(np.concatenate([g for _, g in parts]), grad)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_none_keeps_the_shape(dtype, rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(dtype)
    y = rng.integers(0, 3, (2, 4, 5))
    loss = fastce.cross_entropy(x, y, axis=1, reduction="none")
    assert loss.shape == y.shape
    assert loss.dtype == dtype
    total = fastce.cross_entropy(x, y, axis=1, reduction="sum")
    # 40 roundings of rows to the dtype.
    assert loss.sum(dtype=float) == pytest.approx(total, rel=4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize(
    "weight",
    [
        np.arange(6),
        np.arange(6, dtype=np.uint8),
        np.linspace(0, 1, 6, dtype=np.float32),
        np.linspace(0, 1, 6, dtype=np.float16),
        np.linspace(0, 1, 6).astype(">f8"),
        np.linspace(0, 1, 12)[::2],
        np.linspace(0, 1, 6)[::-1],
        np.broadcast_to(np.float64(0.7), 6),
        [0.5, 1, 2, 0, 1, 3],
    ],
    ids=[
        "int",
        "uint8",
        "float32",
        "float16",
        "swapped",
        "strided",
        "reversed",
        "broadcast",
        "list",
    ],
)
def test_sample_weight_array_likes(weight):
    x, y = nasty(np.float64, 6, 5, FINITE)
    plain = np.array(weight, np.float64)
    for reduction in ("mean", "sum", "none"):
        loss, grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight, reduction=reduction)
        same, same_grad = fastce.cross_entropy_and_grad(
            x, y, sample_weight=plain, reduction=reduction
        )
        assert np.array_equal(loss, same)
        assert np.array_equal(grad, same_grad)


def test_sample_weight_of_zero_counts_as_zero():
    x, y = nasty(np.float64, 8, 5, FINITE)
    weight = np.array([1.0, 0, 1, 0, 1, 0, 1, 0])
    loss, grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight)
    half, half_grad = fastce.cross_entropy_and_grad(x[::2], y[::2])
    # The zeros may change how four positive losses are grouped: 3 roundings on each side.
    assert loss == pytest.approx(half, rel=6 * 2.0**-53, abs=0)
    assert np.array_equal(grad[::2], half_grad)
    assert not grad[1::2].any()


def test_sample_weight_may_be_negative(rng):
    x, y = nasty(np.float64, 8, 5, FINITE)
    weight = rng.uniform(1, 2, 8)
    loss, grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight, reduction="none")
    negative = fastce.cross_entropy_and_grad(x, y, sample_weight=-weight, reduction="none")
    assert np.array_equal(negative[0], -loss)
    assert np.array_equal(negative[1], -grad)


def test_weights_that_sum_to_zero_give_nan_without_a_warning():
    assert np.isnan(fastce.cross_entropy(np.eye(2), [0, 1], sample_weight=[0.0, 0.0]))


@pytest.mark.parametrize("n_rows", [0, 5])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_to_average(dtype, n_rows):
    """An empty batch, or all rows ignored."""
    x, y = np.full((n_rows, 3), np.nan, dtype), np.full(n_rows, -100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options, expected in (
            ({}, np.nan),
            ({"sample_weight": np.ones(n_rows)}, np.nan),
            ({"reduction": "sum"}, 0.0),
            ({"normalizer": 4.0}, 0.0),
            ({"reduction": "none"}, np.zeros(n_rows)),
        ):
            loss, grad = fastce.cross_entropy_and_grad(x, y, **options)
            assert np.array_equal(loss, expected, equal_nan=True)
            assert np.array_equal(fastce.cross_entropy(x, y, **options), loss, equal_nan=True)
            assert grad.dtype == dtype
            assert np.array_equal(grad, np.zeros((n_rows, 3)))


def test_no_classes():
    with pytest.raises(ValueError, match="class"):
        fastce.cross_entropy(np.zeros((2, 0)), [0, 0])
    with pytest.raises(ValueError, match="class"):
        fastce.cross_entropy_and_grad(np.zeros((0, 2)), [0, 0], axis=0)
    loss, grad = fastce.cross_entropy_and_grad(np.zeros((0, 0)), np.zeros(0, int))
    assert np.isnan(loss)
    assert grad.shape == (0, 0)


def test_one_class():
    """The only class has probability 1: loss and gradient are exactly 0."""
    loss, grad = fastce.cross_entropy_and_grad(np.array([[3.0], [-7e300]]), [0, 0])
    assert loss == 0
    assert not grad.any()


def test_ignore_index_none_switches_it_off():
    with pytest.raises(IndexError, match="-100"):
        fastce.cross_entropy(np.eye(3), [0, -100, 1], ignore_index=None)
    assert fastce.cross_entropy(np.eye(3), [0, 1, 2], ignore_index=None) == fastce.cross_entropy(
        np.eye(3), [0, 1, 2]
    )
