"""What is computed by a kernel gets there with its arguments in order, and is a function in all else."""

import copy
import inspect
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import fastce
from fastce import _kernels

pytestmark = pytest.mark.once

CALLS = sorted(name for name in fastce.__all__ if type(getattr(fastce, name)).__name__ == "Call")
SIGNATURES = {name: inspect.signature(getattr(fastce, name)).parameters for name in CALLS}


@pytest.fixture
def noted(monkeypatch):
    """The positional arguments that kernels are called with."""
    calls = []

    for module in ("kernels", "elementwise"):
        functions = {k: lambda *args: calls.append(args) for k in vars(getattr(_kernels, module))}
        monkeypatch.setattr(_kernels, module, SimpleNamespace(**functions))
    return calls


def test_all_losses_are_computed_by_a_kernel():
    assert {"cross_entropy", "nll_loss", "binary_focal_loss_and_grad", "logsumexp"} <= set(CALLS)
    assert len(CALLS) == 19


@pytest.mark.parametrize("name", CALLS)
def test_arguments_in_order(name, noted):
    function, parameters = getattr(fastce, name), SIGNATURES[name]
    values = {k: object() for k in parameters}
    positional = [k for k, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [k for k, p in parameters.items() if p.default is p.empty]
    usual = [values[k] if k in required else p.default for k, p in parameters.items()]

    function(*(values[k] for k in required))
    function(**{k: values[k] for k in required})
    function(
        *(values[k] for k in positional),
        **{k: values[k] for k in reversed(parameters) if k not in positional},
    )
    function(**{"".join(list(k)): values[k] for k in reversed(parameters)})  # names that are not interned
    first = noted[0][: len(noted[0]) - len(usual)]
    for got, expected in zip(
        noted, [usual, usual, list(values.values()), list(values.values())], strict=True
    ):
        assert got[: len(first)] == first
        assert all(a is b for a, b in zip(got[len(first) :], expected, strict=True))
    for k in set(parameters) - set(required):
        function(*(values[k] for k in required), **{k: values[k]})
        expected = [values[k] if n == k else a for n, a in zip(parameters, usual, strict=True)]
        assert all(a is b for a, b in zip(noted[-1][len(first) :], expected, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_has_the_same_arguments(name, noted, monkeypatch):
    asked = []
    for module in (_kernels.kernels, _kernels.elementwise):
        for k in list(vars(module)):
            monkeypatch.setitem(vars(module), k, lambda *args, k=k: asked.append(k))
    getattr(fastce, name)(*[None] * len([p for p in SIGNATURES[name].values() if p.default is p.empty]))
    monkeypatch.undo()
    kernel = getattr(_kernels.kernels, asked[0], None) or getattr(_kernels.elementwise, asked[0])
    theirs, ours = list(inspect.signature(kernel).parameters), list(SIGNATURES[name])
    first = int(theirs[0] in ("order", "log"))
    assert theirs[first : first + len(ours)] == ours


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_do_not_fit(name, noted):
    function = getattr(fastce, name)
    many = [None] * (1 + len(SIGNATURES[name]))
    for args, options, text in (
        ((), {}, "missing"),
        (many, {}, "positional argument"),
        ((1, 2), {"axes": 1}, "unexpected keyword argument 'axes'"),
        ((1, 2), {next(iter(SIGNATURES[name])): 1}, "multiple values for argument"),
    ):
        with pytest.raises(TypeError, match=rf"^{name}\(\).*{text}"):
            function(*args, **options)
    assert not noted


@pytest.mark.parametrize("name", CALLS)
def test_it_is_a_function(name):
    function = getattr(fastce, name)
    assert inspect.isroutine(function)
    assert isinstance(function, Callable)
    assert inspect.getfullargspec(function).kwonlydefaults == function.__kwdefaults__
    assert function.__name__ == function.__qualname__ == name
    assert repr(function) == f"<function {inspect.unwrap(function).__module__}.{name}>"
    assert "Parameters" in function.__doc__
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function


def test_as_a_method():
    class Model:
        softmax = fastce.softmax

        def __array__(self, dtype=None, copy=None):
            return np.zeros(2)

    assert Model().softmax().tolist() == [0.5, 0.5]
    assert Model.softmax is fastce.softmax


def test_called_by_its_slot():
    x = np.zeros(2)
    assert fastce.softmax.__call__(x, axis=0).tolist() == [0.5, 0.5]
    with pytest.raises(TypeError, match="axes"):
        fastce.softmax.__call__(x, axes=0)


def test_kernels_that_are_not_there(monkeypatch):
    monkeypatch.setattr(_kernels, "kernels", SimpleNamespace())
    with pytest.raises(AttributeError, match="cross_entropy"):
        fastce.cross_entropy(np.zeros((1, 2)), [0])


def test_errors_of_kernels_come_through():
    with pytest.raises(IndexError, match="expected a class index"):
        fastce.cross_entropy(np.zeros((1, 2)), [2])
