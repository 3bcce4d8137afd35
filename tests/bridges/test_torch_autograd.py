"""fastce.torch in eager calls: whose memory gradients are, what backward costs, what is refused, and how."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
from conftest import assert_ulp, python

import fastce
from fastce import _kernels

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastce[torch]'")
from fastce._kernels.entry.tensors import PlainLosses, PlainSoftmax  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastce.torch as ft  # noqa: E402
from fastce.torch import _losses, functional, special  # noqa: E402

F = torch.nn.functional
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
REDUCTIONS = ["mean", "sum", "none"]


@pytest.fixture
def x():
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()


@pytest.fixture
def y():
    return torch.tensor([0, 4, 2, 1, 3, 2])


LOSSES = {
    "cross_entropy": lambda x, y, **options: ft.cross_entropy(x, y, **options),
    "smoothed": lambda x, y, **options: ft.cross_entropy(x, y, label_smoothing=0.2, z_loss=0.1, **options),
    "capped": lambda x, y, **options: ft.cross_entropy(x, y, softcap=2.0, temperature=0.5, **options),
    "weighted": lambda x, y, **options: ft.cross_entropy(
        x, y, torch.arange(1.0, 6), sample_weight=torch.arange(6) - 1.5, **options
    ),
    "focal_loss": lambda x, y, **options: ft.focal_loss(x, y, 1.5, **options),
    "binary": lambda x, y, **options: ft.binary_cross_entropy_with_logits(
        x, F.one_hot(y, 5).to(x.dtype), pos_weight=torch.arange(1.0, 6), **options
    ),
}
FUNCTIONS = {
    "softmax": ft.softmax,
    "log_softmax": ft.log_softmax,
    "logsumexp": ft.logsumexp,
    "logsumexp, dimension kept": lambda x, dim: ft.logsumexp(x, dim, keepdim=True),
}


# ---- Gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradcheck(loss, reduction, x, y):
    assert torch.autograd.gradcheck(lambda x: loss(x, y, reduction=reduction), x, check_batched_grad=True)


@pytest.mark.once
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_targets(reduction, x):
    q = torch.rand(6, 5, dtype=torch.float64, requires_grad=True)
    w, s = torch.rand(5, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    options = {"label_smoothing": 0.1, "softcap": 3.0, "temperature": 2.0, "reduction": reduction}
    check = torch.autograd.gradcheck
    assert check(lambda x, q: ft.cross_entropy(x, q, w, sample_weight=s, z_loss=0.1, **options), (x, q))
    assert check(
        lambda x, q: ft.binary_cross_entropy_with_logits(x, q, s[:, None], pos_weight=w, reduction=reduction),
        (x, q),
    )


@pytest.mark.once
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("dim", [0, -1])
def test_gradcheck_of_the_softmax_family(function, dim, x):
    assert torch.autograd.gradcheck(lambda x: function(x, dim), x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x, dim), x)


def test_logsumexp_over_several_dimensions(x):
    for dims in ((0, 1), (), (1, 0)):
        assert torch.autograd.gradcheck(lambda x, dims=dims: ft.logsumexp(x, dims, True), x)
    out = torch.empty(0, dtype=torch.float64)
    assert ft.logsumexp(x.detach(), 1, out=out) is out
    torch.testing.assert_close(out, torch.logsumexp(x.detach(), 1))
    assert ft.logsumexp(torch.empty(2, 0), 1).tolist() == [-torch.inf] * 2
    with pytest.raises(RuntimeError, match="each dimension once"):
        ft.logsumexp(x, (0, -2))


def test_logsumexp_writes_into_no_graph(x):
    out = torch.empty(6, dtype=torch.float64)
    for given, to in ((x, out), (x.detach(), torch.empty_like(out, requires_grad=True))):
        with pytest.raises(RuntimeError, match=r"out is given.*requires a gradient"):
            ft.logsumexp(given, 1, out=to)
    with torch.no_grad():
        assert ft.logsumexp(x, 1, out=out) is out
    assert not out.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (9, 4), (3, 5, 2, 4)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_bits_are_those_of_arrays(shape, dtype, reduction):
    axis = min(len(shape), 2) - 1
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = torch.randint(shape[axis], shape[:axis] + shape[axis + 1 :])
    value, grad = fastce.cross_entropy_and_grad(x.detach().numpy(), y.numpy(), axis=axis, reduction=reduction)
    loss = ft.cross_entropy(x, y, reduction=reduction)
    loss.sum().backward()
    assert loss.dtype == dtype
    assert np.array_equal(loss.detach().numpy(), np.asarray(value, loss.detach().numpy().dtype))
    assert np.array_equal(x.grad.numpy(), grad)


def test_sure_rows():
    """What PyTorch has as 0, also through log_softmax and nll_loss."""
    y, exact = torch.tensor([0]), np.log1p(2 * np.exp(-20.0))
    for loss in (ft.cross_entropy, lambda x, y: F.nll_loss(ft.log_softmax(x, 1), y)):
        x = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)
        value = loss(x, y)
        value.backward()
        assert_ulp(value.detach().numpy(), exact, 2)
        assert_ulp(x.grad.numpy()[0, 0], -2 / (np.exp(20.0) + 2), 4)
        assert F.cross_entropy(x, y) == 0
    assert_ulp(ft.logsumexp(torch.tensor([0.0, -50.0]), 0).numpy(), np.exp(-50.0), 4)


# ---- The short way, and the long one ---------------------------------------------------------------


@pytest.fixture
def long_way(monkeypatch):
    """The calls that were not as they usually are."""
    calls = []

    def noted(function):
        return lambda *args: calls.append(args) or function(*args)

    plain = PlainLosses(torch, _kernels, functional._KERNELS, functional.attach, noted(functional._loss))
    monkeypatch.setattr(functional, "_plain_loss", plain.loss)
    both = noted(special._softmax), noted(special._logsumexp)
    plain = PlainSoftmax(torch, _kernels, special.attach_softmax, *both)
    monkeypatch.setattr(special, "_plain_softmax", plain.softmax)
    monkeypatch.setattr(special, "_plain_logsumexp", plain.logsumexp)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_both_ways_have_the_same_bits(loss, reduction, dtype, x, y, long_way, monkeypatch):
    x = x.detach().to(dtype).requires_grad_()

    def results():
        value = loss(x, y, reduction=reduction)
        return value, *torch.autograd.grad(value.sum(), x), loss(x.detach(), y, reduction=reduction)

    short = results()
    assert not long_way
    monkeypatch.setattr(functional, "_plain_loss", functional._loss)
    for got, expected in zip(short, results(), strict=True):
        assert got.dtype == expected.dtype == dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_both_ways_of_the_softmax_family_have_the_same_bits(function, dtype, x, long_way, monkeypatch):
    inputs = [x.detach().to(dtype).reshape(shape) for shape in [(30,), (6, 5), (2, 3, 5)]]

    def results():
        for x in inputs:
            for dim in range(-x.ndim, x.ndim):
                leaf = x.clone().requires_grad_()
                value = function(leaf, dim)
                yield value
                yield function(x, dim)
                yield torch.autograd.grad(value.square().sum(), leaf)[0]
                with torch.no_grad():
                    assert not function(leaf, dim).requires_grad

    short = list(results())
    assert bool(long_way) == (dtype in DTYPES[2:] and function is FUNCTIONS["logsumexp, dimension kept"])
    monkeypatch.setattr(special, "_plain_softmax", special._softmax)
    monkeypatch.setattr(special, "_plain_logsumexp", special._logsumexp)
    for got, expected in zip(short, results(), strict=True):
        assert got.dtype == expected.dtype == dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("value", [3.0, 1.00390625, 1.01171875, 1e39, torch.inf, torch.nan])
def test_a_loss_of_bfloat16_is_rounded_to_the_nearest(value, monkeypatch):
    """Also between two of them, and where there is none so large."""
    monkeypatch.setattr(_kernels.kernels, "cross_entropy", lambda *args: value)
    got = ft.cross_entropy(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([0]))
    torch.testing.assert_close(got, torch.tensor(value).bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", [ft.cross_entropy, ft.binary_cross_entropy_with_logits])
def test_a_loss_has_the_wider_dtype_of_logits_and_probabilities(loss, q_dtype, x_dtype, x, y):
    for leaf in (x.detach().to(x_dtype), x.detach().to(x_dtype).requires_grad_()):
        for reduction in ("mean", "none"):
            value = loss(leaf, F.one_hot(y, 5).to(q_dtype), reduction=reduction)
            assert value.dtype == torch.promote_types(x_dtype, q_dtype)
    value.sum().backward()
    assert leaf.grad.dtype == x_dtype


UNUSUAL = {
    "float16": lambda x, y, **how: ft.cross_entropy(x.half(), y, **how).double(),
    "columns": lambda x, y, **how: ft.cross_entropy(x.T.contiguous().T, y, **how),
    "negative": lambda x, y, **how: ft.cross_entropy(torch._neg_view(-x), y, **how),
    "subclass": lambda x, y, **how: ft.cross_entropy(x.as_subclass(Named), y, **how),
    "weights of bfloat16": lambda x, y, **how: ft.cross_entropy(x, y, torch.ones(5).bfloat16(), **how),
    "target with a gradient": lambda x, y, **how: ft.cross_entropy(
        x, F.one_hot(y, 5).double().requires_grad_(), **how
    ),
}


class Named(torch.Tensor):
    pass


@pytest.mark.parametrize("call", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_calls_go_the_long_way(call, x, y, long_way):
    loss = call(x, y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, x)
    assert len(long_way) == 1
    expected = F.cross_entropy(x, y, reduction="sum")
    rounded = {"rtol": 0.02, "atol": 0.02} if call is UNUSUAL["float16"] else {}
    torch.testing.assert_close(loss.as_subclass(torch.Tensor), expected, **rounded)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, x)[0], **rounded)


THEIRS = {ft.softmax: F.softmax, ft.log_softmax: F.log_softmax, ft.logsumexp: torch.logsumexp}


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5)], ids=str)
def test_strides_of_a_dimension_that_is_kept(shape):
    x = torch.randn(shape)
    assert ft.logsumexp(x, 0, True).stride() == torch.logsumexp(x, 0, True).stride()
    assert ft.logsumexp(x, -1, True).stride() == torch.logsumexp(x, -1, True).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(900, 10), (4, 21, 8, 9), (40, 128), (600, 7), (9, 4), (20, 300), (2, 9000), (2, 200, 9), (2, 1500, 9)],
    ids=str,
)
@pytest.mark.parametrize("scale", [1, 10, 30])
def test_gradients_of_log_softmax(scale, shape, dtype):
    """By many gradients a row, and by one in the surest class, where g - p sum(g) has no digits."""
    log_p = ft.log_softmax((scale * torch.randn(shape)).to(dtype), 1)
    sure = torch.zeros_like(log_p).scatter_(1, log_p.argmax(1, keepdim=True), -0.25)
    for g in (torch.randn(shape).to(dtype), sure, sure * 1e-5, 0 * sure, sure - 0.1 / shape[1]):
        wide, total = g.double(), g.double().sum(1, keepdim=True)
        terms = -wide * torch.expm1(log_p.double()), -log_p.double().exp() * (total - wide)
        got = _losses.log_softmax_backward(g, log_p, 1)
        assert got.dtype == dtype
        size = terms[0].abs() + log_p.double().exp() * (wide.abs().sum(1, keepdim=True) - wide.abs())
        # Kernels take log_p for logits: it, and not the softmax, has been rounded.
        error = torch.finfo(dtype).eps * (3 + log_p.double().abs().amax(1, keepdim=True)) * size
        assert ((got.double() - sum(terms)).abs() <= error + torch.finfo(dtype).tiny).all()


def test_small_gradients_of_log_softmax_beside_large_ones():
    """Those of few rows' weight are scaled, by no more than all rows bear."""
    log_p = ft.log_softmax(torch.randn(2000, 4), 1)
    for others in (1e-6, 1e30):
        g = torch.full((2000, 4), others)
        g[0] = torch.tensor([1e-30, 0, 0, 0])
        got = _losses.log_softmax_backward(g, log_p, 1)[0].double()
        expected = 1e-30 * (torch.tensor([1, 0, 0, 0]) - log_p[0].double().exp())
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("function", [ft.softmax, ft.log_softmax], ids=["softmax", "log_softmax"])
def test_backward_over_no_classes(function):
    x = torch.zeros(3, 0, requires_grad=True)
    function(x, 1).backward(torch.zeros(3, 0))
    assert x.grad.shape == (3, 0)


