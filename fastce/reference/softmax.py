"""Softmax losses of the twin: cross-entropy, focal loss, cross-entropy with margins.

For one row of transformed logits ``z`` with sample weight ``s_i``, where the loss is a sum of
``-log p_j`` with coefficients ``d_j`` (class weights and label smoothing included)::

    y = the target, or argmax d        Q = sum of d_j        D = sum of d_j over j != y
    m = max z        e_j = exp(z_j - m)        r = sum of e_j over j != y        s = r + e_y
    p_j = e_j / s        lse = m + log s        log s = log1p(sum of e_j without one maximum)

    loss   = s_i (Q log s + sum of d_j (m - z_j) + z_loss lse²)
    grad_j = s_i (Q p_j - d_j + 2 z_loss lse p_j)            off the target
    grad_y = s_i (-Q r / s + D + 2 z_loss lse p_y)
    hess_j = s_i ((Q + 2 z_loss lse) p_j (1 - p_j) + 2 z_loss p_j²)

A class with ``d_j = 0`` contributes exactly 0, also where ``z_j = -inf``. Gradient and Hessian are
then taken through the transform of the logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import FORMATS, power, wide, zero_wins
from fastce.reference._batch import Batch
from fastce.reference._rows import Softmax, Transformed, margin_transform, transform

__all__ = [
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_and_hess",
    "focal_loss",
    "focal_loss_and_grad",
    "largest_terms",
    "margin_cross_entropy",
    "margin_cross_entropy_and_grad",
]


def cross_entropy(logits: ArrayLike, target: ArrayLike, **options: Any) -> Any:
    """Cross-entropy, in wide precision.

    Parameters
    ----------
    logits, target, **options
        As in `cross_entropy_and_hess`.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of a batch of labels for ``reduction="none"``

    See Also
    --------
    cross_entropy_and_grad : the loss together with its gradient.
    """
    return cross_entropy_and_hess(logits, target, **options)[0]


def cross_entropy_and_grad(logits: ArrayLike, target: ArrayLike, **options: Any) -> tuple[Any, np.ndarray]:
    """Cross-entropy and its gradient, in wide precision.

    Parameters
    ----------
    logits, target, **options
        As in `cross_entropy_and_hess`.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of a batch of labels for ``reduction="none"``
    grad : wide ndarray of the shape of `logits`
        Gradient of the reduced loss with respect to the logits; for ``reduction="none"`` that of
        the sum.

    Examples
    --------
    >>> from fastce import reference
    >>> loss, grad = reference.cross_entropy_and_grad([20.0, 0.0, 0.0], 0)
    >>> f"{loss:.10e}"
    '4.1223072364e-09'
    """
    return cross_entropy_and_hess(logits, target, **options)[:2]


def cross_entropy_and_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Cross-entropy, its gradient and the diagonal of its Hessian, in wide precision.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities; float16, bfloat16, float32 and float64 are read exactly,
        integers and booleans become float64.
    target : array_like of int or float
        Integers: one label per row, of the shape of `logits` without `axis`. Floating dtypes:
        probabilities, of the shape of `logits`.
    axis : int, default -1
        The class axis of `logits`.
    weight : array_like, optional
        One factor per class.
    sample_weight : array_like, optional
        One factor per row.
    ignore_index : int or None, default -100
        Rows with this label are not read; their loss and derivatives are 0 and the mean leaves them
        out.
    label_smoothing : float, default 0
        The part of the target that is spread evenly over all classes.
    z_loss : float, default 0
        Factor of the penalty ``lse²``.
    temperature : float, default 1
        Divides the logits.
    softcap : float, optional
        Logits become ``softcap * tanh(logits / softcap)`` first.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean is weighted: by ``sample_weight * weight[target]`` over the rows that are not
        ignored, with probability targets by `sample_weight`.
    normalizer : float, optional
        Replaces the denominator of the mean.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of a batch of labels for ``reduction="none"``
    grad, hess : wide ndarrays of the shape of `logits`
    """
    batch = Batch(logits, target, axis, weight, sample_weight, ignore_index, label_smoothing)
    return batch.reduced(reduction, normalizer, *_cross_entropy(batch, z_loss, temperature, softcap))


