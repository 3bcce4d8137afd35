"""The twin of `fastce.information`: measures of given probabilities.

Logarithms are natural, or to another base; ``0 log 0 = 0``, and p > 0 where q = 0 gives infinity::

    self_information = -log p                      entropy       = -sum of p log p
    cross_entropy    = -sum of p log q             kl_divergence = sum of p log(p / q)

Terms of the divergence have both signs and cancel where p is near q. There, with ``t = (p - q) / q``
and over those elements only, ``p log(p / q) = q ((1 + t) log(1 + t) - t) + (p - q)``: the first part is
never negative and is summed as a series in t, the second is summed exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import as_exact_float64, log, wide, zero_wins

__all__ = ["cross_entropy", "entropy", "kl_divergence", "self_information"]

_SERIES_TERMS = 60  # 4**-60 is below the last digit of 113 bits


@np.errstate(all="ignore")
def self_information(p: ArrayLike, *, base: float | None = None) -> Any:
    """Information ``-log p`` of events of probability `p`, in wide precision."""
    return _in_base(0 - log(_probabilities(p, "p")), base)


@np.errstate(all="ignore")
def entropy(p: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    """Entropy of distributions along `axis`, in wide precision."""
    p = _probabilities(p, "p")
    return _in_base(zero_wins(p, 0 - log(p)).sum(axis=axis), base)


@np.errstate(all="ignore")
def cross_entropy(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    """Cross-entropy of `q` under `p` along `axis`, in wide precision."""
    p, q = np.broadcast_arrays(_probabilities(p, "p"), _probabilities(q, "q"))
    return _in_base(zero_wins(p, 0 - log(q)).sum(axis=axis), base)


@np.errstate(all="ignore")
def kl_divergence(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    """Kullback-Leibler divergence of `q` from `p` along `axis`, in wide precision.

    Examples
    --------
    >>> from fastce.reference import information
    >>> f"{information.kl_divergence([0.5, 0.5], [0.5 + 2**-40, 0.5 - 2**-40]):.10e}"
    '1.6543612251e-24'
    """
    p, q = np.broadcast_arrays(_probabilities(p, "p"), _probabilities(q, "q"))
    p, q = (np.moveaxis(a, axis, -1) for a in (p, q))
    one, zero = wide(1.0)[()], wide(0.0)[()]
    near = np.asarray((q > 0) & (abs(p - q) < 0.25 * q), dtype=bool)
    t = np.where(near, p - q, zero) / np.where(near, q, one)
    far = ~near & np.asarray(p > 0, dtype=bool)
    ratio = np.where(far & np.asarray(q > 0, dtype=bool), p, one) / np.where(far & (q > 0), q, one)
    terms = np.where(far, p * np.where(q > 0, log(ratio), wide(np.inf)[()]), zero)
    terms = np.where(near, q * _excess(t), terms)
    exact = _exact_sum(np.concatenate([np.where(near, p, zero), np.where(near, -q, zero)], axis=-1))
    return _in_base(terms.sum(axis=-1) + exact, base)


def _excess(t: np.ndarray) -> np.ndarray:
    """``(1 + t) log(1 + t) - t = t²/2 - t³/6 + t⁴/12 - ...`` for \\|t\\| up to 1/4."""
    total = 0 * t
    for k in range(_SERIES_TERMS, 1, -1):
        total = 1 / (wide(k * (k - 1.0))[()]) - t * total
    return t * t * total


def _exact_sum(a: np.ndarray) -> np.ndarray:
    """Sums along the last axis of numbers that are float64, right to more digits than float64 has."""
    rows = a.astype(np.float64).reshape(math.prod(a.shape[:-1]), a.shape[-1])
    sums = [math.fsum(row) for row in rows]
    rests = [math.fsum([*row, -total]) for row, total in zip(rows, sums, strict=True)]
    return (wide(np.array(sums)) + wide(np.array(rests))).reshape(a.shape[:-1])


def _in_base(nats: Any, base: float | None) -> Any:
    if base is None:
        return nats
    if not (base > 0 and base != 1):
        raise ValueError(f"base must be above 0 and not 1, got {base!r}")
    return nats / log(wide(base)[()])


def _probabilities(a: ArrayLike, name: str) -> np.ndarray:
    p = as_exact_float64(a, name)
    if (wrong := ~(p >= 0)).any():
        raise ValueError(f"{name} must hold probabilities, got {float(p[wrong].flat[0])!r}")
    return wide(p)
