"""Softmax and its relatives: those of torch.nn.functional and torch.logsumexp, with their signatures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as F

from fastce import _kernels
from fastce._kernels.entry.tensors import PlainSoftmax
from fastce.torch import _losses, _operators
from fastce.torch._autograd import LogSumExp, Softmax, attach_softmax
from fastce.torch._tensors import check_floating, check_tangents, check_tensors, is_eager

__all__ = ["log_softmax", "logsumexp", "softmax"]


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
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
    return (_softmax if is_dynamo_compiling() else _plain_softmax)(False, input, dim, _stacklevel, dtype)


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
    return (_softmax if is_dynamo_compiling() else _plain_softmax)(True, input, dim, _stacklevel, dtype)


def logsumexp(
    input: Tensor, dim: int | tuple[int, ...], keepdim: bool = False, *, out: Tensor | None = None
) -> Tensor:
    """Logarithm of a sum of exponentials, also right near 0: :func:`torch.logsumexp`.

    Parameters
    ----------
    input : Tensor
        Exponents of any shape, on the CPU. Integers convert to the default dtype; complex ones are handed to
        PyTorch.
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
    RuntimeError
        `out` is given, and it or the input requires a gradient, as in PyTorch.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import logsumexp
    >>> logsumexp(torch.tensor([[0.0, -50.0], [1.0, 1.0]]), dim=1)
    tensor([1.9287e-22, 1.6931e+00])
    """
    return (_logsumexp if is_dynamo_compiling() else _plain_logsumexp)(input, dim, keepdim, out)


def _softmax(
    log: bool,
    input: Tensor,
    dim: int | None,
    stacklevel: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """The softmax of any tensor there is, or its logarithm."""
    check_tensors(log_softmax if log else softmax, {"input": input})
    if dim is None:
        dim = F._get_softmax_dim("log_softmax" if log else "softmax", input.dim(), stacklevel + 1)
    if dtype is not None:
        input = input.to(dtype)
    if input.is_complex():
        return (F.log_softmax if log else F.softmax)(input, dim)
    check_floating(input)
    dim = _dimension(dim, input)
    if not input.ndim:
        return _softmax(log, input.unsqueeze(0), 0, stacklevel, None).squeeze(0)
    if is_eager(input):
        check_tangents(input)
        result = _losses.softmax(input, dim, log)
        return attach_softmax(input, dim, (result, log)) if _is_wanted(input) else result
    return (_operators.softmax if torch.compiler.is_compiling() else Softmax.apply)(input, dim, log)


def _logsumexp(input: Tensor, dim: int | tuple[int, ...], keepdim: bool, out: Tensor | None) -> Tensor:
    """That of any tensor there is."""
    check_tensors(logsumexp, {"input": input, "out": out})
    if out is not None and (_is_wanted(input) or _is_wanted(out)):
        raise RuntimeError(
            "out is given and a tensor requires a gradient, which PyTorch's functions do not write into out "
            "either; expected no out, or torch.no_grad()"
        )
    if input.is_complex():
        return torch.logsumexp(input, dim, keepdim, out=out)
    if not input.is_floating_point():
        input = input.to(torch.get_default_dtype())
    check_floating(input)
    given = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
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
        check_tangents(joined)
        result = _losses.logsumexp(joined, last)
        if _is_wanted(joined):
            result = attach_softmax(joined, last, (result, None))
    else:
        result = (_operators.logsumexp if torch.compiler.is_compiling() else LogSumExp.apply)(joined, last)
    result = result.reshape(shape)
    return result if out is None else out.resize_(shape).copy_(result)


#: The same in calls as they usually are, which are too short for all that.
_plain = PlainSoftmax(torch, _kernels, attach_softmax, _softmax, _logsumexp)
_plain_softmax, _plain_logsumexp = _plain.softmax, _plain.logsumexp


def _is_wanted(input: Tensor) -> bool:
    return input.requires_grad and torch.is_grad_enabled()


def _dimension(dim: int, input: Tensor) -> int:
    # A number that varies is an int to compiled code, which does not know its attributes.
    if type(dim) is not int and (isinstance(dim, bool) or not hasattr(dim, "__index__")):
        raise TypeError(f"dim is {dim!r}; expected an int")
    n = max(input.ndim, 1)
    if not -n <= dim < n:
        raise IndexError(f"dim is {dim}; expected one in [{-n}, {n - 1}], the dimensions of the input")
    return dim % n
