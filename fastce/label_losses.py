"""Relatives of cross-entropy for class labels: focal loss, margins between cosines, log-probabilities."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray

from fastce._kernels import computed_by

__all__ = [
    "focal_loss",
    "focal_loss_and_grad",
    "margin_cross_entropy",
    "margin_cross_entropy_and_grad",
    "nll_loss",
]


@computed_by("kernels", "focal_loss", 0)
def focal_loss(
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
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Focal loss: cross-entropy in which rows count less the surer the model is of them.

    .. math::
        \ell = (1 - p_y)^\gamma \, (-\log p_y)

    :math:`1 - p_y` is the sum of the other exponentials over that of all, so that it never cancels.

    Parameters
    ----------
    logits : array_like
        As in :func:`fastce.cross_entropy`.
    target : array_like of int
        Class index of each row: the logits' shape without `axis`.
    gamma : float, default 2
        How fast sure rows fade, at least 0; 0 is cross-entropy.
    axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`fastce.cross_entropy`.

    Returns
    -------
    float or ndarray
        As :func:`fastce.cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`fastce.cross_entropy`; ValueError if `gamma` is negative or not finite.

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal loss for dense object detection",
       ICCV 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> fastce.focal_loss(logits, [0, 0], reduction="none").round(6)
    array([1.09000e-04, 7.01868e-01])
    """


@computed_by("kernels", "focal_loss", 1)
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
    n_threads: int | None = None,
    out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray]:
    r"""Focal loss and its gradient with respect to the logits.

    With :math:`u = 1 - p_y` and :math:`\kappa = u^\gamma + \gamma p_y u^{\gamma - 1} (-\log p_y)`

    .. math::
        \frac{\partial \ell}{\partial x_j} = \kappa p_j \quad (j \ne y), \qquad
        \frac{\partial \ell}{\partial x_y} = -\kappa u.

    Parameters
    ----------
    logits, target, gamma, axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`focal_loss`.
    out : ndarray, optional
        As in :func:`fastce.cross_entropy_and_grad`.

    Returns
    -------
    loss : float or ndarray
        As :func:`focal_loss`.
    grad : ndarray
        `out`, or a new array of the logits' dtype and memory order.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`focal_loss` and :func:`fastce.cross_entropy_and_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> loss, grad = fastce.focal_loss_and_grad(np.array([0.0, 1.0]), 0)
    >>> grad.round(6)
    array([-0.768235,  0.768235])
    """


@computed_by("kernels", "margin_cross_entropy", 0)
def margin_cross_entropy(
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
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Softmax cross-entropy of cosines with a margin for the target's, as in face recognition.

    With :math:`\theta` the angle of the target's cosine, its logit is

    .. math::
        s \, \bigl(\cos(m_1 \theta + m_2) - m_3\bigr)

    and that of every other class :math:`s \cos\theta_j`, s being `scale`. ArcFace is the default with margins
    (1, 0.5, 0), CosFace or AM-Softmax (1, 0, 0.35), SphereFace or L-Softmax (4, 0, 0).

    Parameters
    ----------
    cosine : array_like
        Cosines between features and class centres, clipped to [-1, 1]. Dtypes and layouts as the logits of
        :func:`fastce.cross_entropy`.
    target : array_like of int
        Class index of each row: the cosines' shape without `axis`.
    scale : float, default 64
        Factor of all cosines, between 1e-18 and 1e18.
    margin1, margin2, margin3 : float
        :math:`m_1 > 0` multiplies the angle, :math:`m_2` is added to it, in radians, :math:`m_3` is
        subtracted from the cosine.
    axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`fastce.cross_entropy`.

    Returns
    -------
    float or ndarray
        As :func:`fastce.cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`fastce.cross_entropy`; ValueError if `scale` or a margin is outside its range.

    Notes
    -----
    The target's logit falls with its angle all the way to :math:`\pi`. Where :math:`\theta + m_2 > \pi`
    (and :math:`m_1 = 1`) it is :math:`\cos\theta - m_2 \sin m_2 - m_3`; with another :math:`m_1` the cosine
    becomes :math:`(-1)^k \cos(\cdot) - 2k` in the k-th half turn.

    The additive margin of SM-Softmax is one on plain logits: subtract it from the target's and call
    :func:`fastce.cross_entropy`, whose gradient is that of the loss with the margin, too.

    References
    ----------
    .. [1] J. Deng, J. Guo, N. Xue, S. Zafeiriou, "ArcFace: additive angular margin loss for deep face
       recognition", CVPR 2019.
    .. [2] W. Liu et al., "SphereFace: deep hypersphere embedding for face recognition", CVPR 2017.
    .. [3] H. Wang et al., "CosFace: large margin cosine loss for deep face recognition", CVPR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> cosine = np.array([[0.9, 0.1, -0.2], [0.3, 0.4, 0.0]])
    >>> fastce.margin_cross_entropy(cosine, [0, 1], scale=10, reduction="none").round(6)
    array([0.00853 , 3.951674])
    """


@computed_by("kernels", "margin_cross_entropy", 1)
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
    n_threads: int | None = None,
    out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray]:
    r"""Margin cross-entropy and its gradient with respect to the cosines.

    Parameters
    ----------
    cosine, target, scale, margin1, margin2, margin3
        As in :func:`margin_cross_entropy`.
    axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`margin_cross_entropy`.
    out : ndarray, optional
        As in :func:`fastce.cross_entropy_and_grad`.

    Returns
    -------
    loss : float or ndarray
        As :func:`margin_cross_entropy`.
    grad : ndarray
        `out`, or a new array of the cosines' dtype and memory order. It is 0 where a cosine was clipped, and
        finite at -1 and 1: :math:`\sin\theta` counts as at least the root of the dtype's spacing at 1, which
        makes it 0 there for a margin that multiplies the angle.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`margin_cross_entropy` and :func:`fastce.cross_entropy_and_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> cosine = np.array([0.3, 0.4, 0.0])
    >>> loss, grad = fastce.margin_cross_entropy_and_grad(cosine, 1, scale=10)
    >>> grad.round(6)
    array([  9.342633, -10.659296,   0.465142])
    """


@computed_by("kernels", "nll_loss")
def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Negative log-likelihood of class labels under given log-probabilities: :math:`-\log p_y`.

    One element of each row is read.

    Parameters
    ----------
    log_probs : array_like
        Logarithms of probabilities, natural ones. Dtypes and layouts as the logits of
        :func:`fastce.cross_entropy`.
    target : array_like of int
        Class index of each row: the shape of `log_probs` without `axis`.
    axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`fastce.cross_entropy`.

    Returns
    -------
    float or ndarray
        As :func:`fastce.cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`fastce.cross_entropy`.

    See Also
    --------
    fastce.cross_entropy : from logits; more accurate than this of a log-softmax, and faster.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> round(fastce.nll_loss(np.log([[0.5, 0.5], [0.1, 0.9]]), [0, 1]), 6)
    0.399254
    """