UNUSUAL_SOFTMAX = {
    "columns": lambda f, x: f(x.T, 0),
    "negative": lambda f, x: f(torch._neg_view(-x), 1),
    "subclass": lambda f, x: f(x.as_subclass(Named), 1).as_subclass(torch.Tensor),
    "dimension of NumPy": lambda f, x: f(x, np.int64(1)),
    "no elements": lambda f, x: f(x[:0], 1),
    "no dimensions": lambda f, x: f(x[0, 0], 0),
    "dimensions, or a dtype": lambda f, x: (
        f(x, (0, 1)) if f.__name__ == "logsumexp" else f(x.float(), 1, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("function", THEIRS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("call", UNUSUAL_SOFTMAX.values(), ids=UNUSUAL_SOFTMAX)
def test_unusual_calls_of_the_softmax_family_go_the_long_way(call, function, x, long_way):
    for leaf in (x, x.detach()):
        got, expected = call(function, leaf), call(THEIRS[function], leaf)
        torch.testing.assert_close(got, expected)
        assert long_way.pop()
    got, expected = call(function, x), call(THEIRS[function], x)
    grads = [torch.autograd.grad(value.square().sum(), x)[0] for value in (got, expected)]
    torch.testing.assert_close(*grads)


def test_modes_of_dispatch_see_the_operators(x, y, long_way):
    """Tracers, and counters of what is called."""
    seen = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Noting():
        loss, p, s = ft.cross_entropy(x.detach(), y), ft.softmax(x.detach(), 1), ft.logsumexp(x.detach(), 1)
    for name in ("cross_entropy", "softmax", "logsumexp"):
        assert f"fastce.{name}.default" in seen
    assert len(long_way) == 3
    assert torch.equal(loss, ft.cross_entropy(x.detach(), y))
    assert torch.equal(p, ft.softmax(x.detach(), 1))
    assert torch.equal(s, ft.logsumexp(x.detach(), 1))
    assert len(long_way) == 3


@pytest.mark.once
def test_a_gradient_outlives_its_program():
    """Its memory is NumPy's, and is let go of after Python has ended."""
    done = python(
        "import torch, fastce.torch\n"
        "torch.leak = torch.zeros(2, 4, requires_grad=True)\n"
        "fastce.torch.cross_entropy(torch.leak, torch.tensor([0, 1])).backward()\n"
        "torch.leak.kept = fastce.torch.cross_entropy(torch.leak, torch.tensor([0, 1]))\n"
        "print('end')\n"
    )
    assert done.stdout == "end\n"


# ---- Memory --------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """Addresses of the gradients that the kernels have made."""
    addresses = []
    for module, name in (
        (_kernels.kernels, "cross_entropy"),
        (_kernels.kernels, "focal_loss"),
        (_kernels.elementwise, "binary_cross_entropy_with_logits"),
    ):
        function = getattr(module, name)

        def noted(order, *args, function=function):
            result = function(order, *args)
            if order:
                addresses.append(result[1].__array_interface__["data"][0])
            return result

        monkeypatch.setattr(module, name, noted)
    return addresses


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_backward_hands_out_the_memory_of_the_forward_pass(loss, dtype, factor, x, y, made):
    x = x.detach().to(dtype).requires_grad_()
    (loss(x, y) * factor).backward()
    assert made == [x.grad.data_ptr()]
    x.grad = None
    (loss(x, y, reduction="none") * factor).sum().backward()
    assert made[1] == x.grad.data_ptr()


def test_a_kept_graph_hands_out_copies(x, y, made):
    loss = ft.cross_entropy(x, y)
    expected = torch.autograd.grad(F.cross_entropy(x, y), x)[0]
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    second = torch.autograd.grad(loss, x, 3 * torch.ones_like(loss), retain_graph=True)[0]
    first_again = first.clone()
    last = torch.autograd.grad(loss, x)[0]
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, 3 * expected)
    assert last.data_ptr() == made[0] not in (first.data_ptr(), second.data_ptr())
    assert torch.equal(first, first_again)
    assert torch.equal(first, last)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


def test_nothing_is_made_where_nobody_asks(x, y, made):
    ft.cross_entropy(x.detach(), y)
    with torch.no_grad():
        assert not ft.cross_entropy(x, y).requires_grad
    with torch.inference_mode():
        for result in (ft.cross_entropy(x, y), ft.softmax(x, 1), ft.logsumexp(x, 1)):
            assert result.is_inference()
    assert not made
    assert torch.equal(ft.cross_entropy(x.detach(), y), ft.cross_entropy(x, y).detach())


def test_the_gradient_goes_with_the_graph(x, y, monkeypatch):
    made = []

    def noted(*args, function=_kernels.kernels.cross_entropy):
        value, grad = function(*args)
        made.append(weakref.ref(grad))
        return value, grad

    monkeypatch.setattr(_kernels.kernels, "cross_entropy", noted)
    loss = ft.cross_entropy(x, y)
    gc.disable()  # no cycle waits for it
    try:
        assert made[0]() is not None
        del loss
        assert made[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_may_be_written_over(loss, reduction, x, y):
    expected = torch.autograd.grad((loss(x, y, reduction=reduction) * 2).sum(), x)[0]
    value = loss(x, y, reduction=reduction)
    assert torch.equal(torch.autograd.grad(value.mul_(2).sum(), x, retain_graph=True)[0], expected)
    (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert torch.equal(grad, expected)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.sum().backward()


def test_row_losses_of_a_linear_layer_may_be_written_over(x, y):
    w = torch.randn(5, 5, dtype=torch.float64)
    loss = ft.linear_cross_entropy(x, w, y, reduction="none")
    twice = torch.autograd.grad(loss.mul_(2).sum(), x)[0]
    once = torch.autograd.grad(F.cross_entropy(x @ w.T, y, reduction="sum"), x)[0]
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("bias", [None, torch.ones(5, dtype=torch.float64)])
def test_many_gradients_of_row_losses_of_a_linear_layer_in_one_backward(bias, x, y):
    w = torch.randn(5, 5, dtype=torch.float64)

    def losses(x, w):
        return ft.linear_cross_entropy(x, w, y, linear_bias=bias, reduction="none", sample_weight=weights)

    weights = torch.rand(6, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(losses, (x, w), vectorize=True)
    expected = torch.autograd.functional.jacobian(losses, (x, w))
    torch.testing.assert_close(found, expected)


def test_logits_may_be_written_over(x, y):
    """Nothing of them is kept."""
    expected = torch.autograd.grad(ft.cross_entropy(x, y), x)[0]
    logits = x * 1
    loss = ft.cross_entropy(logits, y)
    with torch.no_grad():
        logits.zero_()
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2, 1::2],
        lambda x: x.T,
        lambda x: x[:, :1].expand(6, 4),
        lambda x: x[:1].expand(4, 8),
        lambda x: x.reshape(2, 3, 2, 4).to(memory_format=torch.channels_last),
        lambda x: torch._neg_view(x),
    ],
    ids=["strided", "transposed", "one column", "one row", "channels last", "negative"],
)
def test_strides(view, dtype):
    x = view(torch.randn(6, 8, dtype=dtype)).requires_grad_()
    y = torch.randint(x.shape[1], (x.shape[0], *x.shape[2:]))
    loss = ft.cross_entropy(x, y)
    (grad,) = torch.autograd.grad(loss, x)
    copy = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    expected = ft.cross_entropy(copy, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, copy)[0])
    torch.testing.assert_close(ft.softmax(x, 1), ft.softmax(copy, 1))
    torch.testing.assert_close(ft.log_softmax(x, 0), ft.log_softmax(copy, 0))
    torch.testing.assert_close(ft.logsumexp(x, 0), ft.logsumexp(copy, 0))


def test_hooks_of_saved_tensors(x, y):
    """As offloading and checkpoints use them."""
    expected = torch.autograd.grad(ft.cross_entropy(x, y), x)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy):
        loss = ft.cross_entropy(x, y)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
    loss = torch.utils.checkpoint.checkpoint(lambda x: ft.cross_entropy(x * 2, y), x, use_reentrant=False)
    doubled = torch.autograd.grad(loss, x)[0]
    torch.testing.assert_close(doubled, torch.autograd.grad(F.cross_entropy(x * 2, y), x)[0])


# ---- Halves, autocast, scaling ---------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast(half, x, y):
    """Losses of halves are float32 there, as PyTorch's; softmax keeps the dtype."""
    layer, criterion = torch.nn.Linear(5, 5), ft.CrossEntropyLoss()
    with torch.autocast("cpu", dtype=half):
        logits = layer(x.float())
        loss = criterion(logits, y)
        assert (logits.dtype, loss.dtype) == (half, torch.float32)
        assert ft.focal_loss(logits, y).dtype == torch.float32
        for theirs, ours in (
            (F.softmax, ft.softmax),
            (F.log_softmax, ft.log_softmax),
            (torch.logsumexp, ft.logsumexp),
        ):
            assert theirs(logits, 1).dtype == ours(logits, 1).dtype
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    assert ft.cross_entropy(logits.detach(), y).dtype == half


@pytest.mark.parametrize("loss", [ft.cross_entropy, ft.focal_loss])
def test_ignored_rows_have_no_gradient_whatever_their_factor(loss, x, y):
    """As where a mean over a sequence that is all padding is left out after it was divided by 0."""
    y[2], y[4], factor = -100, -100, torch.tensor([1.0, 2, float("nan"), 3, float("inf"), 4], dtype=x.dtype)
    loss(x, y, reduction="none").backward(factor)
    expected = loss(x, y, reduction="none").detach().new_zeros(6)
    (known,) = torch.autograd.grad(loss(x, y, reduction="none"), x, torch.where(y < 0, expected, factor))
    assert torch.equal(x.grad, known)
    through = torch.func.grad(lambda x: torch.where(y < 0, 0, loss(x, y, reduction="none") * factor).sum())
    assert not through(x.detach()).isnan().any()
    (nothing,) = torch.autograd.grad(loss(x, torch.full_like(y, -100), reduction="sum") / 0, x)
    assert not nothing.any()


def test_scaled_losses_of_float16():
    """Gradients that float16 could not hold before they were scaled: 3e-8, half of its least number."""
    y = torch.zeros(4096, dtype=torch.int64)
    x = torch.tensor([9.0] + [0.0] * 7, dtype=torch.float16).repeat(4096, 1).requires_grad_()
    (ft.cross_entropy(x, y).float() * 2**12).backward()
    expected = torch.full((7,), 1 / (np.exp(9.0) + 7))
    torch.testing.assert_close(x.grad[0, 1:].float(), expected, rtol=1e-3, atol=0)
    (ft.cross_entropy(x.to(torch.float16), y).float() * 2**-12).backward()


@pytest.mark.parametrize("function", [fastce.cross_entropy_and_grad, fastce.focal_loss_and_grad])
def test_tensors_given_to_functions_of_arrays(function):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="no bfloat16: pip install 'fastce[test]'")
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    half = x.bfloat16()
    loss, grad = function(half, y)
    expected, wide = function(half.float(), y)
    assert loss == expected
    assert grad.dtype == ml_dtypes.bfloat16
    assert np.array_equal(grad, wide.astype(grad.dtype))
    assert np.array_equal(fastce.softmax(half[:, ::2], axis=1), ft.softmax(half[:, ::2], 1).float().numpy())
    with pytest.raises(TypeError, match="detach"):
        function(x.requires_grad_(), y)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_tensors_that_are_no_arrays_are_named():
    """With what PyTorch has for each of them."""
    x, z, y = torch.randn(2, 2), torch.randn(2, 2, dtype=torch.complex64), torch.tensor([0, 1])
    for tensor, way in (
        (x.to_sparse(), "to_dense"),
        (x.to_sparse_csr(), "to_dense"),
        (x.bfloat16().to_sparse(), "to_dense"),
        (torch.nested.nested_tensor([x, x[:1]]), r"torch\.cat"),
        (x.to("meta"), "no numbers"),
        (x.bfloat16().to("meta"), "no numbers"),
        (x.to(torch.float8_e5m2), "float"),
        (z.conj(), "resolve_conj"),
        (z.conj().imag, "resolve_neg"),
    ):
        with pytest.raises(TypeError, match=rf"^logits is a torch\.Tensor that .*: .*{way}"):
            fastce.cross_entropy(tensor, y)
        with pytest.raises(TypeError, match=rf"^weight is a torch\.Tensor that .*: .*{way}"):
            fastce.cross_entropy(x, y, weight=tensor)
    for number in (torch.ones(2), torch.ones((), dtype=torch.complex64), torch.ones((), device="meta")):
        with pytest.raises(TypeError, match=r"(?s)^temperature is tensor.*; expected a number"):
            fastce.cross_entropy(x, y, temperature=number)
    with pytest.raises(TypeError, match=r"^axis is tensor\(True\); expected an int"):
        fastce.cross_entropy(x, y, axis=torch.tensor(True))
    two = torch.tensor(2.0)
    assert fastce.cross_entropy(x, y, temperature=two) == fastce.cross_entropy(x, y, temperature=2)


