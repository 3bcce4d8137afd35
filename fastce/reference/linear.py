"""A linear layer in front of the softmax, z_ij = w_j x_i + b_j, its logits rounded to float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import as_exact_float64, wide
from fastce.reference.softmax import cross_entropy_and_grad


def linear_cross_entropy(
    input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, **options: Any
) -> Any:
    """Cross-entropy of a linear layer's logits; see `linear_cross_entropy_and_grad`."""
    return linear_cross_entropy_and_grad(input, linear_weight, target, **options)[0]


def linear_cross_entropy_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    **options: Any,
) -> tuple[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cross-entropy of a linear layer's logits, and its gradients.

    Parameters
    ----------
    input : array_like, (..., D)
        Features.
    linear_weight : array_like, (C, D)
    target : array_like
        As in `cross_entropy`, for logits of shape (..., C).
    linear_bias : array_like, (C,), optional
    **options
        As in `cross_entropy`, but for `axis`.

    Returns
    -------
    loss : wide scalar or ndarray
    gradients : tuple of three wide ndarrays
        With respect to `input`, `linear_weight` and the bias, which counts as 0 where it is not given. Rows
        of `ignore_index` have no part in them.
    """
    x, w = wide(as_exact_float64(input, "input")), wide(as_exact_float64(linear_weight, "linear_weight"))
    b = wide(np.zeros(len(w)) if linear_bias is None else as_exact_float64(linear_bias, "linear_bias"))
    with np.errstate(invalid="ignore"):
        z = (x @ w.T + b).astype(np.float64)
    loss, g = cross_entropy_and_grad(z, target, **options)
    g, rows = g.reshape(-1, len(w)), x.reshape(-1, x.shape[-1])
    used = np.asarray(
        np.asarray(target).dtype.kind not in "iu" or target != options.get("ignore_index", -100)
    )
    used = np.broadcast_to(used, x.shape[:-1]).reshape(-1)
    by_input = wide(np.zeros(rows.shape))
    by_input[used] = g[used] @ w
    return loss, (by_input.reshape(x.shape), g[used].T @ rows[used], g.sum(axis=0))
