"""Random shapes, dtypes, layouts and options against the reference, with hypothesis."""

import ml_dtypes
import numpy as np
import pytest
from conftest import DTYPES, GRAD_ULP, KINDS, LOSS_ULP, assert_ulp, bits, nasty
from hypothesis import given, settings
from hypothesis import strategies as st

import fastce
from fastce import reference

FINITE = ("normal", "wide", "confident 25", "wrong 12", "ties", "jitter", "swamped", "argmin")


@st.composite
def problems(draw, kinds=tuple(KINDS)):
    """Logits, labels, options: 1 to 4 dimensions, any class axis, any order in memory."""
    dtype = draw(st.sampled_from(DTYPES))
    rows = draw(st.lists(st.integers(0, 6), max_size=3))
    rows = tuple(draw(st.permutations([*rows[1:], 33])) if rows and draw(st.booleans()) else rows)
    n_classes = draw(st.integers(1, 40) | st.sampled_from([64, 65, 100, 257, 1003]))
    axis = draw(st.integers(0, len(rows)))
    some = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
    n_rows = int(np.prod(rows))
    x, y = nasty(dtype, n_rows, n_classes, tuple(some), seed=draw(st.integers(0, 2**16)))
    rng = np.random.default_rng(n_rows)

    y = y.reshape(rows).astype(draw(st.sampled_from(["i4", "i8", ">i4", "i2"])))
    options = {"axis": axis - draw(st.sampled_from([0, len(rows) + 1]))}
    if draw(st.booleans()):
        ignored = draw(st.sampled_from([-100, -1, 0, n_classes]))
        options["ignore_index"] = ignored
        y = np.where(rng.random(rows) < 0.3, y.dtype.type(ignored), y)
    if draw(st.booleans()):
        options["sample_weight"] = rng.uniform(0.5, 2, rows)
    if draw(st.booleans()):
        options["n_threads"] = draw(st.integers(1, 4))

    x = np.moveaxis(x.reshape(*rows, n_classes), -1, axis)
    order = draw(st.permutations(range(x.ndim)))
    x = x.transpose(order).copy().transpose(np.argsort(order))
    if draw(st.booleans()):
        x = np.flip(np.flip(x, axis).copy(), axis)
    return x, y, options


def exactly(x, y, options, **more):
    options = {name: value for name, value in options.items() if name != "n_threads"}
    return reference.cross_entropy_and_grad(x, y, **options, **more)


@settings(max_examples=40)
@given(problem=problems())
def test_rows_and_gradient(problem):
    x, y, options = problem
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none", **options)
    exact_loss, exact_grad = exactly(x, y, options, reduction="none")
    assert loss.shape == y.shape
    assert grad.shape == x.shape
    assert grad.dtype == x.dtype
    assert_ulp(loss, exact_loss, LOSS_ULP[loss.dtype], label="loss")
    assert_ulp(grad, exact_grad, GRAD_ULP[grad.dtype], label="gradient")
    assert bits(fastce.cross_entropy(x, y, reduction="none", **options)) == bits(loss)


@settings(max_examples=50)
@given(
    problem=problems(FINITE),
    reduction=st.sampled_from(["mean", "sum"]),
    z=st.none() | st.floats(0.5, 100),
)
def test_reduced(problem, reduction, z):
    x, y, options = problem
    if reduction == "mean":
        options = {**options, "normalizer": z}
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction=reduction, **options)
    exact_loss, exact_grad = exactly(x, y, options, reduction=reduction)
    # As in test_reductions: 4 ULP of each row in the dtype it may have been rounded to, and the
    # sum's own roundings.
    eps = 2.0**-52 if x.dtype == np.float64 else 2.0**-23
    allowed = (4 * eps + (y.size / 2 + 1) * 2.0**-52) * abs(float(exact_loss))
    assert (
        loss == float(exact_loss)
        or abs(loss - exact_loss) <= allowed
        or np.isnan([loss, float(exact_loss)]).all()
    )
    assert_ulp(grad, exact_grad, GRAD_ULP[grad.dtype], label="gradient")


@settings(max_examples=50)
@given(problem=problems(FINITE))
def test_gradient_of_a_row_sums_to_zero(problem):
    """Without the reference: probabilities off the target, minus their sum at the target."""
    x, y, options = problem
    options.pop("sample_weight", None)
    grad = fastce.cross_entropy_and_grad(x, y, reduction="none", **options)[1].astype(float)
    grad = np.moveaxis(grad, options["axis"], -1)
    bound = GRAD_ULP[x.dtype] * float(ml_dtypes.finfo(x.dtype).eps)
    size = np.abs(grad).sum(axis=-1)
    unit = float(ml_dtypes.finfo(x.dtype).smallest_subnormal)
    # Each element is within its bound of the exact one, or within half a subnormal; the sum is
    # float64's.
    assert (np.abs(grad.sum(axis=-1)) <= (bound + 2.0**-40) * size + unit * grad.shape[-1]).all()
    label = np.clip(y, 0, grad.shape[-1] - 1).astype(np.intp)
    at_target = np.take_along_axis(grad, label[..., None], -1)
    assert (at_target <= 0).all()
    assert ((grad >= 0).sum(axis=-1) >= grad.shape[-1] - 1).all()
    assert (size <= 2 + 1e-2).all()


@settings(max_examples=40)
@given(problem=problems(FINITE), power=st.integers(-30, 20))
def test_scaling_a_weight_by_a_power_of_two_is_exact(problem, power):
    """As long as no gradient is subnormal, which these are not in float64."""
    x, y, options = problem
    x = x.astype(np.float64)
    weight = options.pop("sample_weight", np.ones(y.shape))
    one = fastce.cross_entropy_and_grad(x, y, sample_weight=weight, reduction="none", **options)
    other = fastce.cross_entropy_and_grad(
        x, y, sample_weight=weight * 2.0**power, reduction="none", **options
    )
    assert bits(one[0] * 2.0**power) == bits(other[0])
    assert bits(one[1] * 2.0**power) == bits(other[1])


@pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
def test_a_weight_of_two_doubles_a_loss(n_classes, rng):
    """Where many rows have a largest logit that is not the target's: hardly any sum is exact then."""
    x, y = rng.normal(scale=3, size=(5000, n_classes)), rng.integers(0, n_classes, 5000)
    for smoothing in (0, 0.1):
        options = {"reduction": "none", "label_smoothing": smoothing}
        loss = fastce.cross_entropy(x, y, **options)
        assert bits(2 * loss) == bits(fastce.cross_entropy(x, y, sample_weight=np.full(5000, 2.0), **options))


@settings(max_examples=40)
@given(data=st.data(), n_classes=st.integers(1, 20), wrong=st.integers(-(2**63), 2**63 - 1))
def test_any_wrong_label_is_caught(data, n_classes, wrong):
    if 0 <= wrong < n_classes or wrong == -100:
        wrong = n_classes
    n_rows = data.draw(st.integers(1, 200))
    y = np.zeros(n_rows, np.int64)
    y[data.draw(st.integers(0, n_rows - 1))] = wrong
    x = np.full((n_rows, n_classes), 3.0)
    with pytest.raises(IndexError, match=str(wrong)):
        fastce.cross_entropy_and_grad(x, y, out=x)
    assert (x == 3).all()
