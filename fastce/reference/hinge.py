"""Hinge losses of the twin.

For one row of scores ``x`` with margin M, target y, power p and weight ``w_i = s_i weight[y]``::

    one_vs_rest     h_j = max(0, M + x_j) off the target, h_y = max(0, M - x_y)    loss = w_i sum h_j^p
    multi_margin    h_j = max(0, M - x_y + x_j) off the target                     loss = w_i sum h_j^p / C
    crammer_singer  the same for the first of the largest x_j; all others 0        loss = w_i h_j^p

    grad_j = w_i p h_j^(p - 1), 0 where h_j is 0
    grad_y = minus that of h_y, or minus the sum of all others

A class at -inf is no term, and a target at -inf infinitely far below all that are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import is_nan, wide, zero_wins
from fastce.reference._batch import Batch

__all__ = ["hinge_loss", "hinge_loss_and_grad"]

KINDS = ("one_vs_rest", "multi_margin", "crammer_singer")


def hinge_loss(logits: ArrayLike, target: ArrayLike, **options: Any) -> Any:
    """Hinge loss, in wide precision: the first result of `hinge_loss_and_grad`."""
    return hinge_loss_and_grad(logits, target, **options)[0]


@np.errstate(all="ignore")
def hinge_loss_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    kind: str = "one_vs_rest",
    p: int = 1,
    margin: float = 1.0,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[Any, np.ndarray]:
    """Hinge loss of integer targets and a subgradient, in wide precision.

    Parameters
    ----------
    kind : {"one_vs_rest", "multi_margin", "crammer_singer"}
        Which classes are held against the margin, and how.
    p : {1, 2}
        Power of each hinge.
    margin : float, default 1
        What scores have to be apart, or off 0.
    logits, target, **options
        As in `cross_entropy_and_hess`, labels only.

    Returns
    -------
    loss, grad
        As from `cross_entropy_and_grad`.
    """
    if kind not in KINDS or p not in (1, 2):
        raise ValueError(f"kind must be one of {KINDS} and p 1 or 2, got {kind!r} and {p!r}")
    batch = Batch(logits, target, axis, weight, sample_weight, ignore_index, probabilities=False)
    x, w, columns = wide(batch.x), batch.at_target(batch.d), batch.x.shape[1]
    zero, x_y = wide(0.0)[()], batch.at_target(wide(batch.x))
    if kind == "one_vs_rest":
        h = _above_zero(wide(margin)[()] + batch.with_target(x, -x_y))
    else:
        h = batch.with_target(_lacking(batch.x, batch.at_target(batch.x), margin), zero)
    if kind == "crammer_singer":
        others = batch.with_target(batch.x, -np.inf)
        first = np.nan_to_num(others, nan=-np.inf, posinf=np.inf, neginf=-np.inf).argmax(axis=1)
        h = np.where(np.arange(columns) == first[:, None], h, zero)
    unknown = np.isnan(batch.x).any(axis=1) | is_nan(h).any(axis=1)
    if kind != "one_vs_rest":  # and no class above the target
        unknown |= (batch.x == -np.inf).all(axis=1)
    share = wide(1.0)[()] / (columns if kind == "multi_margin" else 1)
    loss = np.where(unknown, wide(np.nan)[()], (h**p).sum(axis=1) * share)
    slope = np.where(h > 0, 1 + zero if p == 1 else 2 * h, zero) * share
    own = -batch.at_target(slope) if kind == "one_vs_rest" else -slope.sum(axis=1)
    slope = np.where(unknown[:, None], wide(np.nan)[()], batch.with_target(slope, own))
    # A weight of 0, be it the row's or the class's, has no part in infinity.
    w = np.where(batch.s == 0, zero, w)
    return batch.reduced(reduction, normalizer, zero_wins(w, loss), zero_wins(w[:, None], slope))


def _lacking(x: np.ndarray, x_y: np.ndarray, margin: float) -> np.ndarray:
    """``max(0, margin - x_y + x_j)`` of (K, C) float64 scores, each sum as wide as if exact."""
    gap, gap_low = _two_sum(wide(margin)[()], -wide(x_y)[:, None])
    h, low = _two_sum(wide(x), gap)
    h = np.where(np.isfinite(np.asarray(h, np.float64)), h + (low + gap_low), h)
    return np.where(x == -np.inf, wide(0.0)[()], _above_zero(h))


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """a + b and what it has lost (Knuth)."""
    total = a + b
    part = total - a
    low = (a - (total - part)) + (b - part)
    return total, np.where(np.isfinite(np.asarray(low, np.float64)), low, 0 * wide(1.0)[()])


def _above_zero(a: np.ndarray) -> np.ndarray:
    return np.where(a <= 0, wide(0.0)[()], a)
