"""The softmax of rows, in the letters of the formulas; the transforms of logits in front of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastce.reference._arithmetic import acos, cos, exp, expm1, floor, is_nan, log1p, sin, sqrt, wide
from fastce.reference._batch import Batch


class Transformed(NamedTuple):
    """Transformed logits z of rows: their maximum, what they lack to it, derivatives by the logits."""

    m: np.ndarray  # (K, 1)
    gap: np.ndarray  # (K, C), m - z
    slope: Any  # dz/dx
    curve: Any  # d²z/dx²


class Softmax:
    """Sums of ``e_j = exp(z_j - m)`` of each row: nothing that comes out of here has cancelled.

    Attributes
    ----------
    p : (K, C) wide ndarray
        ``e_j / s``.
    rest : (K, C) wide ndarray
        ``1 - p_j``, as a sum of the other e_j where p_j may be near 1.
    rest_y : (K,) wide ndarray
        ``r / s``, the same at the target.
    log_s, lse : (K,) wide ndarray
        ``log s`` and ``m + log s``.
    """

    def __init__(self, batch: Batch, z: Transformed) -> None:
        row, e = np.arange(len(z.gap)), exp(-z.gap)
        top = np.asarray(z.gap == 0, dtype=bool).argmax(axis=1)
        others = e.copy()
        others[row, top] = 0 * z.m[:, 0]
        above_one = others.sum(axis=1)
        s = (above_one + e[row, top])[:, None]
        self.p = e / s
        self.rest = (s - e) / s  # e_j is at most half of s, off the maximum
        self.rest[row, top] = above_one / s[:, 0]
        self.rest_y = batch.without_target(e).sum(axis=1) / s[:, 0]
        self.log_s = log1p(above_one)
        self.lse = z.m[:, 0] + self.log_s


def transform(x: np.ndarray, temperature: float, softcap: float | None) -> Transformed:
    """``z = softcap * tanh(x / softcap) / temperature`` of (K, C) float64 logits."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be above 0, got {softcap!r}")
    t, top = wide(temperature)[()], x.argmax(axis=1)[:, None]  # NaN counts as the maximum
    m = np.take_along_axis(x, top, axis=1)
    # NaN or +inf somewhere, or -inf everywhere: the whole row becomes NaN. softcap leaves no infinity.
    m = wide(np.where(np.isnan(m) if softcap else ~np.isfinite(m), np.nan, m))
    x = wide(x)
    if softcap is None:
        return Transformed(m / t, (m - x) / t, 1 / t, 0 * t)

    # Differences of tanh cancel where both arguments are on one side of 0; there, with a the smaller
    # and b the larger magnitude,
    #   tanh b - tanh a = 2 exp(-2a) (1 - exp(-2 (b - a))) / ((1 + exp(-2a)) (1 + exp(-2b)))
    c = wide(softcap)[()]
    small, small_m = exp(-2 * abs(x) / c), exp(-2 * abs(m) / c)
    tanh, tanh_m = (-expm1(-2 * abs(a) / c) / (1 + b) for a, b in ((x, small), (m, small_m)))
    apart = np.where(abs(m) == abs(x), 0 * c, abs(abs(m) - abs(x)) / c)
    gap = -2 * np.where(small > small_m, small, small_m) * expm1(-2 * apart)
    gap = c * np.where((m > 0) & (x < 0), tanh_m + tanh, gap / ((1 + small) * (1 + small_m)))
    slope = 4 * small / (1 + small) ** 2 / t
    signed = np.where(x < 0, -tanh, tanh)
    return Transformed(c * np.where(m < 0, -tanh_m, tanh_m) / t, gap / t, slope, -2 / c * signed * slope)


def margin_transform(
    batch: Batch, scale: float, margins: tuple[float, float, float], eps: float
) -> Transformed:
    """Scaled cosines, the target's with the combined margin; `eps` is that of the cosines' dtype."""
    inside = abs(batch.x) <= 1
    clipped = wide(np.clip(batch.x, -1, 1))
    phi, phi_slope = _with_margin(batch.at_target(clipped), margins, eps)
    factor = wide(scale)[()]
    z = factor * batch.with_target(clipped, phi)
    m = z.max(axis=1, keepdims=True)
    m = np.where(is_nan(z).any(axis=1, keepdims=True), wide(np.nan)[()], m)
    slope = np.where(inside, batch.with_target(factor + 0 * z, factor * phi_slope), 0 * factor)
    return Transformed(m, m - z, slope, 0 * slope)


def _with_margin(
    cosine: np.ndarray, margins: tuple[float, float, float], eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """The target's cosine with the combined margin, and its derivative by the cosine."""
    margin1, margin2, margin3 = (wide(margin)[()] for margin in margins)
    theta, sine = acos(cosine), sqrt((1 - cosine) * (1 + cosine))
    pi, at_least = acos(wide(-1.0)), sqrt(wide(eps))
    divisor = np.where(sine < at_least, at_least, sine)
    if margin1 == 1:
        # cos(theta + margin2), written so that no margin2 leaves the cosine and its slope of 1 alone
        beyond = margin2 > acos(-cosine)  # which is pi - theta, with its digits near pi
        phi = cosine * cos(margin2) - sine * sin(margin2)
        phi = np.where(beyond, cosine - margin2 * sin(margin2), phi)
        slope = np.where(beyond, 1 + 0 * sine, cos(margin2) + cosine * sin(margin2) / divisor)
    else:
        turned = margin1 * theta + margin2
        k = floor(turned / pi)
        sign = np.where(k % 2 == 0, 1 + 0 * k, -1 + 0 * k)
        phi, slope = sign * cos(turned) - 2 * k, sign * margin1 * sin(turned) / divisor
    return phi - margin3, slope
