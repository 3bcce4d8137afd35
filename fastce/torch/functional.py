"""The losses of torch.nn.functional, with its signatures: what each means, and which way it is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import _reduction
from torch.nn import functional as F

from fastce import _kernels
from fastce._kernels.entry.tensors import PlainLosses
from fastce.linear.arguments import MEMORY
from fastce.torch import _losses, _operators
from fastce.torch._autograd import Transformed, attach, attach_rows
from fastce.torch._tensors import (
    HALVES,
    check_constant,
    check_floating,
    check_tangents,
    check_tensors,
    in_tensors,
    is_eager,
    transforms_active,
)

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "focal_loss",
    "linear_cross_entropy",
]


def _needs(*tensors: Tensor | None) -> list[bool]:
    """By which a gradient is wanted. Under a transform of torch.func a tensor does not know."""
    if not torch.is_grad_enabled():
        return [False] * len(tensors)
    if transforms_active():
        return [t is not None and (t.requires_grad or t.is_floating_point()) for t in tensors]
    return [t is not None and t.requires_grad for t in tensors]


def _check(
    compute: Callable[..., tuple],
    differentiable: tuple[Tensor | None, ...],
    others: tuple[Tensor | None, ...],
    options: tuple,
) -> None:
    """Refuse tensors, given as `compute` takes them, with which nothing is computed."""
    names = compute.__code__.co_varnames
    named = dict(zip(names, (*differentiable, *others), strict=False))
    check_tensors(compute, named)
    check_floating(named["input"])
    constants = dict(zip(names[len(named) - 2 :], (*others[-2:], *options), strict=False))
    check_constant(compute, {name: t for name, t in constants.items() if isinstance(t, Tensor)})
    input, target = named["input"], named["target"]
    if compute is _losses.binary_cross_entropy_with_logits and target.shape != input.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected {tuple(input.shape)}, that of the input: "
            "use .expand_as(input) where it broadcasts"
        )


def _loss(
    compute: Callable[..., tuple],
    differentiable: tuple[Tensor | None, ...],
    others: tuple[Tensor | None, ...],
    options: tuple,
) -> Tensor:
    """A loss of any tensors there are."""
    _check(compute, differentiable, others, options)
    dtype = _loss_dtype(*differentiable)
    return _computed(compute, tuple(map(_for_scalers, differentiable)), others, options, dtype)


def _computed(
    compute: Callable[..., tuple],
    differentiable: tuple[Tensor | None, ...],
    others: tuple[Tensor | None, ...],
    options: tuple,
    dtype: torch.dtype,
) -> Tensor:
    """A loss in the graph: by `compute` in an eager call, else by its operator."""
    needs = _needs(*differentiable)
    arguments = (*differentiable, *others, *options, dtype, needs)
    if is_eager(*differentiable, *others):
        check_tangents(*differentiable, *others)
        made = tuple(t for t in compute(*arguments) if t is not None)
        return (attach(made, *compress(differentiable, needs)) if True in needs else made)[0]
    operator = getattr(_operators, compute.__name__)
    transformed = not torch.compiler.is_compiling() and transforms_active()
    call = partial(Transformed.apply, operator) if transformed else operator
    return call(*arguments)[0]


def _loss_dtype(input: Tensor, target: Tensor) -> torch.dtype:
    """The wider of theirs, as PyTorch has it, and float32 for halves under autocast."""
    dtype = torch.promote_types(input.dtype, target.dtype)
    return torch.float32 if dtype in HALVES and torch.is_autocast_enabled("cpu") else dtype


def _for_scalers(t: Tensor | None) -> Tensor | None:
    """float32 for float16, whose gradient over the number of rows vanishes before a scaler multiplies it."""
    return t.float() if t is not None and t.dtype is torch.float16 and torch.is_grad_enabled() else t


_KERNELS = {
    _losses.cross_entropy: ("kernels", "cross_entropy", 0, True),
    _losses.focal_loss: ("kernels", "focal_loss", 1, True),
    _losses.binary_cross_entropy_with_logits: ("elementwise", "binary_cross_entropy_with_logits", 0, False),
}
#: The same in calls as they usually are, which are too short for all that.
_plain_loss = PlainLosses(torch, _kernels, _KERNELS, attach, _loss).loss


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    normalizer: float | None = None,
) -> Tensor:
    r"""Softmax cross-entropy: :func:`torch.nn.functional.cross_entropy`, and the options of fastce.

    Parameters
    ----------
    input : Tensor
        Logits of shape (C,), (N, C) or (N, C, d1, ...), on the CPU: float32, float64, float16 or bfloat16, of
        any strides.
    target : Tensor
        Class indices of any integer dtype, of the input's shape without its classes; or probabilities, of a
        floating dtype and the input's shape, which may require a gradient too.
    weight : Tensor, optional
        Weight of each class, of shape (C,).
    size_average, reduce : bool, optional
        PyTorch's older names for `reduction`.
    ignore_index : int, default -100
        Rows with this label do not count.
    reduction : {'mean', 'sum', 'none'}, default 'mean'
        As in :func:`fastce.cross_entropy`, and as in PyTorch.
    label_smoothing : float, default 0
        In [0, 1].
    sample_weight : Tensor, optional
        Weight of each row: the input's shape without its classes.
    z_loss, temperature, softcap, normalizer
        As in :func:`fastce.cross_entropy`.

    Returns
    -------
    Tensor
        The loss, in the wider dtype of input and target; float32 for halves under autocast.

    Raises
    ------
    IndexError
        A label is neither a class nor `ignore_index`.
    NotImplementedError
        A second derivative is asked for, or a gradient by `weight`, `sample_weight` or an option.
    TypeError
        A tensor that is not on the CPU, a dtype that is not listed above.
    ValueError
        As :func:`fastce.cross_entropy`.

    Notes
    -----
    Where a gradient is wanted, it is made with the loss, in one pass over the logits, and backward hands
    it out. Accuracy is that of :func:`fastce.cross_entropy_and_grad`; a factor that backward multiplies
    by adds half an ULP.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import cross_entropy
    >>> logits = torch.tensor([[20.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0, 2]), reduction="sum")
    >>> loss.backward()
    >>> logits.grad[0]
    tensor([-4.1223e-09,  2.0612e-09,  2.0612e-09])
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    options = (ignore_index, label_smoothing, z_loss, temperature, softcap, reduction, normalizer)
    given = (_losses.cross_entropy, (input, target), (weight, sample_weight), options)
    if is_dynamo_compiling():
        return _loss(*given)
    try:
        return _plain_loss(*given)
    except (IndexError, TypeError, ValueError) as error:
        raise in_tensors(error, "input") from None


def focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    sample_weight: Tensor | None = None,
    normalizer: float | None = None,
) -> Tensor:
    r"""Focal loss of class indices, :math:`(1 - p_y)^\gamma (-\log p_y)`, which PyTorch has not.

    Parameters
    ----------
    input, weight, ignore_index, reduction, sample_weight, normalizer
        As in :func:`cross_entropy`.
    target : Tensor
        Class indices.
    gamma : float, default 2
        How fast sure rows fade; 0 is cross-entropy.

    Returns
    -------
    Tensor
        The loss, as :func:`cross_entropy`.

    Raises
    ------
    IndexError, NotImplementedError, TypeError, ValueError
        As :func:`cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import focal_loss
    >>> focal_loss(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), reduction="none")
    tensor([1.0928e-04, 7.0187e-01])
    """
    options = (gamma, ignore_index, reduction, normalizer)
    given = (_losses.focal_loss, (input, target), (weight, sample_weight), options)
    if is_dynamo_compiling():
        return _loss(*given)
    try:
        return _plain_loss(*given)
    except (IndexError, TypeError, ValueError) as error:
        raise in_tensors(error, "input") from None


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    normalizer: float | None = None,
) -> Tensor:
    r"""Binary cross-entropy of logits: :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    input : Tensor
        Log-odds of any shape, on the CPU: float32, float64, float16 or bfloat16, of any strides.
    target : Tensor
        Probabilities of the positive class in [0, 1], of the input's shape and any dtype; may require a
        gradient.
    weight, pos_weight : Tensor, optional
        Factor of each element and of its positive part; they broadcast to the input.
    size_average, reduce : bool, optional
        PyTorch's older names for `reduction`.
    reduction : {'mean', 'sum', 'none'}, default 'mean'
        ``'mean'`` divides by the number of elements.
    normalizer : float, optional
        Replaces the denominator of the mean.

    Returns
    -------
    Tensor
        The loss, in the wider dtype of input and target; float32 for halves under autocast.

    Raises
    ------
    NotImplementedError, TypeError
        As :func:`cross_entropy`.
    ValueError
        A target outside [0, 1] or of another shape than the input.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import binary_cross_entropy_with_logits
    >>> logits, target = torch.tensor([-20.0, 40.0]), torch.tensor([0.0, 1.0])
    >>> binary_cross_entropy_with_logits(logits, target, reduction="none")
    tensor([2.0612e-09, 4.2484e-18])
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    options = (reduction, normalizer)
    given = (_losses.binary_cross_entropy_with_logits, (input, target), (weight, pos_weight), options)
    if is_dynamo_compiling():
        return _loss(*given)
    try:
        return _plain_loss(*given)
    except (IndexError, TypeError, ValueError) as error:
        raise in_tensors(error, "input") from None


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    normalizer: float | None = None,
    memory: int = MEMORY,
) -> Tensor:
    r"""Cross-entropy of a linear layer's logits, not held whole: `torch.nn.functional.linear_cross_entropy`.

    Parameters
    ----------
    input : Tensor
        Features of shape (..., D), on the CPU, of a dtype and strides as in :func:`cross_entropy`.
    linear_weight : Tensor
        Weights of shape (C, D). Of shape (C, d1, ..., D), as in PyTorch, features are (N, D), and the logits
        are held whole, (N, C, d1, ...).
    target : Tensor
        Class indices of shape (...), or probabilities of shape (..., C); of logits (N, C, d1, ...) as in
        :func:`cross_entropy`.
    linear_bias : Tensor, optional
        Bias of each class, of shape (C,).
    weight, reduction, label_smoothing, sample_weight, z_loss, temperature, softcap, normalizer
        As in :func:`cross_entropy`.
    ignore_index : int, optional
        As in :func:`cross_entropy`; None is -100.
    options : optional
        PyTorch's `LinearCrossEntropyOptions`, which are not needed here and not looked at.
    memory : int, default 64 MiB
        How many bytes a call may hold beside its arguments and results.

    Returns
    -------
    Tensor
        The loss, in the wider dtype of input and target; float32 for halves under autocast.

    Raises
    ------
    IndexError, NotImplementedError, TypeError, ValueError
        As :func:`cross_entropy` and :func:`fastce.linear_cross_entropy`.

    Notes
    -----
    Gradients by input, weight and bias are made with the loss. With ``reduction='none'`` they are made in
    backward, which has the factor of each row. Where probabilities require a gradient, and in compiled calls
    with ``reduction='none'``, the logits are held whole.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import linear_cross_entropy
    >>> features, weights = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.eye(3, 2, requires_grad=True)
    >>> linear_cross_entropy(features, weights, torch.tensor([1, 0])).backward()
    >>> weights.grad[1]
    tensor([-0.1417, -0.3433])
    """
    made_of, others = (input, linear_weight, linear_bias), (target, weight, sample_weight)
    ignore_index = -100 if ignore_index is None else ignore_index
    of_logits = (ignore_index, label_smoothing, z_loss, temperature, softcap)
    if is_dynamo_compiling():
        return _linear_loss(made_of, others, of_logits, reduction, normalizer, memory)
    try:
        return _linear_loss(made_of, others, of_logits, reduction, normalizer, memory)
    except (IndexError, TypeError, ValueError) as error:
        raise in_tensors(error, "logits") from None


def _linear_loss(
    made_of: tuple[Tensor, Tensor, Tensor | None],
    others: tuple[Tensor, Tensor | None, Tensor | None],
    of_logits: tuple,
    reduction: str,
    normalizer: float | None,
    memory: int,
) -> Tensor:
    (input, linear_weight, linear_bias), target = made_of, others[0]
    _check(_losses.linear_cross_entropy, made_of, others, (*of_logits, reduction, normalizer))
    _check_linear(input, linear_weight, linear_bias)
    dtype = _loss_dtype(input, target)
    made_of = tuple(map(_for_scalers, made_of))
    by_rows = reduction == "none" and True in _needs(*made_of)
    if linear_weight.ndim != 2 or True in _needs(target) or (by_rows and not is_eager(*made_of, *others)):
        logits = _logits(*made_of)
        if linear_weight.ndim == 2 and target.ndim == logits.ndim > 2:
            target = target.movedim(-1, 1)
        options = (*of_logits, reduction, normalizer)
        return _computed(_losses.cross_entropy, (logits, target), others[1:], options, dtype)
    if by_rows:
        return attach_rows(made_of, others, of_logits, memory, dtype, *made_of)
    options = (*of_logits, reduction, normalizer, memory)
    return _computed(_losses.linear_cross_entropy, made_of, others, options, dtype)


def _check_linear(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    """Refuse weights without classes, and shapes that do not go with weights (C, d1, ..., D)."""
    x, w = tuple(input.shape), tuple(linear_weight.shape)
    if len(w) < 2:
        raise ValueError(f"linear_weight has shape {w}; expected at least two dimensions, (C, D)")
    if len(w) > 2 and (len(x) != 2 or x[1] != w[-1]):
        raise ValueError(
            f"input has shape {x}; expected (N, {w[-1]}) beside a linear_weight of shape {w}: "
            "use input[None] and target[None] for one row"
        )
    if len(w) > 2 and linear_bias is not None and tuple(linear_bias.shape) != w[:-1]:
        raise ValueError(f"linear_bias has shape {tuple(linear_bias.shape)}; expected {w[:-1]}")


def _logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """Whole, with the classes where PyTorch has them: (N, C, d1, ...) of weights (C, d1, ..., D).

    Those of halves are float32, as they are where they are not held whole.
    """
    if input.dtype in (torch.bfloat16, torch.float16):
        input, linear_weight = input.float(), linear_weight.float()
        linear_bias = None if linear_bias is None else linear_bias.float()
    n_features = linear_weight.shape[-1]
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.reshape(-1, n_features), bias)
    if linear_weight.ndim == 2:
        return logits.movedim(-1, 1) if logits.ndim > 2 else logits
    return logits.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
