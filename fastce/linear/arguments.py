"""What the functions of a linear layer take."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce._kernels.entry import arrays, options

MEMORY = 64 * 2**20
FEW_WEIGHTS = 1 << 13  # so many stay in the first cache of a core, and products are no faster in BLAS
FEW_FEATURES = 1 << 12  # so that rows of a tile do


def is_small(n_classes: int, n_features: int, memory: int) -> bool:
    """Whether kernels take a tile of rows at a time through everything: their sums fit in 16 MiB then."""
    few = n_classes * max(16, n_features) <= FEW_WEIGHTS and n_features <= FEW_FEATURES
    return few and memory >= 1 << 24


def is_wide(a: Any) -> bool:
    """Whether an array holds float64, in any byte order."""
    return a.dtype.kind == "f" and a.dtype.itemsize == 8


def as_csr(a: Any, name: str) -> Any:
    """A sparse array in rows, of a dtype that is computed with or converts to float64."""
    a = a.tocsr()
    if a.ndim != 2:
        raise ValueError(f"{name} is a sparse array of shape {a.shape}; expected (N, D)")
    if len(a.indptr) != a.shape[0] + 1 or a.indptr[0] < 0 or np.diff(a.indptr).min(initial=0) < 0:
        raise ValueError(f"{name} has row pointers that do not ascend; expected a CSR array")
    if a.indptr[-1] > min(len(a.indices), len(a.data)):
        raise ValueError(f"{name} has row pointers beyond its entries; expected a CSR array")
    indices = a.indices[: a.indptr[-1]]  # what is behind them is spare room
    if indices.size and not (indices.min() >= 0 and indices.max() < a.shape[1]):
        raise ValueError(f"{name} has column indices outside of its shape {a.shape}")
    data = arrays.float_array(a.data, name)
    return a if data is a.data else type(a)((data, a.indices, a.indptr), shape=a.shape)


class Layer(NamedTuple):
    """Features, weights and bias, checked, the dtype of their products, and how many bytes to hold."""

    x: Any
    w: NDArray
    bias: NDArray | None
    dtype: np.dtype
    memory: int


def layer(x: Any, linear_weight: ArrayLike, linear_bias: ArrayLike | None, memory: int, name: str) -> Layer:
    """What a linear layer is made of, with features `x` that are checked; `name` is what they are called."""
    w = arrays.float_array(linear_weight, "linear_weight")
    bias = None if linear_bias is None else arrays.float_array(linear_bias, "linear_bias")
    memory = min(options.checked_index(memory, "memory", "an int, a number of bytes"), sys.maxsize)
    if x.ndim == 0:
        raise ValueError(f"{name} is a scalar; expected at least one axis, the features")
    if w.ndim != 2 or w.shape[1] != x.shape[-1]:
        raise ValueError(
            f"linear_weight has shape {w.shape} and {name} {x.shape}; expected (C, D) and "
            "(..., D), with the same number of features D"
        )
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(
            f"linear_bias has shape {bias.shape}; expected {w.shape[:1]}, one for each class "
            f"of linear_weight, {w.shape}"
        )
    return Layer(x, w, bias, np.dtype(np.float64 if is_wide(x) or is_wide(w) else np.float32), memory)
