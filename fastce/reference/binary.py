"""Binary losses of the twin, element by element.

With ``a = pos_weight y``, ``b = 1 - y``, ``sigma = 1 / (1 + exp(-x))`` and
``softplus(x) = max(x, 0) + log1p(exp(-|x|)) = -log(1 - sigma)``, all times `weight`::

    loss = a softplus(-x) + b softplus(x)
    grad = b sigma(x) - a sigma(-x)
    hess = (a + b) sigma(x) sigma(-x)

A coefficient of 0 contributes exactly 0, also at infinities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import as_exact_float64, divided, exp, log, log1p, power, wide, zero_wins

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_and_grad",
    "binary_cross_entropy_with_logits_and_hess",
    "binary_focal_loss",
    "binary_focal_loss_and_grad",
]


def binary_cross_entropy_with_logits(logits: ArrayLike, target: ArrayLike, **options: Any) -> Any:
    """The first result of `binary_cross_entropy_with_logits_and_hess`."""
    return binary_cross_entropy_with_logits_and_hess(logits, target, **options)[0]


def binary_cross_entropy_with_logits_and_grad(
    logits: ArrayLike, target: ArrayLike, **options: Any
) -> tuple[Any, np.ndarray]:
    """The first two results of `binary_cross_entropy_with_logits_and_hess`."""
    return binary_cross_entropy_with_logits_and_hess(logits, target, **options)[:2]


@np.errstate(all="ignore")
def binary_cross_entropy_with_logits_and_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Binary cross-entropy, its gradient and the diagonal of its Hessian, in wide precision.

    Parameters
    ----------
    logits : array_like
        Any shape.
    target : array_like
        Probabilities in [0, 1] that broadcast to `logits`.
    weight : array_like, optional
        Factor of each element; broadcasts to `logits`.
    pos_weight : array_like, optional
        Factor of the positive part; broadcasts against the last axis.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the number of elements.
    normalizer : float, optional
        Replaces the denominator of the mean.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of `logits` for ``reduction="none"``
    grad, hess : wide ndarrays of the shape of `logits`

    Examples
    --------
    >>> from fastce import reference
    >>> loss, grad = reference.binary_cross_entropy_with_logits_and_grad([40.0], [1])
    >>> f"{loss:.10e} {grad[0]:.10e}"
    '4.2483542553e-18 -4.2483542553e-18'
    """
    x, y = _logits_and_target(logits, target)
    a = y if pos_weight is None else y * _spread(pos_weight, x.shape, "pos_weight")
    b = 1 - y
    up, down = _sigma(x), _sigma(-x)
    loss = zero_wins(a, _softplus(-x)) + zero_wins(b, _softplus(x))
    return _reduced(x.shape, weight, reduction, normalizer, loss, b * up - a * down, (a + b) * up * down)


def binary_focal_loss(logits: ArrayLike, target: ArrayLike, **options: Any) -> Any:
    """The first result of `binary_focal_loss_and_grad`."""
    return binary_focal_loss_and_grad(logits, target, **options)[0]


