"""Calibration: how far probabilities can be believed.

For rows of logits z with maximum m, e_j = exp(z_j - m), s their sum, the target y and weights w_i::

    p_j   = e_j / s                 1 - p_y = (sum of the other e_j) / s
    Brier = (1 - p_y)^2 + sum of the other p_j^2, weighted by w_i and divided by their sum
    bins  = [b / n, (b + 1) / n) of the confidence max p, and one of exactly 1

The temperature T = 1 / b is where sum of w_i (E_p[z] - z_y) = 0 with p = softmax(b z): it grows with b, so
halves of an interval find it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import exp, wide

__all__ = ["brier_score", "calibration_error", "fit_temperature"]

_HALVINGS = 60  # of the logarithm of the range: to the last digits of float64


def _rows(
    logits: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None, ignore_index: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those that count, with their weights; (N, C) each."""
    z, y = wide(np.asarray(logits)), np.asarray(target)
    weight = wide(np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight))
    used = weight != 0
    if ignore_index is not None:
        used &= y != ignore_index
    return z[used], y[used], weight[used]


def _probabilities(z: np.ndarray) -> np.ndarray:
    e = exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def fit_temperature(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
) -> float:
    """The temperature, within the range of `fastce.calibration.fit_temperature`, of (N, C) logits.

    Parameters
    ----------
    logits, target, sample_weight, ignore_index
        As there.

    Returns
    -------
    float

    Examples
    --------
    >>> from fastce.reference import calibration
    >>> x = [[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]]
    >>> round(calibration.fit_temperature(x, [0, 0, 1, 1]), 6)
    3.640957
    """
    z, y, weight = _rows(logits, target, sample_weight, ignore_index)
    own = z[np.arange(len(y)), y]
    low, high = -10.0, 10.0  # of the logarithm of b
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        p = _probabilities(z * np.exp(middle))
        # A class of probability 0 may have a logit of -inf.
        mean = np.where(p == 0, 0, p * np.where(p == 0, 0, z)).sum(axis=1)
        low, high = (low, middle) if (weight * (mean - own)).sum() > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def brier_score(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
) -> np.floating:
    """The Brier score of (N, C) logits, in wide precision.

    Parameters
    ----------
    logits, target, sample_weight, ignore_index
        As in `fastce.calibration.brier_score`.

    Returns
    -------
    wide number

    Examples
    --------
    >>> from fastce.reference import calibration
    >>> f"{float(calibration.brier_score([[40.0, 0.0]], [0])):.10e}"
    '3.6097027757e-35'
    """
    z, y, weight = _rows(logits, target, sample_weight, ignore_index)
    p = _probabilities(z)
    p[np.arange(len(y)), y] = 0
    return (weight * (p.sum(axis=1) ** 2 + (p**2).sum(axis=1))).sum() / weight.sum()


def calibration_error(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    norm: str = "l1",
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
) -> float:
    """The calibration error of (N, C) logits, whose confidences are far from the edges of bins.

    Parameters
    ----------
    logits, target, n_bins, norm, sample_weight, ignore_index
        As in `fastce.calibration.calibration_error`.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.reference import calibration
    >>> x = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.05, 0.95]])
    >>> round(calibration.calibration_error(x, [0, 1, 1, 1]), 6)
    0.3125
    """
    z, y, weight = _rows(logits, target, sample_weight, ignore_index)
    confidence, right = _probabilities(z).max(axis=1).astype(np.float64), z.argmax(axis=1) == y
    place = np.floor(confidence * n_bins).astype(int)
    apart = {b: (weight * (right - confidence))[place == b].sum() for b in np.unique(place)}
    share = {b: weight[place == b].sum() for b in apart}
    total = weight.sum()
    if norm == "max":
        return float(max(abs(apart[b]) / share[b] for b in apart))
    if norm == "l2":
        return float(np.sqrt(float(sum(apart[b] ** 2 / share[b] for b in apart) / total)))
    return float(sum(abs(a) for a in apart.values()) / total)
