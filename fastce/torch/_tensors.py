"""Tensors as arrays and back, without a copy; and which calls may look at a tensor's memory at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

import fastce
from fastce._kernels.entry import advice
from fastce._kernels.entry.dlpack import array_of, tensor_of

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALVES = frozenset(DTYPES[2:])
_PLAIN = (Tensor, torch.nn.Parameter)
transforms_active = torch._C._are_functorch_transforms_active
_n_dispatch_modes = torch._C._len_torch_dispatch_stack


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether tensors can be computed with here and now; the operators are for all other calls.

    Those are calls that are compiled, exported or traced, transformed by torch.func, or of tensors that have
    no memory of their own (fake, meta, subclasses).
    """
    if torch.compiler.is_compiling() or transforms_active() or _n_dispatch_modes():
        return False
    return all(t is None or (type(t) in _PLAIN and t.is_cpu) for t in tensors)


def check_tensors(function: Callable[..., Any], tensors: dict[str, Tensor | None]) -> None:
    """Refuse what is no tensor, or none that is read, by the names of the function's parameters."""
    for name, t in tensors.items():
        if t is None and function.__annotations__[name] != "Tensor":
            continue
        if not isinstance(t, Tensor):
            given = "None" if t is None else f"a {type(t).__name__}"
            raise TypeError(
                f"{name} is {given}; expected a tensor: "
                f"use torch.as_tensor, or fastce.{function.__name__} for arrays"
            )
        if t.device.type not in ("cpu", "meta"):
            raise TypeError(
                f"{name} is on {t.device}; fastce computes on the CPU alone: "
                f"move it there with .cpu(), or use torch.nn.functional"
            )
        if t.is_meta and any(isinstance(other, Tensor) and not other.is_meta for other in tensors.values()):
            raise TypeError(f"{name} is on meta, others are not; expected all on one device: the CPU or meta")
        if t.is_nested:
            raise TypeError(
                f"{name} is a nested tensor; expected one whose rows are all in one: join them with "
                f"torch.cat({name}.unbind()), or fill them up with {name}.to_padded_tensor(...)"
            )
        if t.layout is not torch.strided:
            raise TypeError(
                f"{name} has layout {t.layout}; expected a dense tensor, torch.strided: use .to_dense()"
            )


def check_floating(t: Tensor, name: str = "input") -> None:
    if t.dtype not in DTYPES:
        expected = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"{name} has dtype {t.dtype}; expected one of {expected}: convert it with .to")


def check_constant(function: Callable[..., Any], tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that ask for a gradient which is not computed, rather than leave it out."""
    for name, t in tensors.items():
        if t.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                f"{name} requires a gradient, which fastce.torch.{function.__name__} does not compute: "
                f"use {name}.detach(), or torch.nn.functional"
            )


def no_forward_mode() -> NotImplementedError:
    return NotImplementedError(
        "a tensor has a tangent, but the functions of fastce.torch have no forward mode AD: "
        "use torch.nn.functional"
    )


def check_tangents(*tensors: Tensor | None) -> None:
    """Refuse a tangent, which would be left out; PyTorch itself does so where a gradient is wanted too."""
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise no_forward_mode()


def in_tensors(error: Exception, logits: str) -> Exception:
    """An error of functions of arrays; `logits`: what they are to the caller, its input or made of that."""
    moved = r": use input.movedim(\1, 1) if the classes are there" if logits == "input" else ""
    return advice.retold(
        error,
        (r"\blogits has\b", f"{logits} has"),
        (r"\blogits is\b", f"{logits} is"),
        (r"\bthe logits come\b", f"the {logits} comes"),
        (r"\bof the logits\b", f"of the {logits}"),
        (r": use axis=(\d+) if the classes are there", moved),
        (r"\.astype\(int\)", ".long()"),
        (r"\.astype\(float\)", ".float()"),
        (r"\.argmax\(axis\)", ".argmax(dim)"),
    )


def as_array(t: Tensor) -> NDArray:
    """The memory of a tensor; bfloat16 as its bits."""
    return array_of(t.resolve_neg() if t.is_neg() else t)


def as_widened(t: Tensor) -> NDArray:
    """The memory of a tensor whose blocks NumPy converts: bfloat16 as the dtype of ml_dtypes."""
    if t.dtype is not torch.bfloat16:
        return as_array(t)
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(
            "the linear loss of bfloat16 tensors needs ml_dtypes: pip install ml_dtypes, or use .float()"
        ) from None
    return as_array(t).view(ml_dtypes.bfloat16)


def as_options(t: Tensor | None) -> NDArray | None:
    """A tensor of weights, which are few, in a dtype of NumPy's."""
    if t is None:
        return None
    return as_array(t.float() if t.dtype is torch.bfloat16 else t)


def as_tensor(a: NDArray) -> Tensor:
    """The memory of an array, as `as_array`."""
    return tensor_of(a, Tensor)


def array_like(t: Tensor, given: NDArray) -> NDArray:
    """A new array of the shape, dtype and strides that torch.empty_like(t) has.

    NumPy's own memory where that is a matter of course: it asks for huge pages, which torch's does not.
    """
    if t.is_contiguous():
        return np.empty_like(given)
    new = as_array(torch.empty_like(t))
    return new if new.dtype == given.dtype else new.view(given.dtype)


def n_threads() -> int | None:
    """As torch.get_num_threads() says, but no more than fastce would take by itself."""
    n = torch.get_num_threads()
    return n if n < fastce.get_num_threads() else None
