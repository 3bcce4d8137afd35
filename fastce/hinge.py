"""Hinge losses: what scores lack to a margin, of one class against the rest or of pairs of classes."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray

from fastce._kernels import computed_by

__all__ = ["hinge_loss", "hinge_loss_and_grad"]


@computed_by("kernels", "hinge_loss", 0)
def hinge_loss(
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
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Hinge loss of scores: what they lack to a margin, 0 where they lack nothing.

    With :math:`[a]_+ = \max(0, a)` and the margin M

    .. math::
        \text{one_vs_rest:} \quad & \ell = [M - x_y]_+^p + \sum_{j \ne y} [M + x_j]_+^p \\
        \text{multi_margin:} \quad & \ell = \frac 1 C \sum_{j \ne y} [M - x_y + x_j]_+^p \\
        \text{crammer_singer:} \quad & \ell = \bigl[M - x_y + \max_{j \ne y} x_j\bigr]_+^p

    The first is Caffe's, of one binary classifier for each class; the second PyTorch's; the third, with
    p = 1, scikit-learn's of more than two classes.

    Parameters
    ----------
    logits : array_like
        Scores, as in :func:`fastce.cross_entropy`.
    target : array_like of int
        Class index of each row: the logits' shape without `axis`.
    kind : {"one_vs_rest", "multi_margin", "crammer_singer"}, default "one_vs_rest"
        Whether each score is held against 0, each against the target's, or only the largest of the others.
    p : {1, 2}, default 1
        Power of each term: 1 is the hinge, 2 its square, which has no kink.
    margin : float, default 1
        M, between -1e18 and 1e18.
    axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`fastce.cross_entropy`.

    Returns
    -------
    float or ndarray
        As :func:`fastce.cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`fastce.cross_entropy`; ValueError if `kind`, `p` or `margin` is none of those above.

    See Also
    --------
    fastce.cross_entropy : the smooth one, which goes on pulling at rows beyond the margin.

    Notes
    -----
    Each term is right to a rounding, however near the kink: differences of scores are exact until then.

    NaN in a row makes it NaN. A class at :math:`-\infty` that is not the target has no term; a target there
    has a loss of infinity, NaN if "multi_margin" or "crammer_singer" find nothing but :math:`-\infty`. At
    :math:`+\infty` a target lacks nothing, and another class makes the loss infinite; both at once are NaN
    where they are subtracted. In float64 a term beyond its largest number is infinite.

    PyTorch's ``multi_margin_loss`` divides a mean with class weights by the number of rows, this one by the
    sum of their weights; for PyTorch's give the number of rows as `normalizer`.

    References
    ----------
    .. [1] K. Crammer, Y. Singer, "On the algorithmic implementation of multiclass kernel-based vector
       machines", Journal of Machine Learning Research 2, 2001.
    .. [2] J. Weston, C. Watkins, "Support vector machines for multi-class pattern recognition", ESANN 1999.
    .. [3] R. Rifkin, A. Klautau, "In defense of one-vs-all classification", Journal of Machine Learning
       Research 5, 2004.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> scores = np.array([[2.0, -1.5, 0.25], [0.5, 0.75, -2.0]])
    >>> fastce.hinge_loss(scores, [0, 1], reduction="none")
    array([1.25, 1.75])
    >>> fastce.hinge_loss(scores, [0, 1], kind="multi_margin", reduction="none")
    array([0.  , 0.25])
    >>> fastce.hinge_loss(scores, [0, 1], kind="crammer_singer", p=2)
    0.28125
    """


@computed_by("kernels", "hinge_loss", 1)
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
    n_threads: int | None = None,
    out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray]:
    r"""Hinge loss and a subgradient with respect to the scores.

    With :math:`h_j = [M - x_y + x_j]_+` that of "multi_margin" is

    .. math::
        \frac{\partial \ell}{\partial x_j} = \frac p C h_j^{p - 1} \quad (j \ne y, h_j > 0), \qquad
        \frac{\partial \ell}{\partial x_y} = -\sum_{j \ne y} \frac{\partial \ell}{\partial x_j},

    and 0 at the kink, :math:`h_j = 0`. With "crammer_singer" the first of the largest :math:`x_j` alone has a
    slope, and its :math:`x_y`; with "one_vs_rest" each score has its own.

    Parameters
    ----------
    logits, target, kind, p, margin
        As in :func:`hinge_loss`.
    axis, weight, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`hinge_loss`.
    out : ndarray, optional
        As in :func:`fastce.cross_entropy_and_grad`.

    Returns
    -------
    loss : float or ndarray
        As :func:`hinge_loss`.
    grad : ndarray
        `out`, or a new array of the logits' dtype and memory order.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`hinge_loss` and :func:`fastce.cross_entropy_and_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> loss, grad = fastce.hinge_loss_and_grad(np.array([0.5, 0.75, -2.0]), 0, kind="multi_margin")
    >>> loss, grad.round(3)
    (0.4166666666666667, array([-0.333,  0.333,  0.   ]))
    """