@np.errstate(all="ignore")
def binary_focal_loss_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> tuple[Any, np.ndarray]:
    """Binary focal loss and its gradient, in wide precision.

    With ``u = y sigma(-x) + (1 - y) sigma(x)``, which is Optax's ``1 - p_t``, the binary cross-entropy
    ``l`` with gradient ``l'`` and ``u' = (1 - 2 y) sigma(x) sigma(-x)``::

        alpha_t = alpha y + (1 - alpha) (1 - y)        1 without alpha
        loss    = alpha_t u^gamma l
        grad    = alpha_t (u^gamma l' + gamma u^(gamma - 1) u' l)

    For targets of 0 and 1 both terms of the gradient have one sign.

    Parameters
    ----------
    logits, target, weight, reduction, normalizer
        As in `binary_cross_entropy_with_logits_and_hess`.
    gamma : float, default 2
        Exponent of the factor ``1 - p_t``; 0 is binary cross-entropy.
    alpha : float in [0, 1], optional
        Balance of positives and negatives.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of `logits` for ``reduction="none"``
    grad : wide ndarray of the shape of `logits`
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma!r}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha!r}")
    x, y = _logits_and_target(logits, target)
    up, down, g = _sigma(x), _sigma(-x), wide(gamma)[()]
    surprise = zero_wins(y, _softplus(-x)) + zero_wins(1 - y, _softplus(x))
    u = y * down + (1 - y) * up
    factor = power(u, g)
    loss = zero_wins(factor, surprise)
    # u vanishes only with a target of 0 or 1 that is hit; sigma(x) sigma(-x) and l go with it then.
    ratio = zero_wins(up * down, surprise) / np.where(u == 0, 1 + u, u)
    grad = factor * ((1 - y) * up - y * down + g * (1 - 2 * y) * ratio)
    if alpha is not None:
        balance = wide(alpha) * y + (1 - wide(alpha)) * (1 - y)
        loss, grad = zero_wins(balance, loss), balance * grad
    return _reduced(x.shape, weight, reduction, normalizer, loss, grad)


@np.errstate(all="ignore")
def binary_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> Any:
    """Binary cross-entropy of probabilities, in wide precision, each log at least -100.

    Parameters
    ----------
    probs : array_like
        Probabilities in [0, 1], any shape.
    target, weight, reduction, normalizer
        As in `binary_cross_entropy_with_logits_and_hess`.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of `probs` for ``reduction="none"``
    """
    p, y = _logits_and_target(probs, target, "probs")
    _check_unit_interval(p, "probs")
    lowest = wide(-100.0)[()]
    logs = (np.where(given == 0, lowest, of) for given, of in ((p, log(p)), (1 - p, log1p(-p))))
    log_p, log_not_p = (np.where(a < lowest, lowest, a) for a in logs)
    return _reduced(p.shape, weight, reduction, normalizer, -(y * log_p + (1 - y) * log_not_p))[0]


def _sigma(x: np.ndarray) -> np.ndarray:
    e = exp(-abs(x))
    return np.where(x < 0, e, 1 + 0 * e) / (1 + e)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0 * exp(-abs(x))) + log1p(exp(-abs(x)))


def _logits_and_target(
    logits: ArrayLike, target: ArrayLike, name: str = "logits"
) -> tuple[np.ndarray, np.ndarray]:
    x = wide(as_exact_float64(logits, name))
    y = _spread(target, x.shape, "target")
    _check_unit_interval(y, "target")
    return x, y


def _spread(a: ArrayLike, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Array `a`, broadcast to the logits."""
    a = as_exact_float64(a, name)
    try:
        return wide(np.broadcast_to(a, shape))
    except ValueError:
        raise ValueError(f"{name} must broadcast to the shape {shape}, got {a.shape}") from None


def _check_unit_interval(a: np.ndarray, name: str) -> None:
    wrong = ~np.asarray((a >= 0) & (a <= 1), dtype=bool)
    if wrong.any():
        raise ValueError(f"{name} must be in [0, 1], got {float(a[wrong].flat[0])!r}")


def _reduced(
    shape: tuple[int, ...],
    weight: ArrayLike | None,
    reduction: str,
    normalizer: float | None,
    loss: np.ndarray,
    *derivatives: np.ndarray,
) -> tuple[Any, ...]:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    w = wide(1.0)[()] if weight is None else _spread(weight, shape, "weight")
    divisor = wide(1.0)[()]
    if reduction == "mean":
        divisor = wide(float(np.prod(shape)) if normalizer is None else normalizer)[()]
    loss, is_given = zero_wins(w, loss), normalizer is not None
    result = loss if reduction == "none" else divided(wide(loss).sum(), divisor, is_given)
    return result, *(divided(w * a, divisor, is_given) for a in derivatives)
