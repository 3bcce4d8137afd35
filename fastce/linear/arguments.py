"""What the functions of a linear layer take."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastce._kernels.entry import arrays

MEMORY = 64 * 2**20
FEW_WEIGHTS = 1 << 16  # so many stay in the second cache of a core, and small products are no faster in BLAS
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
    if a.nnz and not (a.indices.min() >= 0 and a.indices.max() < a.shape[1]):
        raise ValueError(f"{name} has column indices outside of its shape {a.shape}")
    if len(a.indptr) != a.shape[0] + 1 or a.indptr[0] < 0 or np.diff(a.indptr).min(initial=0) < 0:
        raise ValueError(f"{name} has row pointers that do not ascend; expected a CSR array")
    if a.indptr[-1] > min(len(a.indices), len(a.data)):
        raise ValueError(f"{name} has row pointers beyond its entries; expected a CSR array")
    data = arrays.float_array(a.data, name)
    return a if data is a.data else type(a)((data, a.indices, a.indptr), shape=a.shape)
