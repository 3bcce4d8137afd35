"""The functions of torch.nn.functional, with its signatures: what each means, and which way it is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as F

from fastce.torch import _losses, _operators
from fastce.torch._autograd import LogSumExp, Softmax, Transformed, attach, eager_logsumexp, eager_softmax
from fastce.torch._tensors import (
    transforms_active,
    check_constant,
    check_floating,
    check_tensors,
    is_eager,
)

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "focal_loss",
    "log_softmax",
    "logsumexp",
    "softmax",
]


def _needs(*tensors: Tensor) -> list[bool]:
    """By which a gradient is wanted. Under a transform of torch.func a tensor does not know."""
    if not torch.is_grad_enabled():
        return [False] * len(tensors)
    unknown = transforms_active()
    return [t.requires_grad or (unknown and t.is_floating_point()) for t in tensors]


def _loss_dtype(input: Tensor) -> torch.dtype:
    """That of the input, as PyTorch has it, and float32 under autocast."""
    if input.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled("cpu"):
        return torch.float32
    return input.dtype


def _loss(name: str, differentiable: tuple[Tensor, ...], others: tuple[Tensor | None, ...], *options: Any) -> Tensor:
    """A loss by the quickest way that the call allows."""
    input, *more = differentiable
    dtype = _loss_dtype(input)
    if input.dtype is torch.float16:
        # A gradient over the number of rows is below what float16 holds until a scaler has multiplied it.
        differentiable = (input.float(), *more)
    needs = _needs(*differentiable)
    arguments = (*differentiable, *others, *options, dtype, needs)
    if not is_eager(*differentiable, *others):
        operator = getattr(_operators, name)
        transformed = not torch.compiler.is_compiling() and transforms_active()
        return (Transformed.apply(operator, *arguments) if transformed else operator(*arguments))[0]
    made = getattr(_losses, name)(*arguments)
    return attach(made, *differentiable) if True in needs else made[0]


def _reduction_of(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce)


def _check(function: str, input: Tensor, target: Tensor, **constants: Tensor | None) -> None:
    check_tensors(function, input=input, target=target, **constants)
    check_floating(input)
    check_constant(function, **constants)


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
        Logits of shape (C,), (N, C) or (N, C, d1, ...), on the CPU: float32, float64, float16 or bfloat16, of any
        strides.
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
        The loss, in the input's dtype; float32 for halves under autocast.

    Raises
    ------
    IndexError
        A label is neither a class nor `ignore_index`.
    NotImplementedError
        A second derivative is asked for, or a gradient by `weight` or `sample_weight`.
    TypeError
        A tensor that is not on the CPU, a dtype that is not listed above.
    ValueError
        As :func:`fastce.cross_entropy`.

    Notes
    -----
    Where a gradient is wanted, it is made with the loss, in one pass over the logits, and backward hands
    it out. Accuracy is that of :func:`fastce.cross_entropy_and_grad`; a factor that backward multiplies by adds half an
    ULP.

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
    _check("cross_entropy", input, target, weight=weight, sample_weight=sample_weight)
    reduction = _reduction_of(reduction, size_average, reduce)
    return _loss(
        "cross_entropy",
        (input, target),
        (weight, sample_weight),
        ignore_index,
        label_smoothing,
        z_loss,
        temperature,
        softcap,
        reduction,
        normalizer,
    )


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
    tensor([1.0900e-04, 7.0187e-01])
    """
    _check("focal_loss", input, target, weight=weight, sample_weight=sample_weight)
    return _loss(
        "focal_loss", (input, target), (weight, sample_weight), gamma, ignore_index, reduction, normalizer
    )


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
        Probabilities of the positive class in [0, 1], of the input's shape and any dtype; may require a gradient.
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
        The loss, in the input's dtype; float32 for halves under autocast.

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
    >>> binary_cross_entropy_with_logits(torch.tensor([-20.0, 40.0]), torch.tensor([0.0, 1.0]), reduction="none")
    tensor([2.0612e-09, 4.2484e-18])
    """
    _check("binary_cross_entropy_with_logits", input, target, weight=weight, pos_weight=pos_weight)
    if target.shape != input.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected {tuple(input.shape)}, that of the input: "
            "use .expand_as(input) where it broadcasts"
        )
    reduction = _reduction_of(reduction, size_average, reduce)
    return _loss(
        "binary_cross_entropy_with_logits", (input, target), (weight, pos_weight), reduction, normalizer
    )


# ---- Softmax and its relatives ---------------------------------------------------------------------------


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax: :func:`torch.nn.functional.softmax`.

    Parameters
    ----------
    input : Tensor
        Numbers of any shape, on the CPU. Complex ones are handed to PyTorch.
    dim : int
        The dimension along which probabilities sum to 1. Without it PyTorch's choice, with its warning.
    dtype : torch.dtype, optional
        Converts the input first.

    Returns
    -------
    Tensor
        Of the input's shape and dtype. It can be differentiated twice.

    Raises
    ------
    IndexError
        There is no dimension `dim`.
    TypeError
        As :func:`cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import softmax
    >>> softmax(torch.tensor([1.0, 2.0, 3.0]), dim=0)
    tensor([0.0900, 0.2447, 0.6652])
    """
    return _softmax("softmax", input, dim, _stacklevel, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """Logarithm of the softmax, also right near 0: :func:`torch.nn.functional.log_softmax`.

    Its gradient is right for sure rows as well, so that a ``nll_loss`` behind it loses little.

    Parameters
    ----------
    input, dim, dtype
        As in :func:`softmax`.

    Returns
    -------
    Tensor
        Of the input's shape and dtype. It can be differentiated twice.

    Raises
    ------
    IndexError, TypeError
        As :func:`softmax`.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import log_softmax
    >>> log_softmax(torch.tensor([20.0, 0.0, 0.0]), dim=0)[0]
    tensor(-4.1223e-09)
    """
    return _softmax("log_softmax", input, dim, _stacklevel, dtype)


def _softmax(name: str, input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None) -> Tensor:
    check_tensors(name, input=input)
    if dim is None:
        dim = F._get_softmax_dim(name, input.dim(), stacklevel + 1)
    if dtype is not None:
        input = input.to(dtype)
    if input.is_complex():
        return getattr(F, name)(input, dim)
    check_floating(input)
    dim = _dimension(dim, input)
    if not input.ndim:
        return _softmax(name, input.unsqueeze(0), 0, stacklevel, None).squeeze(0)
    log = name == "log_softmax"
    if is_eager(input):
        wanted = input.requires_grad and torch.is_grad_enabled()
        return (eager_softmax if wanted else _losses.softmax)(input, dim, log)
    return (_operators.softmax if torch.compiler.is_compiling() else Softmax.apply)(input, dim, log)


def logsumexp(
    input: Tensor, dim: int | tuple[int, ...], keepdim: bool = False, *, out: Tensor | None = None
) -> Tensor:
    """Logarithm of a sum of exponentials, also right near 0: :func:`torch.logsumexp`.

    Parameters
    ----------
    input : Tensor
        Exponents of any shape, on the CPU. Integers convert to the default dtype; complex ones are handed to PyTorch.
    dim : int or tuple of int
        The dimensions to sum over; an empty tuple: all.
    keepdim : bool, default False
        Keep them, with length 1.
    out : Tensor, optional
        Where to write the result.

    Returns
    -------
    Tensor
        `out`, or a new tensor. It can be differentiated twice.

    Raises
    ------
    IndexError, TypeError
        As :func:`softmax`.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import logsumexp
    >>> logsumexp(torch.tensor([[0.0, -50.0], [1.0, 1.0]]), dim=1)
    tensor([1.9287e-22, 1.6931e+00])
    """
    check_tensors("logsumexp", input=input, out=out)
    if input.is_complex():
        return torch.logsumexp(input, dim, keepdim, out=out)
    if not input.is_floating_point():
        input = input.to(torch.get_default_dtype())
    check_floating(input)
    given = (dim,) if isinstance(dim, int) else tuple(dim)
    dims = sorted({_dimension(d, input) for d in given} or range(input.ndim))
    if len(dims) < len(given):
        raise RuntimeError(f"dim is {dim}; expected each dimension once")
    shape = [1 if d in dims else n for d, n in enumerate(input.shape)]
    if not keepdim:
        shape = [n for d, n in enumerate(input.shape) if d not in dims]
    joined, last = input, dims[0] if dims else 0
    if not input.ndim:
        joined, shape = input.unsqueeze(0), []
    elif len(dims) > 1:
        last = input.ndim - len(dims)
        joined = input.permute(*(d for d in range(input.ndim) if d not in dims), *dims).flatten(last)
    if is_eager(joined):
        wanted = joined.requires_grad and torch.is_grad_enabled()
        result = (eager_logsumexp if wanted else _losses.logsumexp)(joined, last)
    else:
        result = (_operators.logsumexp if torch.compiler.is_compiling() else LogSumExp.apply)(joined, last)
    result = result.reshape(shape)
    return result if out is None else out.resize_(shape).copy_(result)


def _dimension(dim: int, input: Tensor) -> int:
    n = max(input.ndim, 1)
    if not -n <= dim < n:
        raise IndexError(f"dim is {dim}; expected one in [{-n}, {n - 1}], the dimensions of the input")
    return dim % n