@pytest.mark.once
def test_bfloat16_without_ml_dtypes():
    done = python(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ml_dtypes':\n            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import torch, fastce, fastce.torch\n"
        "x = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)\n"
        "fastce.torch.cross_entropy(x, torch.tensor([0, 1])).backward()\n"
        "print(x.grad[0].tolist())\n"
        "try:\n    fastce.cross_entropy(x.detach(), [0, 1])\n"
        "except TypeError as error:\n    print(error)\n"
    )
    assert "[-0.375, 0.125, 0.125, 0.125]" in done.stdout
    assert "logits is of bfloat16" in done.stdout
    assert "pip install ml_dtypes" in done.stdout


# ---- The linear layer and its loss -------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("shape", [(7,), (6, 7), (2, 3, 7)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_linear_cross_entropy(reduction, shape):
    """Of labels, and of probabilities, which may ask for a gradient themselves."""
    rows = shape[:-1]
    x, w, b = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (shape, (5, 7), (5,)))
    y, q = torch.randint(5, rows), torch.rand(*rows, 5, dtype=torch.float64)
    s = torch.randn(rows, dtype=torch.float64)

    def loss(x, w, b, target=y, **options):
        return ft.linear_cross_entropy(
            x, w, target, linear_bias=b, reduction=reduction, z_loss=0.1, **options
        )

    assert torch.autograd.gradcheck(loss, (x, w, b))
    assert torch.autograd.gradcheck(lambda x, w, b: loss(x, w, b, sample_weight=s), (x, w, b))
    assert torch.autograd.gradcheck(lambda w: loss(x.detach(), w, None, q), w)
    assert torch.autograd.gradcheck(loss, (x, w, b, q.requires_grad_()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy_is_that_of_its_logits(reduction, dtype):
    x, w = torch.randn(40, 24).to(dtype), torch.randn(24, 300).to(dtype).T
    x, w = x[:, ::2].requires_grad_(), w[:, ::2].requires_grad_()
    y = torch.randint(300, (40,))
    y[3] = -100
    loss = ft.linear_cross_entropy(x, w, y, reduction=reduction)
    assert loss.dtype == dtype
    got = torch.autograd.grad(loss.sum(), (x, w))
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = F.cross_entropy(wide[0] @ wide[1].T, y, reduction=reduction)
    eps = torch.finfo(torch.float32 if dtype is torch.float16 else dtype).eps
    close = {"rtol": 32 * max(eps, torch.finfo(dtype).eps), "atol": 32 * torch.finfo(dtype).eps}
    torch.testing.assert_close(loss.double(), expected, **close)
    for grad, exact in zip(got, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), exact, **close)


def test_linear_cross_entropy_under_autocast():
    criterion, x = ft.LinearCrossEntropyLoss(16, 50, bias=True), torch.randn(8, 16)
    y = torch.randint(50, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(x.bfloat16(), y)
    loss.backward()
    assert loss.dtype == criterion.linear.weight.grad.dtype == torch.float32
    twin = pickle.loads(pickle.dumps(criterion))
    assert torch.equal(twin(x, y), criterion(x, y))


@pytest.mark.parametrize("option", [{"z_loss": 0.1}, {"temperature": 2.0}, {"softcap": 1.5}])
def test_linear_cross_entropy_loss_passes_on(option):
    plain, x, y = ft.LinearCrossEntropyLoss(16, 50), torch.randn(8, 16), torch.randint(50, (8,))
    criterion = ft.LinearCrossEntropyLoss(16, 50, **option)
    criterion.load_state_dict(plain.state_dict())
    expected = ft.linear_cross_entropy(x, plain.linear.weight, y, **option)
    assert torch.equal(criterion(x, y), expected)
    assert not torch.equal(plain(x, y), expected)
    assert torch.equal(pickle.loads(pickle.dumps(criterion))(x, y), expected)


def test_linear_cross_entropy_second_derivatives():
    x, w, y = (
        torch.randn(4, 3, requires_grad=True),
        torch.randn(5, 3, requires_grad=True),
        torch.tensor([0, 1, 2, 3]),
    )
    for reduction in REDUCTIONS:
        loss = ft.linear_cross_entropy(x, w, y, reduction=reduction).sum()
        grads = torch.autograd.grad(loss, (x, w), create_graph=True)
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            grads[1].sum().backward()


# ---- What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_second_derivatives(kept, x, y):
    for loss in LOSSES.values():
        (grad,) = torch.autograd.grad(loss(x, y), x, create_graph=True, retain_graph=kept)
        for again in (
            lambda grad=grad: torch.autograd.grad(grad.sum(), x, allow_unused=True),
            grad.sum().backward,
        ):
            with pytest.raises(NotImplementedError, match="first derivatives only"):
                again()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x, y: ft.cross_entropy(x.detach().numpy(), y), TypeError, "input is a ndarray.*as_tensor"),
        (lambda x, y: ft.cross_entropy(x, [0] * 6), TypeError, "target is a list"),
        (lambda x, y: ft.cross_entropy(None, y), TypeError, "input is None; expected a tensor"),
        (lambda x, y: ft.focal_loss(x, None), TypeError, "target is None; expected a tensor"),
        (lambda x, y: ft.linear_cross_entropy(x, None, y), TypeError, "linear_weight is None"),
        (lambda x, y: ft.logsumexp(None, 1), TypeError, "input is None; expected a tensor"),
        (lambda x, y: ft.logsumexp(x, 1, out=y.numpy()), TypeError, "out is a ndarray"),
        (lambda x, y: ft.cross_entropy(x.to_sparse(), y), TypeError, r"input .*sparse_coo.*\.to_dense\(\)"),
        (lambda x, y: ft.cross_entropy(x, x.detach().to_sparse()), TypeError, "target .*sparse_coo"),
        (lambda x, y: ft.softmax(x.to_sparse(), 1), TypeError, "input .*sparse_coo"),
        (lambda x, y: ft.cross_entropy(torch._efficientzerotensor((6, 5)), y), TypeError, "has no memory"),
        (lambda x, y: ft.cross_entropy(x.to(torch.int64), y), TypeError, "input has dtype torch.int64"),
        (lambda x, y: ft.softmax(x.to(torch.int64), 1), TypeError, "input has dtype torch.int64"),
        (lambda x, y: ft.softmax(x, 2), IndexError, "dim is 2"),
        (lambda x, y: ft.softmax(x, 1.5), TypeError, "dim is 1.5; expected an int"),
        (lambda x, y: ft.logsumexp(x, None), TypeError, "dim is None; expected an int"),
        (lambda x, y: ft.log_softmax(None, 1), TypeError, "input is None.*fastce.log_softmax"),
        (lambda x, y: ft.softmax(torch._efficientzerotensor((6, 5)), 1), TypeError, "has no memory"),
        (lambda x, y: ft.logsumexp(x, -3), IndexError, "dim is -3"),
        (lambda x, y: ft.cross_entropy(x, y + 1), IndexError, r"target\[1\] is 5.*\[0, 5\)"),
        (lambda x, y: ft.cross_entropy(x, y, reduction="average"), ValueError, "'average'"),
        (lambda x, y: ft.cross_entropy(x, y, x[0]), NotImplementedError, "weight requires a gradient"),
        (
            lambda x, y: ft.cross_entropy(x, y, temperature=x[0, 0].exp()),
            NotImplementedError,
            "temperature requires a gradient",
        ),
        (
            lambda x, y: ft.cross_entropy(x.detach(), y, label_smoothing=x[0, 0].sigmoid()),
            NotImplementedError,
            "label_smoothing requires a gradient",
        ),
        (lambda x, y: ft.focal_loss(x, y, x[0, 0].exp()), NotImplementedError, "gamma requires a gradient"),
        (
            lambda x, y: ft.linear_cross_entropy(x, x.detach(), y, temperature=x[0, 0].exp()),
            NotImplementedError,
            "temperature requires a gradient",
        ),
        (lambda x, y: ft.cross_entropy(x, y > 1), TypeError, "bool"),
        (
            lambda x, y: ft.linear_cross_entropy(x, x[0], y),
            ValueError,
            "linear_weight .* at least two dimensions",
        ),
        (lambda x, y: ft.linear_cross_entropy(x[0], x[None], y), ValueError, r"\(N, 5\) .*use input\[None\]"),
        (lambda x, y: ft.linear_cross_entropy(x[0], x[None], x[None]), ValueError, r"expected \(N, 5\)"),
        (lambda x, y: ft.linear_cross_entropy(x[None], x[None], y), ValueError, r"expected \(N, 5\)"),
        (lambda x, y: ft.linear_cross_entropy(x, x[None], y), ValueError, r"target has shape \(6,\)"),
        (
            lambda x, y: ft.linear_cross_entropy(x, x[None], y[:, None] * 0, linear_bias=x[:, :1]),
            ValueError,
            r"linear_bias has shape \(6, 1\); expected \(1, 6\)",
        ),
        (lambda x, y: ft.cross_entropy(x, y.double()), ValueError, r"target has shape.*use \.long\(\)"),
        (lambda x, y: ft.cross_entropy(x[0, 0], y[0]), ValueError, "^input is a scalar; expected at"),
        (lambda x, y: ft.cross_entropy(x[:, :0], y), ValueError, r"^input has shape \(6, 0\), no classes"),
        (lambda x, y: ft.focal_loss(x[:, :0], y), ValueError, r"^input has shape \(6, 0\), no classes"),
        (lambda x, y: ft.focal_loss(x[0, 0], y[0]), ValueError, "^input is a scalar; expected at least one"),
        (
            lambda x, y: ft.cross_entropy(x[:, :4, None], y[:4, None]),
            ValueError,
            r"\(6, 4, 1\) of the input without the class axis 1: use input\.movedim\(0, 1\) if the classes",
        ),
        (
            lambda x, y: ft.cross_entropy(y.float(), x.detach()),
            ValueError,
            "the shape of the input, or.*: the input comes first, then the target",
        ),
        (
            lambda x, y: ft.linear_cross_entropy(x, x.detach()[:4], y[:4]),
            ValueError,
            r"\(6, 4\) of the logits without the class axis 1$",
        ),
        (lambda x, y: ft.binary_cross_entropy_with_logits(x, x[:, :1].detach()), ValueError, "expand_as"),
        (
            lambda x, y: ft.binary_cross_entropy_with_logits(x, x.detach() * 0 + 2),
            ValueError,
            r"target\[0, 0\] is 2",
        ),
    ],
)
def test_bad_calls(call, error, text, x, y):
    with pytest.raises(error, match=text):
        call(x, y)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_by_name(layout, x, y):
    """PyTorch asks for a report of an internal error where it meets one that it does not know."""
    x = x.detach()
    nested = torch.nested.nested_tensor([x[:2], x[2:]], layout=layout)
    way = r"is a nested tensor; expected .*torch\.cat\({}\.unbind\(\)\), or .*{}\.to_padded_tensor"
    for name, call in (
        ("input", lambda: ft.cross_entropy(nested, y)),
        ("target", lambda: ft.cross_entropy(x, nested)),
        ("weight", lambda: ft.cross_entropy(x, y, weight=nested)),
        ("sample_weight", lambda: ft.focal_loss(x, y, sample_weight=nested)),
        ("input", lambda: ft.binary_cross_entropy_with_logits(nested, nested)),
        ("input", lambda: ft.linear_cross_entropy(nested, x, y)),
        ("linear_weight", lambda: ft.linear_cross_entropy(x, nested, y)),
        ("input", lambda: ft.softmax(nested, -1)),
        ("input", lambda: ft.logsumexp(nested, -1)),
    ):
        with pytest.raises(TypeError, match=f"^{name} " + way.format(name, name)):
            call()
    joined = ft.cross_entropy(torch.cat(nested.unbind()), y)
    assert joined == ft.cross_entropy(x, y)


