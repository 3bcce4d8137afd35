"""What each function computes, tensors in and out: the loss, and behind it the gradients that are asked for.

These are the bodies of the operators, whose schemas are their annotations, and what eager calls run. Each
takes what of its inputs has a gradient first, and ends with ``needs``: for which of those it is wanted. The
others are None here, and empty in what the operators return.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastce
from fastce import _kernels
from fastce.torch._tensors import (
    array_like,
    as_array,
    as_options,
    as_tensor,
    as_widened,
    n_threads,
)

Made = tuple[Tensor | None, ...]

SCALED_CLASSES = 128  # up to so many, or of any that lie apart, kernels keep float32 rows within LEAST_WEIGHT


def class_axis(t: Tensor) -> int:
    """PyTorch's: the second, or the only one."""
    return 1 if t.ndim > 1 else 0


def _loss(value: float | NDArray, dtype: torch.dtype) -> Tensor:
    if type(value) is float:
        return torch.scalar_tensor(value, dtype=dtype)
    return as_tensor(np.asarray(value)).to(dtype)


def _computed(
    kernel: Callable[..., Any], input: Tensor, target: Tensor, options: tuple, dtype: torch.dtype, need: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss and, if it is needed, its gradient: new, and with the strides that the operators announce."""
    logits, targets = as_array(input), as_array(target)
    if not need:
        return _loss(kernel(0, logits, targets, *options), dtype), None
    out = None if input.is_contiguous() else array_like(input, logits)
    value, grad = kernel(1, logits, targets, *options, out)
    return _loss(value, dtype), as_tensor(grad)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    softcap: float | None,
    reduction: str,
    normalizer: float | None,
    dtype: torch.dtype,
    needs: list[bool],
) -> Made:
    axis, w, s = class_axis(input), as_options(weight), as_options(sample_weight)
    of_logits = (ignore_index, label_smoothing, z_loss, temperature, softcap, reduction, normalizer)
    options = (axis, w, s, *of_logits, n_threads())
    loss, grad = _computed(_kernels.kernels.cross_entropy, input, target, options, dtype, needs[0])
    if not needs[1]:
        return loss, grad, None
    return loss, grad, _grad_by_target(input, target, *options)


def _grad_by_target(
    input: Tensor,
    target: Tensor,
    axis: int,
    weight: NDArray | None,
    sample_weight: NDArray | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    softcap: float | None,
    reduction: str,
    normalizer: float | None,
    n_threads: int | None,
) -> Tensor:
    """Of target probabilities: minus the log-probabilities, times the factors of their terms."""
    x = input.to(torch.promote_types(input.dtype, target.dtype))
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    result = softmax(x / temperature, axis, True).mul_(label_smoothing - 1)
    if weight is not None:
        shape = [-1 if dim == axis else 1 for dim in range(x.ndim)]
        result *= torch.from_numpy(weight).reshape(shape)
    rows = x.numel() // max(x.shape[axis], 1)
    if sample_weight is not None:
        result *= torch.from_numpy(sample_weight).unsqueeze(axis)
        rows = float(sample_weight.sum(dtype=np.float64))
    if reduction == "mean":
        result /= rows if normalizer is None else normalizer
    return torch.empty_like(target).copy_(result)


def focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    gamma: float,
    ignore_index: int,
    reduction: str,
    normalizer: float | None,
    dtype: torch.dtype,
    needs: list[bool],
) -> Made:
    axis, w, s = class_axis(input), as_options(weight), as_options(sample_weight)
    options = (gamma, axis, w, s, ignore_index, reduction, normalizer, n_threads())
    return *_computed(_kernels.kernels.focal_loss, input, target, options, dtype, needs[0]), None


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    normalizer: float | None,
    dtype: torch.dtype,
    needs: list[bool],
) -> Made:
    w, v = (None if t is None else as_array(t) for t in (weight, pos_weight))
    kernel, options = _kernels.elementwise.binary_cross_entropy_with_logits, (w, v, reduction, normalizer)
    loss, grad = _computed(kernel, input, target, (*options, n_threads()), dtype, needs[0])
    target_grad = None
    if needs[1]:  # -w (v log sigmoid(x) - log sigmoid(-x))
        target_grad = -input.detach()
        if pos_weight is not None:
            target_grad += (1 - pos_weight) * torch.nn.functional.logsigmoid(input.detach())
        if weight is not None:
            target_grad *= weight
        if reduction == "mean":
            target_grad /= input.numel() if normalizer is None else normalizer
        target_grad = torch.empty_like(target).copy_(target_grad)
    return loss, grad, target_grad


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    softcap: float | None,
    reduction: str,
    normalizer: float | None,
    memory: int,
    dtype: torch.dtype,
    needs: list[bool],
) -> Made:
    named = {"input": input, "linear_weight": linear_weight, "linear_bias": linear_bias}
    x, w, b = (None if t is None else as_widened(t) for t in named.values())
    arguments = (x, w, as_widened(target))
    options = {
        "linear_bias": b,
        "weight": as_options(weight),
        "sample_weight": as_options(sample_weight),
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "temperature": temperature,
        "softcap": softcap,
        "reduction": reduction,
        "normalizer": normalizer,
        "memory": memory,
        "n_threads": n_threads(),
    }
    if True not in needs:
        return _loss(fastce.linear_cross_entropy(*arguments, **options), dtype), None, None, None
    wrt = tuple(name for name, need in zip(named, needs, strict=True) if need)
    out = [
        array_like(t, a) if need else None
        for t, a, need in zip(named.values(), (x, w, b), needs, strict=True)
    ]
    value, grads = fastce.linear_cross_entropy_and_grad(*arguments, **options, wrt=wrt, out=out)
    return _loss(value, dtype), *(None if grad is None else as_tensor(grad) for grad in grads)


# ---- What becomes of a gradient in backward --------------------------------------------------------------


def no_second_derivative() -> NotImplementedError:
    return NotImplementedError(
        "the losses of fastce.torch have first derivatives only; for a second one (a Hessian, a gradient "
        "penalty) use the same function of torch.nn.functional"
    )


def scaled(grad: Tensor, factor: Tensor, in_place: bool, is_known: bool = True) -> Tensor:
    """The gradient of a loss, times that by the loss: a number, one for each row, or one for each element.

    A row that is ignored has no gradient, whatever its factor. One in a batch of factors is not known.
    """
    if factor.ndim < grad.ndim:
        total = (factor.sum() if factor.ndim else factor).item() if is_known else math.nan
        if total == 1 and not factor.ndim and in_place:
            return grad
        if factor.ndim:
            factor = factor.unsqueeze(1)
        if not math.isfinite(total):
            factor = torch.where((grad == 0).all(class_axis(grad), keepdim=True), 0, factor)
    return grad.mul_(factor) if in_place else (grad * factor).to(grad.dtype)


# ---- Softmax and its relatives, along one axis --------------------------------------------------------


def softmax(input: Tensor, dim: int, log: bool) -> Tensor:
    x = as_array(input)
    out = array_like(input, x)
    if x.size:
        _kernels.kernels.softmax(x, dim, out, n_threads(), log)
    return as_tensor(out)


def log_softmax_backward(grad: Tensor, output: Tensor, dim: int) -> Tensor:
    """grad - softmax * sum(grad): the gradient of a cross-entropy whose target is minus `grad`.

    One gradient a row, as from a `nll_loss`, is a one-hot target, for which the kernels don't cancel. Small
    ones, as of a mean over many rows, are scaled by a power of two on their way: see LEAST_WEIGHT in the
    kernels.
    """
    log_p, scale = as_array(output), 1.0
    out = array_like(output, log_p)
    if log_p.size:
        is_few = log_p.shape[dim] <= SCALED_CLASSES or output.stride(dim) != 1
        if is_few and output.dtype != torch.float64:
            largest = max(map(abs, map(float, torch.aminmax(grad))))
            if 0 < largest < 1:
                scale = 2.0 ** min(-math.frexp(largest)[1], 30)
        _kernels.kernels.log_softmax_backward(as_array(grad), log_p, dim, out, n_threads(), scale)
    return as_tensor(out)


def logsumexp(input: Tensor, dim: int) -> Tensor:
    x = as_array(input)
    if not x.shape[dim]:
        return torch.full((*input.shape[:dim], *input.shape[dim + 1 :]), -torch.inf, dtype=input.dtype)
    value, _ = _kernels.kernels.logsumexp(x, dim, None, n_threads())
    return as_tensor(np.asarray(value)).to(input.dtype)
