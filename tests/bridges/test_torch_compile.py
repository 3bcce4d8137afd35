"""fastce.torch where calls are compiled, exported or transformed: the operators of torch.library."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastce[torch]'")
import fastce.torch as ft  # noqa: E402
from fastce.torch import _operators  # noqa: E402

F = torch.nn.functional
pytestmark = [pytest.mark.once, pytest.mark.slow]  # the kernels are tested elsewhere

Y = torch.tensor([0, 4, 2, 1, 3, 2])
Q = torch.rand(6, 5, dtype=torch.float64, generator=torch.manual_seed(1))
PAIRS = {
    "cross_entropy": (lambda x: ft.cross_entropy(x, Y), lambda x: F.cross_entropy(x, Y)),
    "row losses": (
        lambda x: ft.cross_entropy(x, Y, reduction="none"),
        lambda x: F.cross_entropy(x, Y, reduction="none"),
    ),
    "probabilities": (
        lambda x: ft.cross_entropy(x, Q.to(x.dtype), label_smoothing=0.1),
        lambda x: F.cross_entropy(x, Q.to(x.dtype), label_smoothing=0.1),
    ),
    "focal_loss": (lambda x: ft.focal_loss(x, Y, 0.0), lambda x: F.cross_entropy(x, Y)),
    "binary": (
        lambda x: ft.binary_cross_entropy_with_logits(x, Q.to(x.dtype), reduction="none"),
        lambda x: F.binary_cross_entropy_with_logits(x, Q.to(x.dtype), reduction="none"),
    ),
    "linear": (
        lambda x: ft.linear_cross_entropy(x, Q.to(x.dtype) - 0.5, Y % 6),
        lambda x: F.linear_cross_entropy(x, Q.to(x.dtype) - 0.5, Y % 6),
    ),
    "linear, row losses": (
        lambda x: ft.linear_cross_entropy(x, Q.to(x.dtype) - 0.5, Y % 6, reduction="none"),
        lambda x: F.linear_cross_entropy(x, Q.to(x.dtype) - 0.5, Y % 6, reduction="none"),
    ),
    "softmax": (lambda x: ft.softmax(x, 0), lambda x: F.softmax(x, 0)),
    "log_softmax": (lambda x: ft.log_softmax(x, 1), lambda x: F.log_softmax(x, 1)),
    "logsumexp": (lambda x: ft.logsumexp(x, (0, 1)), lambda x: torch.logsumexp(x, (0, 1))),
}
both = pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)


@pytest.fixture
def x():
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def value_and_grad(function, x):
    value = function(x)
    return value, torch.autograd.grad(value, x, torch.ones_like(value) * 0.5)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@both
def test_compiled(ours, theirs, dtype, x):
    """Without a break in the graph. PyTorch rounds losses of bfloat16 on the way: ours stand for them."""
    x = x.detach().to(dtype).requires_grad_()
    compiled = torch.compile(lambda x: ours(x * 2) * 3, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        value_and_grad(compiled, x), value_and_grad(lambda x: ours(x * 2) * 3, x), strict=True
    ):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        expected = ours if dtype is torch.bfloat16 else theirs
        torch.testing.assert_close(compiled(x), expected(x * 2) * 3)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_compiled_for_any_dimension(name, dynamic, x):
    function = getattr(ft, name)
    compiled = torch.compile(
        lambda x, dim: function(x, dim), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for dim in (0, 1, -1, -2):
        got = value_and_grad(lambda x, dim=dim: compiled(x, dim), x)
        expected = value_and_grad(lambda x, dim=dim: getattr(torch, name)(x, dim), x)
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore")  # of what the compiler imports
def test_compiled_training_step():
    """By inductor, for batches of any size, with autocast: one graph."""
    layer, criterion = torch.nn.Linear(10, 5), ft.CrossEntropyLoss(label_smoothing=0.1)

    def step(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return criterion(layer(x), y)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n in (4, 9, 17):
        x, y = torch.randn(n, 10), torch.randint(5, (n,))
        layer.zero_grad()
        loss = compiled(x, y)
        loss.backward()
        grad = layer.weight.grad.clone()
        layer.zero_grad()
        expected = step(x, y)
        expected.backward()
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)  # bfloat16 logits, fused or not
        torch.testing.assert_close(grad, layer.weight.grad, rtol=5e-2, atol=1e-2)


def test_exported(x):
    program = torch.export.export(ft.CrossEntropyLoss(), (x.detach(), Y))
    assert "torch.ops.fastce.cross_entropy" in program.graph_module.code
    assert torch.equal(program.module()(x.detach(), Y), ft.cross_entropy(x.detach(), Y))


def leaf(t):
    return t.detach().clone().requires_grad_()


OPERANDS = {
    "cross_entropy": lambda x: (leaf(x), Y, None, None, -100, 0.0, 0.0, 1.0, None, "mean"),
    "cross_entropy, row losses of a transposed one": lambda x: (
        x.detach().T.requires_grad_(),
        Y[:5] % 5,
        x[:, 0].detach(),
        None,
        *(-100, 0.1, 0.0, 1.0, None, "none"),
    ),
    "cross_entropy of probabilities": lambda x: (
        leaf(x),
        leaf(Q),
        None,
        None,
        -100,
        0.0,
        0.0,
        1.0,
        3.0,
        "sum",
    ),
    "focal_loss": lambda x: (leaf(x), Y, None, None, 2.0, -100, "none"),
    "linear_cross_entropy": lambda x: (
        leaf(x),
        leaf(Q),
        None,
        Y,
        None,
        None,
        -100,
        0.0,
        0.0,
        1.0,
        None,
        "mean",
    ),
    "binary_cross_entropy_with_logits": lambda x: (leaf(x), leaf(Q), None, Q[0], "none"),
    "binary_cross_entropy_with_logits, transposed": lambda x: (
        x.detach().T.requires_grad_(),
        Q.T.detach().requires_grad_(),
        *(None, None, "none"),
    ),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_opcheck(name, x):
    given = OPERANDS[name](x)
    linear = name.startswith("linear")
    needs = [t is not None and t.requires_grad for t in given[: 3 if linear else 2]]
    operator = getattr(_operators, name.split(",")[0].split()[0])
    rest = (None, 2**20) if linear else (None,)
    torch.library.opcheck(operator, (*given, *rest, torch.float64, needs))


@pytest.mark.parametrize(
    ("operator", "operands"),
    [
        ("softmax", lambda x: (leaf(x), 1, False)),
        ("softmax", lambda x: (leaf(x.T), 0, True)),
        ("log_softmax_backward", lambda x: (leaf(x), leaf(Q.log_softmax(1)), 1)),
        ("logsumexp", lambda x: (leaf(x), 0)),
        ("_scaled", lambda x: (x.detach(), Q[0, 0], Q[1, 1])),
        ("softmax", lambda x: (leaf(x[:5, :0, None].expand(5, 0, 0)), 1, False)),
        ("softmax", lambda x: (leaf(x[:0]), 0, True)),
        ("logsumexp", lambda x: (leaf(x[:0]), 1)),
    ],
)
def test_opcheck_of_the_softmax_family(operator, operands, x):
    torch.library.opcheck(getattr(_operators, operator), operands(x))


def test_an_operator_does_not_leave_out_a_gradient(x):
    given = OPERANDS["cross_entropy"](x)
    loss = _operators.cross_entropy(*given, None, torch.float64, [False, False])[0]
    with pytest.raises(RuntimeError, match="gradient by input 0 was not asked for"):
        loss.backward()


@both
def test_transforms(ours, theirs, x):
    """grad, vmap of grad, grad of vmap, Jacobians."""
    x = x.detach()
    summed = [lambda x, f=f: f(x).sum() for f in (ours, theirs)]
    for transform in (
        torch.func.grad,
        torch.func.jacrev,
        lambda f: lambda x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, 2 * x, -x])),
        lambda f: lambda x: torch.func.vmap(f, in_dims=2)(torch.stack([x, 2 * x, -x], dim=2)),
        lambda f: torch.func.grad(lambda x: torch.func.vmap(f)(torch.stack([x, 2 * x])).sum()),
    ):
        got, expected = (transform(f)(x) for f in summed)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["cross_entropy", "row losses", "binary", "linear", "softmax", "logsumexp"])
def test_vmap_of_no_samples(name, x):
    none, one = x.detach()[None][:0], x.detach()[None]
    for transform in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).sum()))):
        call = transform(PAIRS[name][0])
        assert call(none).shape == call(one)[:0].shape
    nested = torch.func.vmap(torch.func.vmap(PAIRS[name][0]))
    assert nested(none.expand(2, 0, 6, 5)).shape == nested(one.expand(2, 1, 6, 5))[:, :0].shape


def test_gradients_of_each_sample():
    layer = torch.nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x, y, function):
        return function(torch.func.functional_call(layer, parameters, (x,)), y)

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, None))
    got, expected = each(parameters, x, y, ft.cross_entropy), each(parameters, x, y, F.cross_entropy)
    torch.testing.assert_close(got, expected)


def test_second_derivatives(x):
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.func.grad(lambda x: torch.func.grad(PAIRS["cross_entropy"][0])(x).sum())(x.detach())
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: ft.logsumexp(x, 0).sum()))
    expected = torch.func.jacrev(torch.func.jacrev(lambda x: torch.logsumexp(x, 0).sum()))
    torch.testing.assert_close(hessian(x.detach()), expected(x.detach()))


def test_many_gradients_in_one_backward(x):
    """is_grads_batched: PyTorch hands backward all of them at once."""
    factors = torch.eye(6, dtype=torch.float64)
    for retained in (True, False):
        losses = ft.cross_entropy(x, Y, reduction="none")
        (got,) = torch.autograd.grad(losses, x, factors, is_grads_batched=True, retain_graph=retained)
        losses = F.cross_entropy(x, Y, reduction="none")
        (expected,) = torch.autograd.grad(losses, x, factors, is_grads_batched=True)
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own call of it
@pytest.mark.parametrize("name", ["cross_entropy", "log_softmax", "logsumexp"])
def test_forward_mode_says_that_it_is_missing(name, x):
    function, forward_ad = PAIRS[name][0], torch.autograd.forward_ad
    with pytest.raises(NotImplementedError, match=r"use torch\.nn\.functional"):
        torch.func.jvp(function, (x.detach(),), (x.detach(),))
    for given in (x.detach(), x):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
            function(forward_ad.make_dual(given, given.detach()))
    with forward_ad.dual_level():
        assert torch.equal(function(x), function(x.detach()))