def test_other_devices(monkeypatch, x, y):
    """There is none here: a tensor that says so."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 0)

    tensor = x.detach().as_subclass(Elsewhere)
    for call in (lambda: ft.cross_entropy(tensor, y), lambda: ft.softmax(tensor, 1)):
        with pytest.raises(TypeError, match=r"cuda:0.*CPU alone.*\.cpu\(\)"):
            call()


def test_meta_and_fake_tensors_have_shapes(x, y):
    assert ft.cross_entropy(x.to("meta"), y.to("meta")).shape == ()
    with pytest.raises(TypeError, match="weight is on meta, others are not; expected all on one device"):
        ft.cross_entropy(x, y, weight=torch.ones(x.shape[1], device="meta"))
    assert ft.cross_entropy(x.to("meta"), y.to("meta"), reduction="none").shape == (6,)
    half = x.detach().bfloat16()
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(half)
        assert ft.log_softmax(fake, 1).shape == (6, 5)
        assert ft.logsumexp(fake, 0).dtype == torch.bfloat16


# ---- Modules and threads -----------------------------------------------------------------------------


CRITERIA = {
    "CrossEntropyLoss": lambda: ft.CrossEntropyLoss(
        torch.arange(1.0, 6), ignore_index=2, reduction="sum", label_smoothing=0.1, z_loss=0.1, softcap=4.0
    ),
    "BCEWithLogitsLoss": lambda: ft.BCEWithLogitsLoss(pos_weight=torch.arange(1.0, 6)),
    "FocalLoss": lambda: ft.FocalLoss(1.5, torch.arange(1.0, 6), reduction="none"),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_modules(name, x, y):
    criterion = CRITERIA[name]()
    target = F.one_hot(y, 5).double() if name == "BCEWithLogitsLoss" else y
    expected = criterion(x, target)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(twin(x, target), expected)
        assert repr(twin) == repr(criterion)
    fresh = CRITERIA[name]()
    fresh.load_state_dict(criterion.state_dict())
    assert torch.equal(fresh(x, target), expected)
    assert isinstance(criterion, getattr(torch.nn, name, torch.nn.Module))


def test_threads(y):
    """As DataParallel calls a module, forward and backward, from threads of Python at once."""
    criterion, shape = ft.CrossEntropyLoss(), (3000, 50)
    inputs = [torch.randn(shape) for _ in range(6)]
    labels = torch.randint(shape[1], shape[:1])

    def grad_of(x):
        x = x.clone().requires_grad_()
        (criterion(x, labels) * 2).backward()
        return x.grad

    expected, got = [grad_of(x) for x in inputs], [None] * len(inputs)

    def work(k):
        for _ in range(3):
            got[k] = grad_of(inputs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_no_more_threads_than_torch(monkeypatch, x, y):
    asked = []
    monkeypatch.setattr(_kernels.kernels, "cross_entropy", lambda *args: asked.append(args[-1]) or 0.0)
    before = fastce.get_num_threads()
    fastce.set_num_threads(2)
    try:
        for n in (1, 2, 3):
            monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
            ft.cross_entropy(x.detach(), y)
    finally:
        fastce.set_num_threads(before)
    assert asked == [1, None, None]


@pytest.mark.once
def test_nothing_else_imports_it():
    python("import fastce, fastce.reference, sys\nassert not {'torch', 'fastce.torch'} & set(sys.modules)")
