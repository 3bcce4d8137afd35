"""Derivatives for boosted trees, as they are written down."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["logistic_derivatives", "softmax_derivatives"]


def softmax_derivatives(
    margins: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    class_weight: ArrayLike | None,
    curvature: str,
    factor: float,
    least: float,
    gamma: float,
    smoothing: float,
) -> tuple[NDArray, NDArray]:
    """Gradient and Hessian of rows of margins, in the widest precision there is.

    The formulas are those of ``elementwise`` losses of a class: a term ``q_c (1 - p_c)^gamma (-log p_c)`` for
    each.
    """
    p, p_not, u, v = terms(margins, target, weight, class_weight, gamma, smoothing)
    others_u, others_v = _sum_of_others(u), _sum_of_others(v)
    grad = p * others_u - u * p_not
    hess = factor * (others_u + u) * p * p_not
    if curvature == "magnitude":
        hess = np.abs(grad)
    elif curvature == "whole":
        hess = hess - (p**2 * others_v + p_not**2 * v)
    return grad, np.where(hess < least, least, hess)


def terms(
    margins: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    class_weight: ArrayLike | None,
    gamma: float,
    smoothing: float,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """p, 1 - p, u and v, of which the derivatives are sums of products."""
    x, q = np.asarray(margins, np.longdouble), np.asarray(target)
    n_classes = x.shape[1]
    q = (np.eye(n_classes)[q.astype(int)] if q.ndim == 1 else q).astype(np.longdouble)
    q = (1 - smoothing) * q + np.longdouble(smoothing) / n_classes
    if class_weight is not None:
        q = q * np.asarray(class_weight, np.longdouble)
    if weight is not None:
        q = q * np.asarray(weight, np.longdouble)[:, None]
    e = np.exp(x - x.max(axis=1, keepdims=True))
    total = e.sum(axis=1, keepdims=True)
    p = e / total
    p_not = _sum_of_others(e) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        minus_log = np.where(p > 0.5, -np.log1p(-p_not), -np.log(np.maximum(p, np.longdouble(1e-4000))))
        ratio = np.where(p_not > 0, minus_log / p_not, 1)
        slope = p_not**gamma * (1 + gamma * p * ratio) if gamma else np.ones_like(p)
        bend = gamma * p_not ** (gamma - 1) * (minus_log - 2 - (gamma - 1) * p * ratio) if gamma else 0 * p
    u, v = q * slope, q * np.where(p_not > 0, bend, 0) * p
    return p, p_not, u, v


def _sum_of_others(a: NDArray) -> NDArray:
    """The sum of a row without each of its elements, not as a difference."""
    return np.stack([np.delete(a, c, axis=1).sum(axis=1) for c in range(a.shape[1])], axis=1)


def logistic_derivatives(
    margins: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: float,
    scale: float,
    curvature: str,
    factor: float,
    least: float,
    gamma: float,
    smoothing: float,
) -> tuple[NDArray, NDArray]:
    """Gradient and Hessian of margins that stand alone: those of two classes with margins 0 and x, by x."""
    x, y = np.asarray(margins, np.longdouble), np.asarray(target, np.longdouble)
    rows, q = np.stack([0 * x, x], axis=1), np.stack([1 - y, y], axis=1)
    grad, hess = softmax_derivatives(
        rows, q, None, [1, pos_weight], curvature, factor, least, gamma, smoothing
    )
    w = scale * (1 if weight is None else np.asarray(weight, np.longdouble))
    return w * grad[:, 1], w * hess[:, 1]
