"""Gradients of calls that are not compiled: made with the loss, handed out by backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastce import _kernels
from fastce._kernels.entry.tensors import PlainTensors
from fastce.torch import _losses, _operators
from fastce.torch._losses import no_second_derivative, scaled
from fastce.torch._tensors import is_eager, no_forward_mode

_plain = PlainTensors(torch, _kernels)


class NoSecondDerivative(torch.autograd.Function):
    """A gradient, in a graph that leads through other tensors and refuses to be walked."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *through: Tensor | None) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise no_second_derivative()


class Made(torch.autograd.Function):
    """A loss whose gradients were made with it.

    They are results as well, which nobody sees: saved as such they know the graph that leads to them, and the
    loss may be written over. A backward pass that keeps the graph hands out products of its own; the last one
    hands out the memory itself, which nobody else holds then: a leaf takes it as its `grad`, uncopied.
    """

    @staticmethod
    def forward(ctx: Any, made: tuple[Tensor, ...], *_: Tensor) -> tuple[Tensor, ...]:
        # set_materialize_grads and save_for_backward, which take half a microsecond to do this.
        ctx.materialize_grads, ctx.to_save = False, made[1:]
        return made

    @staticmethod
    def backward(ctx: Any, factor: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        made = ctx.saved_tensors
        if factor is None:
            return None, *[None for _ in made]
        is_known = _plain.is_eager(factor)
        if torch.is_grad_enabled():
            again = NoSecondDerivative.apply
            return None, *[again(scaled(grad, factor, False, is_known), grad) for grad in made]
        in_place = _plain.is_last(factor)
        return None, *[scaled(grad.detach(), factor, in_place, is_known) for grad in made]


class RowLosses(torch.autograd.Function):
    """Losses of the rows of a linear layer, with gradients made in backward, which has each row's factor."""

    @staticmethod
    def forward(
        ctx: Any, made_of: tuple, others: tuple, of_logits: tuple, memory: int, dtype: torch.dtype, *_: Tensor
    ) -> Tensor:
        rest = (*of_logits, "none", None, memory, dtype, [False] * len(made_of))
        loss, *_ = _losses.linear_cross_entropy(*made_of, *others, *rest)
        ctx.save_for_backward(*made_of, *others)
        ctx.options = of_logits, memory
        return loss

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        *made_of, target, weight, sample_weight = ctx.saved_tensors
        of_logits, memory = ctx.options
        needs = list(ctx.needs_input_grad[5:])
        with torch.no_grad():
            factor = factor.to(torch.promote_types(made_of[0].dtype, torch.float32))
            sample_weight = factor if sample_weight is None else factor * sample_weight
            way = _losses if _plain.is_eager(factor) else _operators  # which take batches of factors, too
            _, *grads = way.linear_cross_entropy(
                *made_of,
                *(target, weight, sample_weight),
                *(*of_logits, "sum", None, memory, torch.float64),
                needs,
            )
        grads = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
        if torch.is_grad_enabled():
            again = NoSecondDerivative.apply
            grads = [grad if grad is None else again(grad, *made_of) for grad in grads]
        return *(None,) * 5, *grads


def _no_forward_mode(ctx: Any, *tangents: Any) -> None:
    raise no_forward_mode()


class Transformed(torch.autograd.Function):
    """The same under transforms of torch.func, which see loss and gradients as results of one function."""

    generate_vmap_rule = True
    jvp = staticmethod(_no_forward_mode)

    @staticmethod
    def forward(operator: Callable, *args: Any) -> tuple[Tensor, ...]:
        return operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)
        ctx.needs, ctx.n_inputs = inputs[-1], len(inputs)

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        loss, *made = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * ctx.n_inputs
        for k, (grad, need) in enumerate(zip(made, ctx.needs, strict=False), start=1):
            if need:
                product = scaled(grad, factor, in_place=False, is_known=False)
                grads[k] = NoSecondDerivative.apply(product, loss)
        return tuple(grads)


class Softmax(torch.autograd.Function):
    """Softmax or its logarithm under transforms of torch.func; both can be differentiated again."""

    generate_vmap_rule = True
    jvp = staticmethod(_no_forward_mode)

    @staticmethod
    def forward(input: Tensor, dim: int, log: bool) -> Tensor:
        return (_losses if is_eager(input) else _operators).softmax(input, dim, log)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output)
        _, ctx.dim, ctx.log = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        if not ctx.log:
            return torch._softmax_backward_data(grad, output, ctx.dim, output.dtype), None, None
        if not _plain.is_eager(grad):
            return grad - output.exp() * grad.sum(ctx.dim, keepdim=True), None, None
        return _losses.log_softmax_backward(grad, output, ctx.dim), None, None


class LogSumExp(torch.autograd.Function):
    """Its gradient is a softmax, made when it is asked for."""

    generate_vmap_rule = True
    jvp = staticmethod(_no_forward_mode)

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return (_losses if is_eager(input) else _operators).logsumexp(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, ctx.dim = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (input,) = ctx.saved_tensors
        if grad.ndim < input.ndim:
            grad = grad.unsqueeze(ctx.dim)
        if not _plain.is_eager(grad):
            return Softmax.apply(input, ctx.dim, False) * grad, None
        return _losses.softmax(input, ctx.dim, False).mul_(grad), None


class MadeSoftmax(torch.autograd.Function):
    """A result of theirs that is there already, and whether it is the logarithm; None: that of the sum."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, dim: int, made: tuple[Tensor, bool | None]) -> Tensor:
        result, ctx.log = made
        ctx.dim, ctx.to_save = dim, (input if ctx.log is None else result,)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (LogSumExp if ctx.log is None else Softmax).backward(ctx, grad)[0], None, None


def _eager_apply(function: type[torch.autograd.Function]) -> Callable:
    """Function.apply looks for transforms, and at signatures, first: which calls that are eager need not."""
    return super(torch.autograd.function.Function, function).apply


attach, attach_rows, attach_softmax = map(_eager_apply, (Made, RowLosses, MadeSoftmax))
