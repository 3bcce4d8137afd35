"""torch.nn.functional's answers, where torch is accurate: options, targets, reductions, shapes and axes.

"The same" is a count of ULP of the largest number that torch adds up on the way: it takes the target's logit
from the maximum and adds the log of the sum, adds up rows in the dtype of the logits, and its exp(log p) has
|log p| / 2 ULP of error. Rows here are ones for which that is little.
"""

import numpy as np
import pytest
from conftest import assert_ulp

import fastce

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastce[torch-tests]'")
F = torch.nn.functional

DTYPES = [np.float32, np.float64]
SHAPES = [(7,), (1, 1), (33, 2), (40, 5), (8, 129), (3, 1000), (6, 5, 4), (2, 19, 5, 7), (2, 4, 3, 2, 5)]
REDUCTIONS = ["mean", "sum", "none"]
# fastce 2 to 4, torch as much again, and the two sums of a mean in float32.
FEW = 8
# The gradient's exp of a log has |log p| / 2 as well, which is up to 6 here, from two roundings.
EXP_OF_LOG = 16


def spread(n_classes):
    """For targets of many classes torch adds up their gradients, in the dtype, to multiply p."""
    return 2 * EXP_OF_LOG + n_classes / 8


def class_axis(shape):
    return 1 if len(shape) > 1 else 0


def problem(shape, dtype, kind, seed=0):
    """Logits of ordinary size, with classes where torch has them, and a target."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.normal(size=shape).astype(dtype)
    axis = class_axis(shape)
    if kind == "labels":
        return x, rng.integers(0, shape[axis], tuple(np.delete(shape, axis)))
    q = rng.random(shape)
    return x, (q / q.sum(axis=axis, keepdims=True)).astype(dtype)


def theirs(function, x, *arrays, **options):
    """Loss and gradient of torch, as arrays."""
    leaf = torch.tensor(x, requires_grad=True)
    as_tensor = {name: torch.tensor(a) if isinstance(a, np.ndarray) else a for name, a in options.items()}
    loss = function(leaf, *(torch.tensor(a) for a in arrays), **as_tensor)
    loss.sum().backward()
    return loss.detach().numpy(), leaf.grad.numpy()


def check(got, expected, dtype, loss_scale, grad_scale=None, grad_bound=FEW):
    """Losses to FEW ULP of `loss_scale`, gradients to `grad_bound` of `grad_scale`, or more if larger."""
    loss, grad = got if isinstance(got, tuple) else (got, None)
    assert_ulp(np.asarray(loss, dtype), expected[0].astype(float), FEW, loss_scale, "loss")
    if grad is not None:
        assert grad.dtype == expected[1].dtype
        exact = expected[1].astype(float)
        assert_ulp(grad, exact, grad_bound, np.maximum(np.abs(exact), grad_scale), "gradient")


def reduced(each, largest, reduction):
    """The largest number on the way to a loss, given each row's: a sum of one sign exceeds its terms."""
    if reduction == "none":
        return largest
    return np.sum(largest) if reduction == "sum" else max(np.max(largest), np.abs(each).max(initial=0))


# --- cross_entropy --------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.25},
]


def subtracted(target, n_classes, axis, reduction, weight=None, label_smoothing=0.0, ignore_index=-100):
    """What the gradient takes away from a multiple of p: the target as probabilities, times its weights."""
    labels = target.dtype.kind == "i"
    weight = np.ones(n_classes) if weight is None else weight
    kept = target != ignore_index if labels else None
    q = np.moveaxis(np.eye(n_classes)[np.where(kept, target, 0)], -1, axis) if labels else target
    by_class = np.reshape(weight, [-1 if dim == axis else 1 for dim in range(q.ndim)])
    q = ((1 - label_smoothing) * q + label_smoothing / n_classes) * by_class
    if labels:
        q = q * np.expand_dims(kept, axis)
    if reduction != "mean":
        return q
    return q / (weight[target[kept]].sum() if labels else q.size / n_classes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "labels, some ignored", "probabilities"])
