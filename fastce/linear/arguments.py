"""What the functions of a linear layer take."""

from __future__ import annotations

from typing import Any

from fastce._kernels.entry import arrays

MEMORY = 64 * 2**20
FEW_WEIGHTS = 1 << 16  # so many stay in the second cache of a core, and small products are no faster in BLAS


def as_csr(a: Any, name: str) -> Any:
    """A sparse array in rows, of a dtype that is computed with or converts to float64."""
    a = a.tocsr()
    if a.ndim != 2:
        raise ValueError(f"{name} is a sparse array of shape {a.shape}; expected (N, D)")
    data = arrays.float_array(a.data, name)
    return a if data is a.data else type(a)((data, a.indices, a.indptr), shape=a.shape)
