"""Losses whose every element stands alone: what each function means; `_kernels` computes it."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray

from fastce._kernels import computed_by

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_and_grad",
    "binary_cross_entropy_with_logits_and_hess",
    "binary_focal_loss",
    "binary_focal_loss_and_grad",
]


@computed_by("elementwise", "binary_cross_entropy_with_logits", 0)
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Binary cross-entropy of logits, element by element: two classes, or any number of labels at once.

    For a logit :math:`x` with target :math:`y`, weight :math:`w` and positive weight :math:`w_+`

    .. math::
        \ell = w \left[ -w_+ y \log \sigma(x) - (1 - y) \log \sigma(-x) \right], \qquad
        \sigma(x) = \frac{1}{1 + e^{-x}}

    computed from :math:`t = e^{-|x|}`: :math:`-\log \sigma(x) = \max(-x, 0) + \operatorname{log1p}(t)`, so
    that a confident element keeps all its digits.

    Parameters
    ----------
    logits : array_like
        Log-odds, in nats, of any shape. float32 and float64 are computed in their own precision;
        float16 and bfloat16 (of ``ml_dtypes``) in float32; integers and bools convert to float64. Any memory
        layout; floating-point logits are never copied.
    target : array_like
        Probability of the positive class, in [0, 1]: bools or integers 0 and 1, or floats. Broadcasts to
        the shape of the logits, without being copied.
    weight : array_like, optional
        Factor of each element; broadcasts to the shape of the logits.
    pos_weight : array_like, optional
        Factor of the positive part, for instance one number for each label along the last axis;
        broadcasts to the shape of the logits.
    reduction : {'mean', 'sum', 'none'}, default 'mean'
        ``'mean'`` divides the sum by the number of elements, whatever the weights.
    normalizer : float, optional
        Replaces the denominator of the mean, for instance to accumulate over batches.
    n_threads : int, optional
        At most that many threads; default :func:`fastce.get_num_threads`. Changes no bit of the result.

    Returns
    -------
    float or ndarray
        The mean or the sum, accumulated in float64, as a float. With ``reduction='none'`` the loss of each
        element, float64 for float64 logits and float32 for the others. The mean of no elements is NaN.

    Raises
    ------
    TypeError
        A dtype that is not listed above.
    ValueError
        A target outside [0, 1], which the message names with its place; shapes that do not broadcast
        to that of the logits; an unknown `reduction`, a `normalizer` that is negative or too near 0.

    Notes
    -----
    The loss of a target of 0 or 1 is within 2 ULP (float32) or 4 ULP (float64) of the exact value. An
    infinite logit has loss 0 on its target's side and +inf on the other; a term with coefficient 0 is 0
    even if it is infinite. NaN stays in its own element.

    Signature and mean are those of ``torch.nn.functional.binary_cross_entropy_with_logits``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([[40.0, -1.0, 0.5], [-20.0, 2.0, 0.0]], dtype=np.float32)
    >>> labels = np.array([[1, 0, 1], [0, 0, 1]])
    >>> fastce.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    array([[4.2483541e-18, 3.1326169e-01, 4.7407699e-01],
           [2.0611537e-09, 2.1269281e+00, 6.9314718e-01]], dtype=float32)
    >>> round(fastce.binary_cross_entropy_with_logits(logits, labels, pos_weight=[1, 1, 3]), 5)
    0.99031
    """


@computed_by("elementwise", "binary_cross_entropy_with_logits", 1)
def binary_cross_entropy_with_logits_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
    out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray]:
    r"""Binary cross-entropy and its gradient with respect to the logits, in one pass.

    .. math::
        \frac{\partial \ell}{\partial x} = w \left[ (1 - y)\, \sigma(x) - w_+ y\, \sigma(-x) \right]

    The gradient is that of the reduced loss; with ``reduction='none'`` that of the sum.

    Parameters
    ----------
    logits, target, weight, pos_weight, reduction, normalizer, n_threads
        As in :func:`binary_cross_entropy_with_logits`.
    out : ndarray, optional
        Where to write the gradient: the logits' shape and dtype, writable. ``out=logits`` overwrites the
        logits and needs no second array. A new array costs more in page faults than the computation.

    Returns
    -------
    loss : float or ndarray
        As :func:`binary_cross_entropy_with_logits`, the same bits.
    grad : ndarray
        `out`, or a new array of the logits' dtype and memory order.

    Raises
    ------
    TypeError, ValueError
        As in :func:`binary_cross_entropy_with_logits`, before anything is written; and if `out` has
        another shape or dtype than the logits, is read-only, or overlaps itself or an input in part.

    Notes
    -----
    With a target of 0 or 1 a gradient above the subnormal range is within 4 ULP (float32) or 8 ULP
    (float64) of the exact value. With one between it is a difference, and the ULP is that of the larger term.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([40.0, -1.0, 2.0], dtype=np.float32)
    >>> loss, grad = fastce.binary_cross_entropy_with_logits_and_grad(logits, [1, 0, 1], reduction="sum")
    >>> grad
    array([-4.2483541e-18,  2.6894143e-01, -1.1920292e-01], dtype=float32)
    >>> out = np.empty_like(logits)
    >>> fastce.binary_cross_entropy_with_logits_and_grad(logits, [1, 0, 1], out=out)[1] is out
    True
    """


