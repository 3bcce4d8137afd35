"""What a good Numba user would write: rows in parallel, three passes, the output as scratch."""

import numpy as np
from numba import njit, prange


@njit(parallel=True, fastmath=True)
def loss(x: np.ndarray, y: np.ndarray, losses: np.ndarray) -> None:
    """Write each row's loss."""
    for i in prange(x.shape[0]):
        m = x[i, 0]
        for j in range(1, x.shape[1]):
            m = max(m, x[i, j])
        s = m - m
        for j in range(x.shape[1]):
            s += np.exp(x[i, j] - m)
        losses[i] = np.log(s) + m - x[i, y[i]]


@njit(parallel=True, fastmath=True)
def loss_and_grad(
    x: np.ndarray, y: np.ndarray, scale: float, losses: np.ndarray, grad: np.ndarray
) -> None:
    """Write each row's loss and `scale` times its gradient."""
    for i in prange(x.shape[0]):
        m = x[i, 0]
        for j in range(1, x.shape[1]):
            m = max(m, x[i, j])
        s = m - m
        for j in range(x.shape[1]):
            grad[i, j] = np.exp(x[i, j] - m)
            s += grad[i, j]
        losses[i] = np.log(s) + m - x[i, y[i]]
        factor = scale / s
        for j in range(x.shape[1]):
            grad[i, j] *= factor
        grad[i, y[i]] -= scale
