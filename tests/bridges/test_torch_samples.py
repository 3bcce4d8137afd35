"""PyTorch's own samples of these functions and modules, OpInfo and ModuleInfo: values and gradients are its.

What differs stands in docs/torch.md, and here as what is left out, or as another answer that is checked.
"""

import warnings

import pytest
from hypothesis import settings

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastce[torch-tests]'")
pytest.importorskip("expecttest", reason="torch's samples need it: pip install 'fastce[torch-tests]'")

with warnings.catch_warnings():  # of what torch's tests import
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db
settings.load_profile("fastce")  # the import has loaded one of PyTorch's

import fastce.torch as ft  # noqa: E402

F = torch.nn.functional

FUNCTIONS = {
    "nn.functional.cross_entropy": (F.cross_entropy, ft.cross_entropy),
    "nn.functional.binary_cross_entropy_with_logits": (
        F.binary_cross_entropy_with_logits,
        ft.binary_cross_entropy_with_logits,
    ),
    "nn.functional.linear_cross_entropy": (F.linear_cross_entropy, ft.linear_cross_entropy),
    "softmax": (F.softmax, ft.softmax),
    "log_softmax": (F.log_softmax, ft.log_softmax),
    "logsumexp": (torch.logsumexp, ft.logsumexp),
}
pytestmark = [pytest.mark.once, pytest.mark.slow]  # of levels other tests know
HALVES = (torch.float16, torch.bfloat16)
SAMPLED = [op for op in op_db if op.name in FUNCTIONS]
MODULES = {
    "nn.CrossEntropyLoss": ft.CrossEntropyLoss,
    "nn.BCEWithLogitsLoss": ft.BCEWithLogitsLoss,
    "nn.LinearCrossEntropyLoss": ft.LinearCrossEntropyLoss,
}
CRITERIA = [module for module in module_db if module.name in MODULES]


def leaves(value):
    """The same arguments, whose tensors have gradients of their own."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: leaves(each) for key, each in value.items()}
    return tuple(map(leaves, value)) if isinstance(value, tuple) else value


def tensors_of(*values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, dict)):
            yield from tensors_of(*(value.values() if isinstance(value, dict) else value))


def answers(function, input, args, kwargs):
    """The value and the gradients by all tensors that ask for one."""
    input, args, kwargs = leaves(input), leaves(args), leaves(kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that PyTorch has deprecated are among the samples
        value = function(input, *args, **kwargs)
    asked = [t for t in tensors_of(input, args, kwargs) if t.requires_grad]
    if not value.requires_grad:
        return value, [None] * len(asked)
    factor = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape).to(value.dtype)
    return value, torch.autograd.grad(value, asked, factor, allow_unused=True)


def widened(value):
    """The same arguments in float64."""
    if isinstance(value, torch.Tensor):
        asked = value.requires_grad
        return value.detach().double().requires_grad_(asked) if value.dtype in HALVES else value
    if isinstance(value, dict):
        return {key: widened(each) for key, each in value.items()}
    if isinstance(value, torch.dtype):
        return torch.float64 if value in HALVES else value
    return tuple(map(widened, value)) if isinstance(value, tuple) else value


def assert_close(got, expected, exact):
    """To PyTorch's own tolerances; a half no further from float64's than PyTorch's, but for its rounding."""
    if expected is None:
        assert got is None
        return
    if got.dtype not in HALVES:
        torch.testing.assert_close(got, expected, equal_nan=True)
        return
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    error, their_error = ((a.double() - exact).abs() for a in (got, expected))
    allowed = torch.finfo(got.dtype).eps * exact.abs() + torch.finfo(got.dtype).smallest_normal
    allowed = allowed + their_error.nan_to_num().max() if got.numel() else allowed
    right = (error <= allowed) | (got.double() == exact) | (got.isnan() & exact.isnan())
    assert right.all(), (got, expected)


def check(ours, theirs, input, args, kwargs):
    value, grads = answers(ours, input, args, kwargs)
    their_value, their_grads = answers(theirs, input, args, kwargs)
    plain = {name: given for name, given in kwargs.items() if name != "options"}  # how to accumulate halves
    exact_value, exact_grads = answers(theirs, widened(input), widened(args), widened(plain))
    assert_close(value, their_value, exact_value)
    assert len(grads) == len(their_grads) == len(exact_grads)
    for gradients in zip(grads, their_grads, exact_grads, strict=True):
        assert_close(*gradients)


@pytest.mark.parametrize("op", SAMPLED, ids=lambda op: f"{op.name} {op.variant_test_name}".strip())
def test_functions(op):
    theirs, ours = FUNCTIONS[op.name]
    n_samples = 0
    for dtype in op.supported_dtypes("cpu"):
        differentiable = dtype in op.supported_backward_dtypes("cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of complex halves
            samples = list(op.sample_inputs("cpu", dtype, requires_grad=differentiable))
        for sample in samples:
            check(ours, theirs, sample.input, sample.args, sample.kwargs)
            n_samples += 1
    assert n_samples >= 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", CRITERIA, ids=lambda info: info.name)
def test_modules(info, dtype):
    n_samples = 0
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True):
        made, given = sample.constructor_input, sample.forward_input
        theirs, ours = (cls(*made.args, **made.kwargs) for cls in (info.module_cls, MODULES[info.name]))
        assert repr(ours) == repr(theirs)
        ours.load_state_dict(theirs.state_dict())
        input, *args = given.args
        check(ours, theirs, input, tuple(args), given.kwargs)
        n_samples += 1
    assert n_samples >= 6