@np.errstate(all="ignore")
def _cross_entropy(
    batch: Batch, z_loss: float, temperature: float, softcap: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not z_loss >= 0:
        raise ValueError(f"z_loss must be at least 0, got {z_loss!r}")
    z = transform(batch.x, temperature, softcap)
    rows = Softmax(batch, z)
    d, row, top = batch.d, np.arange(len(batch.d)), abs(batch.d).argmax(axis=1)
    others = d.copy()
    others[row, top] = 0 * d[row, top]
    off = others.sum(axis=1)
    q = d[row, top] + off
    penalty = wide(z_loss)[()]
    by_lse = 2 * penalty * rows.lse

    loss = q * rows.log_s + zero_wins(d, z.gap).sum(axis=1) + penalty * rows.lse**2
    pull = q[:, None] * rows.p - d
    # Where d_j is largest Q p_j - d_j cancels, unless p_j is small.
    is_target = top == batch.y
    rest = q * np.where(is_target, rows.rest_y, rows.rest[row, top])
    cancels = abs(q * rows.p[row, top]) + abs(d[row, top]) >= abs(off) + abs(rest)
    pull[row, top] = np.where(is_target | cancels, off - rest, pull[row, top])
    grad = pull + by_lse[:, None] * rows.p
    hess = (q + by_lse)[:, None] * rows.p * rows.rest + 2 * penalty * rows.p**2
    return loss, grad * z.slope, hess * z.slope**2 + grad * z.curve


@np.errstate(all="ignore")
def largest_terms(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Largest terms of which loss and gradient of `cross_entropy_and_grad` are sums.

    Where the terms have different signs, an error in units in the last place of the result would
    grow without bound; it is measured in units at these numbers instead (the `scale` of
    `ulp_distance`). With hard targets and neither `label_smoothing`, `z_loss` nor `softcap` nothing
    cancels, and they are as large as the results up to a factor of 2.

    Parameters
    ----------
    logits, target, **options
        As in `cross_entropy_and_hess`; `reduction` and `normalizer` divide as they do there.

    Returns
    -------
    loss : wide ndarray
        For each row the largest magnitude among ``Q log s``, the sum of ``d_j (m - z_j)`` and the two terms
        of ``z_loss lse²``; with `softcap` also ``d_j |z_j|``, since ``m - z_j`` is itself a difference
        then, and ``p_j |z_j|`` off the maximum summed, an error of ``log s``. Sample weights are included,
        the reduction's divisor is not.
    grad : wide ndarray of the shape of `logits`
        For each element the largest magnitude among ``Q p_j``, ``d_j`` and the terms of
        ``2 z_loss lse p_j``, at the target among ``Q r / s``, `D` and the latter, where lse counts as
        at least the rounding error of a sum of exps in units of the logits' dtype; with `softcap`
        those with ``p_j`` count ``max(1, |z_j|, |m|)`` times, as an error of `z` becomes one of
        ``exp(z - m)``. Divided by what divides the gradient.
    """
    batch = Batch(logits, target, axis, weight, sample_weight, ignore_index, label_smoothing)
    z = transform(batch.x, temperature, softcap)
    rows = Softmax(batch, z)
    d, off = abs(batch.d), abs(batch.without_target(batch.d)).sum(axis=1)
    q = batch.at_target(d) + off
    m, penalty = abs(z.m[:, 0]), wide(z_loss)[()]
    lse = np.maximum(m, rows.log_s)  # of the two terms of m + log s the larger
    # A maximum that is not the target is 1 in r, which may be off by 2**-53; in float64 sums of float32 exps
    # by as much for each class.
    narrow = np.asarray(logits).dtype.name in ("float32", "float16", "bfloat16")
    rounding = max(2.0**-29, 2.0**-31 * batch.x.shape[1]) if narrow else 2.0**-4
    rounding = np.where(batch.at_target(z.gap) > 0, rounding, 0)
    lse = np.maximum(lse, rounding)

    log_s = np.maximum(rows.log_s, rounding)
    loss = np.maximum(np.maximum(q * log_s, penalty * lse**2), zero_wins(d, z.gap).sum(axis=1))
    size = 1 + 0 * rows.p
    if softcap is not None:
        values = abs(z.m - z.gap)
        size = np.maximum(np.maximum(values, abs(z.m)), size)
        others = np.where(z.gap == 0, 0 * size, rows.p * size).sum(axis=1)
        loss = np.maximum(np.maximum(loss, q * others), np.maximum(q * m, (d * values).max(axis=1)))
        lse = np.maximum(lse, others)
        loss = np.maximum(loss, penalty * abs(rows.lse) * lse)
    by_lse = 2 * penalty * lse
    off_target = np.maximum(np.maximum(q, by_lse)[:, None] * rows.p * size, d)
    rest_y = rows.rest_y if softcap is None else batch.without_target(rows.p * size).sum(axis=1)
    at_target = np.maximum(np.maximum(q * rest_y, off), batch.at_target(by_lse[:, None] * rows.p * size))
    slope = abs(z.slope)
    if softcap is not None:  # a subnormal one has few digits, and the terms may be large
        slope = np.maximum(slope, (2.0**-126 if narrow else 2.0**-1022) / temperature)
    grad = batch.with_target(off_target, at_target) * slope
    grad = abs(batch.reduced(reduction, normalizer, loss, grad)[1])
    return abs(batch.reduced("none", None, loss)[0]), grad


def focal_loss(logits: ArrayLike, target: ArrayLike, **options: Any) -> Any:
    """Focal loss, in wide precision: the first result of `focal_loss_and_grad`."""
    return focal_loss_and_grad(logits, target, **options)[0]


@np.errstate(all="ignore")
def focal_loss_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[Any, np.ndarray]:
    """Focal loss of integer targets and its gradient, in wide precision.

    With ``u = 1 - p_y = r / s`` and ``kappa = u^gamma (1 + gamma p_y (-log p_y) / u)``::

        loss = u^gamma (-log p_y)        grad_j = kappa p_j off the target        grad_y = -kappa u

    Parameters
    ----------
    gamma : float, default 2
        Exponent of the factor ``1 - p_y``; 0 is cross-entropy.
    logits, target, **options
        As in `cross_entropy_and_hess`.

    Returns
    -------
    loss, grad
        As from `cross_entropy_and_grad`.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma!r}")
    batch = Batch(logits, target, axis, weight, sample_weight, ignore_index, probabilities=False)
    z = transform(batch.x, 1.0, None)
    rows = Softmax(batch, z)
    u, p_y, w_y = rows.rest_y, batch.at_target(rows.p), batch.at_target(batch.d)
    surprise = batch.at_target(z.gap) + rows.log_s
    factor = power(u, wide(gamma)[()])
    # -log p_y = -log1p(-u), so its ratio to u tends to 1
    ratio = np.where(u == 0, 1 + u, zero_wins(p_y, surprise) / np.where(u == 0, 1 + u, u))
    kappa = w_y * factor * (1 + wide(gamma)[()] * ratio)
    grad = batch.with_target(kappa[:, None] * rows.p, -kappa * u)
    return batch.reduced(reduction, normalizer, zero_wins(w_y, factor * surprise), grad)


def margin_cross_entropy(cosine: ArrayLike, target: ArrayLike, **options: Any) -> Any:
    """Cross-entropy with margins, in wide precision: the first result of `margin_cross_entropy_and_grad`."""
    return margin_cross_entropy_and_grad(cosine, target, **options)[0]


@np.errstate(all="ignore")
def margin_cross_entropy_and_grad(
    cosine: ArrayLike,
    target: ArrayLike,
    *,
    scale: float = 64.0,
    margin1: float = 1.0,
    margin2: float = 0.5,
    margin3: float = 0.0,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[Any, np.ndarray]:
    """Cross-entropy of cosines with the combined margin, and its gradient, in wide precision.

    With ``theta = acos(cosine_y)`` and ``t = margin1 theta + margin2`` the target's logit becomes
    ``scale (phi - margin3)``, all others ``scale cosine_j``::

        phi = cos(t)                                                        where t is in [0, pi]
        phi = cosine_y - margin2 sin(margin2)                               beyond, margin1 = 1
        phi = (-1)^k cos(t) - 2 k,  k = floor(t / pi)                       beyond, other margin1

    The first extension is ArcFace's, the second SphereFace's for any angle; it is monotone and
    continuous. Cosines are clipped to [-1, 1], with gradient 0 outside. In the derivative of phi the
    division by ``sin(theta)`` counts it as at least the root of the eps of the logits' dtype; for
    ``margin1 = 1`` that derivative is written ``cos(margin2) + cosine_y sin(margin2) / sin(theta)``,
    so that it is exactly 1 without `margin2`, at cosines of ±1 too.

    Parameters
    ----------
    cosine : array_like
        Cosines between features and class centres.
    scale : float, default 64
        Factor of all logits.
    margin1, margin2, margin3 : float
        ArcFace is (1, 0.5, 0), CosFace (1, 0, 0.35), SphereFace (4, 0, 0).
    target, **options
        As in `cross_entropy_and_hess`, labels only.

    Returns
    -------
    loss, grad
        As from `cross_entropy_and_grad`; the gradient is that by the cosines.
    """
    batch = Batch(cosine, target, axis, weight, sample_weight, ignore_index, probabilities=False)
    z = margin_transform(batch, scale, (margin1, margin2, margin3), _eps(np.asarray(cosine).dtype))
    loss, grad = _hard(batch, z)
    return batch.reduced(reduction, normalizer, loss, grad * z.slope)


def _hard(batch: Batch, z: Transformed) -> tuple[np.ndarray, np.ndarray]:
    """Weighted ``-log p_y`` of rows and its gradient by z."""
    rows, w_y = Softmax(batch, z), batch.at_target(batch.d)
    grad = batch.with_target(w_y[:, None] * rows.p, -w_y * rows.rest_y)
    return zero_wins(w_y, batch.at_target(z.gap) + rows.log_s), grad


def _eps(dtype: np.dtype) -> float:
    return 2.0 ** -FORMATS.get(dtype.name, FORMATS["float64"])[0]
