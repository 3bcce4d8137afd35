"""The same functions as operators of torch.library: what compiled, exported and transformed calls see.

They are ``torch.ops.fastce.cross_entropy`` and so on, and not meant to be called: the functions of
`fastce.torch` know what to ask them for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastce.torch import _losses
from fastce.torch._losses import no_second_derivative, scaled


def _moved(t: Tensor, dim: int | None, size: int) -> Tensor:
    """With the dimension that vmap hides in front."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _sample(i: int, argument: Any, dim: int | None) -> Any:
    """Of no samples: zeros that have the shape of one."""
    if not isinstance(dim, int):
        return argument
    return argument.select(dim, i) if argument.shape[dim] else argument.sum(dim)


def _vmap_one_by_one(operator: Callable) -> None:
    """One call after the other: each has a loss of its own, and with it a mean of its own."""

    @operator.register_vmap
    def _(info: Any, in_dims: tuple, *args: Any) -> tuple:
        n = info.batch_size
        each = [operator(*map(partial(_sample, i), args, in_dims)) for i in range(max(n, 1))]
        if isinstance(each[0], Tensor):
            return torch.stack(each)[:n], 0
        return tuple(torch.stack(results)[:n] for results in zip(*each, strict=True)), (0,) * len(each[0])


@torch.library.custom_op("fastce::scaled", mutates_args=())
def _scaled(grad: Tensor, factor: Tensor, loss: Tensor) -> Tensor:
    """The product of a loss's gradient and a factor, in a graph that leads through the loss."""
    return scaled(grad, factor, in_place=False)


@_scaled.register_fake
def _(grad: Tensor, factor: Tensor, loss: Tensor) -> Tensor:
    return torch.empty_like(grad)


def _refuse(ctx: Any, second: Tensor) -> None:
    raise no_second_derivative()


_scaled.register_autograd(_refuse)
_vmap_one_by_one(_scaled)


def _loss_operator(
    compute: Callable[..., tuple], losses_like: Callable[[Tensor], list[int]], n_grads: int = 2
) -> Callable:
    """A loss and `n_grads` gradients by the first inputs; those that are not needed are empty.

    `losses_like`: the shape of the losses that ``reduction='none'`` leaves, given that of the first input.
    """
    signature = inspect.signature(compute, eval_str=True)
    reduction_at = list(signature.parameters).index("reduction")

    def run(*args: Any) -> tuple[Tensor, ...]:
        loss, *grads = compute(*args)
        return loss.contiguous(), *(args[0].new_empty(0) if grad is None else grad for grad in grads)

    run.__signature__ = signature.replace(return_annotation=tuple[(Tensor,) * (n_grads + 1)])
    operator = torch.library.custom_op(f"fastce::{compute.__name__}", run, mutates_args=())
    _vmap_one_by_one(operator)

    @operator.register_fake
    def _(*args: Any) -> tuple[Tensor, ...]:
        input, dtype, needs = args[0], args[-2], args[-1]
        shape = losses_like(input) if args[reduction_at] == "none" else []
        grads = [
            torch.empty_like(t) if need else input.new_empty(0) for t, need in zip(args, needs, strict=False)
        ]
        return input.new_empty(shape, dtype=dtype), *grads

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)
        ctx.needs, ctx.n_inputs = inputs[-1], len(inputs)

    def backward(ctx: Any, factor: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        loss, *made = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * ctx.n_inputs
        for k, grad in enumerate(made):
            if factor is not None and ctx.needs_input_grad[k]:
                if not ctx.needs[k]:
                    raise RuntimeError(
                        f"the gradient by input {k} was not asked for: call the function of fastce.torch"
                    )
                grads[k] = _scaled(grad, factor, loss)
        return tuple(grads)

    operator.register_autograd(backward, setup_context=setup_context)
    return operator


def _without_classes(input: Tensor) -> list[int]:
    axis = _losses.class_axis(input)
    return [n for dim, n in enumerate(input.shape) if dim != axis]


cross_entropy = _loss_operator(_losses.cross_entropy, _without_classes)
focal_loss = _loss_operator(_losses.focal_loss, _without_classes)
binary_cross_entropy_with_logits = _loss_operator(
    _losses.binary_cross_entropy_with_logits, lambda input: list(input.shape)
)
linear_cross_entropy = _loss_operator(_losses.linear_cross_entropy, lambda input: list(input.shape[:-1]), 3)


# ---- Softmax and its relatives -------------------------------------------------------------------------

softmax = torch.library.custom_op("fastce::softmax", _losses.softmax, mutates_args=())
log_softmax_backward = torch.library.custom_op(
    "fastce::log_softmax_backward", _losses.log_softmax_backward, mutates_args=()
)
logsumexp = torch.library.custom_op("fastce::logsumexp", _losses.logsumexp, mutates_args=())


@softmax.register_fake
def _(input: Tensor, dim: int, log: bool) -> Tensor:
    return torch.empty_like(input)


@softmax.register_vmap
def _(info: Any, in_dims: tuple, input: Tensor, dim: int, log: bool) -> tuple[Tensor, int]:
    return softmax(_moved(input, in_dims[0], info.batch_size), dim + 1, log), 0


@log_softmax_backward.register_fake
def _(grad: Tensor, output: Tensor, dim: int) -> Tensor:
    return torch.empty_like(output)


@log_softmax_backward.register_vmap
def _(info: Any, in_dims: tuple, grad: Tensor, output: Tensor, dim: int) -> tuple[Tensor, int]:
    moved = (_moved(t, d, info.batch_size) for t, d in zip((grad, output), in_dims, strict=False))
    return log_softmax_backward(*moved, dim + 1), 0


@logsumexp.register_fake
def _(input: Tensor, dim: int) -> Tensor:
    return input.new_empty((*input.shape[:dim], *input.shape[dim + 1 :]))


@logsumexp.register_vmap
def _(info: Any, in_dims: tuple, input: Tensor, dim: int) -> tuple[Tensor, int]:
    return logsumexp(_moved(input, in_dims[0], info.batch_size), dim + 1), 0


def _save_output(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(output)
    _, ctx.dim, ctx.log = inputs


def _backward_of_softmax(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (output,) = ctx.saved_tensors
    if ctx.log:
        return log_softmax_backward(grad, output, ctx.dim), None, None
    return torch._softmax_backward_data(grad, output, ctx.dim, output.dtype), None, None


def _save_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_log_softmax_backward(ctx: Any, second: Tensor) -> tuple[Tensor, Tensor, None]:
    grad, output = ctx.saved_tensors
    p = output.exp()
    by_grad = second - (second * p).sum(ctx.dim, keepdim=True)
    return by_grad, -second * p * grad.sum(ctx.dim, keepdim=True), None


def _backward_of_logsumexp(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (input,) = ctx.saved_tensors
    return softmax(input, ctx.dim, False) * grad.unsqueeze(ctx.dim), None


softmax.register_autograd(_backward_of_softmax, setup_context=_save_output)
log_softmax_backward.register_autograd(_backward_of_log_softmax_backward, setup_context=_save_inputs)
logsumexp.register_autograd(_backward_of_logsumexp, setup_context=_save_inputs)