def test_cross_entropy(kind, shape, dtype):
    x, target = problem(shape, dtype, kind.split(",")[0])
    axis = class_axis(shape)
    largest = np.log(shape[axis]) + np.ptp(x, axis=axis)
    for options in OPTIONS:
        options = dict(options)
        if "weight" in options:
            options["weight"] = np.random.default_rng(5).uniform(0.5, 2, shape[axis]).astype(dtype)
        if "ignored" in kind and target.size > 1:
            options["ignore_index"] = 1
            target.flat[::3] = 1
            target.flat[1] = 0
        each = theirs(F.cross_entropy, x, target, **options, reduction="none")[0]
        for reduction in REDUCTIONS:
            given = {**options, "reduction": reduction}
            expected = theirs(F.cross_entropy, x, target, **given)
            loss_scale = reduced(each, 2 * largest, reduction)
            grad_scale = subtracted(target, shape[axis], axis, **given)
            got = fastce.cross_entropy_and_grad(x, target, axis=axis, **given)
            one = kind != "probabilities" and not options.get("label_smoothing")
            check(got, expected, dtype, loss_scale, grad_scale, EXP_OF_LOG if one else spread(shape[axis]))
            check(fastce.cross_entropy(x, target, axis=axis, **given), expected, dtype, loss_scale)