@computed_by("elementwise", "binary_cross_entropy_with_logits", 2)
def binary_cross_entropy_with_logits_and_hess(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
    out: NDArray | None = None,
    hess_out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray, NDArray]:
    r"""Binary cross-entropy, its gradient and the diagonal of its Hessian, in one pass.

    .. math::
        \frac{\partial^2 \ell}{\partial x^2} = w \left[ w_+ y + (1 - y) \right] \sigma(x)\, \sigma(-x)

    All other second derivatives are 0, so the diagonal is the whole of it: what boosting asks for.

    Parameters
    ----------
    logits, target, weight, pos_weight, reduction, normalizer, n_threads, out
        As in :func:`binary_cross_entropy_with_logits_and_grad`.
    hess_out : ndarray, optional
        Where to write the Hessian's diagonal: as `out`, and apart from it.

    Returns
    -------
    loss : float or ndarray
        As :func:`binary_cross_entropy_with_logits`, the same bits.
    grad : ndarray
        As :func:`binary_cross_entropy_with_logits_and_grad`, the same bits.
    hess : ndarray
        `hess_out`, or a new array of the logits' dtype and memory order. As accurate as the gradient.

    Raises
    ------
    TypeError, ValueError
        As in :func:`binary_cross_entropy_with_logits_and_grad`, and for `hess_out` as for `out`.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_cross_entropy_with_logits_and_hess([0.0, 40.0], [1, 1], reduction="sum")[2]
    array([2.50000000e-01, 4.24835426e-18])
    """


@computed_by("elementwise", "binary_focal_loss", 0)
def binary_focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Binary focal loss of logits: cross-entropy that counts less where the model is right already.

    .. math::
        \ell = w\, \alpha_t (1 - p_t)^\gamma \left[ -y \log \sigma(x) - (1 - y) \log \sigma(-x) \right]

    with :math:`p_t = y\, \sigma(x) + (1 - y)\, \sigma(-x)` and
    :math:`\alpha_t = \alpha y + (1 - \alpha)(1 - y)`, 1 without `alpha`.
    The difference :math:`1 - p_t = y\, \sigma(-x) + (1 - y)\, \sigma(x)` is a sum here.

    Parameters
    ----------
    logits, target, weight, reduction, normalizer, n_threads
        As in :func:`binary_cross_entropy_with_logits`.
    gamma : float, default 2.0
        Focusing parameter, at least 0. With 0 it is binary cross-entropy. 0, 1, 2, 3 and 4 are the fast ones.
    alpha : float in [0, 1], optional
        Weight of the positive class; that of the negative one is ``1 - alpha``.

    Returns
    -------
    float or ndarray
        As :func:`binary_cross_entropy_with_logits`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`binary_cross_entropy_with_logits`; `gamma` or `alpha` out of range.

    Notes
    -----
    The loss is that of [1]_, equation 5; soft targets enter it as in Optax's ``sigmoid_focal_loss``. With
    a target of 0 or 1 it is within 2 ULP (float32) or ``4 + 4 * gamma`` (float64),
    its gradient within 4 or ``8 + 4 * gamma``.

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal loss for dense object detection",
       ICCV 2017.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_focal_loss([3.0, -1.0], [1, 1], alpha=0.25, reduction="none")
    array([2.73208311e-05, 1.75467076e-01])
    """


@computed_by("elementwise", "binary_focal_loss", 1)
def binary_focal_loss_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
    out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray]:
    r"""Binary focal loss and its gradient with respect to the logits, in one pass.

    With :math:`u = 1 - p_t` and :math:`b`, the binary cross-entropy of an element,

    .. math::
        \frac{\partial \ell}{\partial x} = w\, \alpha_t u^\gamma \left[ (1 - y)\, \sigma(x) - y\, \sigma(-x)
        + \gamma (1 - 2 y) \frac{\sigma(x)\, \sigma(-x)}{u} b \right]

    whose terms have the same sign if the target is 0 or 1.

    Parameters
    ----------
    logits, target, gamma, alpha, weight, reduction, normalizer, n_threads
        As in :func:`binary_focal_loss`.
    out : ndarray, optional
        As in :func:`binary_cross_entropy_with_logits_and_grad`.

    Returns
    -------
    loss : float or ndarray
        As :func:`binary_focal_loss`, the same bits.
    grad : ndarray
        `out`, or a new array of the logits' dtype and memory order.

    Raises
    ------
    TypeError, ValueError
        As in :func:`binary_focal_loss`, before anything is written; and if `out` cannot be used.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_focal_loss_and_grad([3.0, -1.0], [1, 1], alpha=0.25, reduction="sum")[1]
    array([-7.87179616e-05, -1.92058681e-01])
    """


@computed_by("elementwise", "binary_cross_entropy")
def binary_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Binary cross-entropy of probabilities.

    .. math::
        \ell = -w \left[ y \max(\log p, -100) + (1 - y) \max(\log(1 - p), -100) \right]

    Logits hold more than probabilities do: where the model gives logits, use
    :func:`binary_cross_entropy_with_logits`.

    Parameters
    ----------
    probs : array_like
        Probabilities of the positive class, in [0, 1], of any shape, dtype and layout as logits.
    target, weight, reduction, normalizer, n_threads
        As in :func:`binary_cross_entropy_with_logits`.

    Returns
    -------
    float or ndarray
        As :func:`binary_cross_entropy_with_logits`.

    Raises
    ------
    TypeError
        As in :func:`binary_cross_entropy_with_logits`.
    ValueError
        A probability or a target outside [0, 1], NaN included: the message names it and its place. And as in
        :func:`binary_cross_entropy_with_logits`.

    Notes
    -----
    The clamp at -100 is that of ``torch.nn.functional.binary_cross_entropy``. Logarithms are taken as
    :math:`\log p = -\operatorname{log1p}((1 - p) / p)`, accurate to the last digits near 1 too.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_cross_entropy([0.9, 0.2, 0.0], [1, 0, 1], reduction="none")
    array([  0.10536052,   0.22314355, 100.        ])
    """