def test_probabilities_that_do_not_sum_to_1(rng):
    x, q = rng.normal(size=(20, 6)), rng.random((20, 6)) * 3
    for reduction in REDUCTIONS:
        expected = theirs(F.cross_entropy, x, q, reduction=reduction)
        got = fastce.cross_entropy_and_grad(x, q, reduction=reduction)
        check(got, expected, np.float64, np.abs(expected[0]), subtracted(q, 6, 1, reduction), spread(6))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_gradients(half):
    """torch rounds the loss and what the gradient is made of to the half type; fastce the gradient alone."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="no bfloat16: pip install 'fastce[test]'")
    dtype = np.dtype(getattr(ml_dtypes, half, half))
    x, target = problem((40, 10), np.float32, "labels")
    x = x.astype(dtype)
    leaf = torch.tensor(x.astype(np.float32)).to(getattr(torch, half)).requires_grad_(True)
    loss = F.cross_entropy(leaf, torch.tensor(target), reduction="none")
    loss.sum().backward()
    got, grad = fastce.cross_entropy_and_grad(x, target, reduction="none")
    assert got.dtype == np.float32
    assert loss.dtype == getattr(torch, half)
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(got, loss.detach().float().numpy(), rtol=2 * eps, atol=2 * eps)
    np.testing.assert_allclose(grad.astype(np.float32), leaf.grad.float().numpy(), rtol=8 * eps, atol=2 * eps)


# --- nll_loss and the binary losses ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nll_loss(shape, dtype):
    x, target = problem(shape, dtype, "labels")
    axis = class_axis(shape)
    log_probs = F.log_softmax(torch.tensor(x), axis).numpy()
    weight = np.random.default_rng(5).uniform(0.5, 2, shape[axis]).astype(dtype)
    for options in ({}, {"weight": weight}, {"ignore_index": 0}, {"weight": weight, "ignore_index": 0}):
        for reduction in REDUCTIONS:
            expected = theirs(F.nll_loss, log_probs, target, **options, reduction=reduction)[0]
            got = fastce.nll_loss(log_probs, target, axis=axis, **options, reduction=reduction)
            # nll_loss is one product a row; torch adds up to 1000 of them in the dtype.
            assert_ulp(np.asarray(got, dtype), expected.astype(float), 0.5 if reduction == "none" else FEW)


def soft(rng, shape, dtype, hard):
    target = rng.random(shape)
    return (np.round(target) if hard else target).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (77,), (40, 5), (3, 4, 65)], ids=str)
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
def test_binary_cross_entropy_with_logits(hard, shape, dtype, rng):
    x, target = np.asarray(rng.normal(size=shape) * 2, dtype), np.asarray(soft(rng, shape, dtype, hard))
    weight = np.asarray(rng.uniform(0.5, 2, shape), dtype)
    pos_weight = np.asarray(rng.uniform(0.5, 3, shape[-1:]), dtype)
    for options in (
        {},
        {"weight": weight},
        {"weight": weight[..., :1]} if shape else {},
        {"pos_weight": pos_weight},
        {"weight": weight, "pos_weight": pos_weight},
    ):
        for reduction in REDUCTIONS:
            given = {**options, "reduction": reduction}
            expected = theirs(F.binary_cross_entropy_with_logits, x, target, **given)
            # torch adds x, max(-x, 0) and log1p(e^-|x|), times the weights; sums are of one sign.
            largest = 6 * (np.abs(x) + 1)
            scale = reduced(expected[0], largest, reduction)
            factor = 6 / (x.size if reduction == "mean" else 1)
            got = fastce.binary_cross_entropy_with_logits_and_grad(x, target, **given)
            check(got, expected, dtype, scale, factor)
            alone = fastce.binary_cross_entropy_with_logits(x, target, **given)
            check(alone, expected, dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
def test_binary_cross_entropy(hard, dtype, rng):
    for shape in ((), (77,), (40, 5)):
        p, target = np.asarray(rng.random(shape), dtype), np.asarray(soft(rng, shape, dtype, hard))
        weight = np.asarray(rng.uniform(0.5, 2, shape), dtype)
        for options in ({}, {"weight": weight}, {"weight": weight[..., :1]} if shape else {}):
            for reduction in REDUCTIONS:
                given = {**options, "reduction": reduction}
                # Logs of numbers between 0 and 1 lose nothing, nor do sums of one sign.
                expected = theirs(F.binary_cross_entropy, p, target, **given)[0]
                assert_ulp(
                    np.asarray(fastce.binary_cross_entropy(p, target, **given), dtype),
                    expected.astype(float),
                    FEW,
                )


def test_binary_cross_entropy_at_0_and_1():
    """Both clamp the log at -100."""
    p, target = np.float32([0, 1, 1e-45, 0, 1]), np.float32([1, 0, 1, 0, 1])
    expected = theirs(F.binary_cross_entropy, p, target, reduction="none")[0]
    assert np.array_equal(fastce.binary_cross_entropy(p, target, reduction="none"), expected)
    assert expected.tolist() == [100, 100, 100, 0, 0]


# --- softmax and its logarithms -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (33, 2), (8, 129), (3, 1000), (6, 5, 4)], ids=str)
def test_softmax_family(shape, dtype, rng):
    x = rng.normal(size=shape).astype(dtype)
    tensor = torch.tensor(x)
    for axis in range(-1, len(shape)):
        assert_ulp(fastce.softmax(x, axis), F.softmax(tensor, axis).numpy().astype(float), FEW)
        largest = np.log(x.shape[axis]) + np.ptp(x, axis=axis, keepdims=True)
        assert_ulp(
            fastce.log_softmax(x, axis),
            F.log_softmax(tensor, axis).numpy().astype(float),
            FEW,
            np.broadcast_to(largest, shape),
        )
        expected = torch.logsumexp(tensor, axis).numpy().astype(float)
        assert_ulp(fastce.logsumexp(x, axis), expected, FEW, np.squeeze(largest, axis))
    if x.ndim > 1:
        expected = torch.logsumexp(tensor, (0, 1)).numpy().astype(float)
        assert_ulp(fastce.logsumexp(x, (0, 1)), expected, FEW, np.log(x.size) + np.ptp(x))


def test_logsumexp_of_infinities():
    for row in ([np.inf, 1], [-np.inf, -np.inf], [-np.inf, 1], [np.inf, np.inf], [np.nan, 1]):
        expected = torch.logsumexp(torch.tensor(row), 0).numpy()
        assert np.array_equal(fastce.logsumexp(np.float32(row)), expected, equal_nan=True)
