"""Losses from logits: what each function means; `_kernels` computes it."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray

from fastce import _kernels

__all__ = ["cross_entropy", "cross_entropy_and_grad"]


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Softmax cross-entropy of logits with class labels.

    For a row of logits :math:`x` with label :math:`y`

    .. math::
        \ell = -\log p_y = \log \sum_j e^{x_j} - x_y, \qquad p_j = \frac{e^{x_j}}{\sum_k e^{x_k}}

    computed without cancellation: with :math:`m = \max_j x_j` and the sum of the other terms
    :math:`r = \sum_{j \ne y} e^{x_j - m}` it is :math:`\operatorname{log1p}(r)` where the label's
    logit is the maximum. A confident row keeps all its digits.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, in nats, of any shape with at least one axis. float32 and float64
        are computed in their own precision; float16 and bfloat16 (of ``ml_dtypes``) in float32;
        integers and bools convert to float64. Any memory layout; floating-point logits are never copied.
    target : array_like of int
        Class index of each row: the logits' shape without `axis`.
    axis : int, default -1
        The class axis. All other axes are batch axes.
    sample_weight : array_like, optional
        Weight of each row, of the target's shape.
    ignore_index : int or None, default -100
        Rows with this target do not count: loss 0, and they leave the mean. None: no such value.
    reduction : {'mean', 'sum', 'none'}, default 'mean'
        ``'mean'`` is :math:`\sum_i s_i \ell_i / \sum_i s_i` over the rows that are not ignored, with
        the sample weights :math:`s_i`.
    normalizer : float, optional
        Replaces the denominator of the mean, for instance to accumulate over batches. It may be 0 where
        no row counts; the mean is 0 then.
    n_threads : int, optional
        At most that many threads; default :func:`fastce.get_num_threads`. Changes no bit of the result.

    Returns
    -------
    float or ndarray
        The mean or the sum, accumulated in float64, as a float. With ``reduction='none'`` the loss of each
        row, float64 for float64 logits and float32 for the others. The mean of no rows is NaN.

    Raises
    ------
    IndexError
        A label is neither in ``[0, C)`` nor `ignore_index`.
    TypeError
        A dtype that is not listed above.
    ValueError
        Shapes that do not match, no classes, an unknown `reduction`, a negative `normalizer`.

    Notes
    -----
    Per-row losses are within 2 ULP (float32) or 4 ULP (float64) of the exact value. NaN and infinities stay
    in their own row: one that holds NaN or +inf, or nothing but -inf, has loss NaN.

    The formula is that of [1]_, section 4.1, with the label's term taken out of the sum.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax
       functions", IMA Journal of Numerical Analysis 41 (2021), 2311-2330.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([[20.0, 0.0, 0.0], [1.0, 2.0, 3.0]], dtype=np.float32)
    >>> fastce.cross_entropy(logits, [0, 2], reduction="none")
    array([4.1223074e-09, 4.0760595e-01], dtype=float32)
    >>> round(fastce.cross_entropy(logits, [0, 2]), 6)
    0.203803
    """
    return _kernels.kernels.cross_entropy(
        logits, target, axis, sample_weight, ignore_index, reduction, normalizer, n_threads
    )


def cross_entropy_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
    n_threads: int | None = None,
    out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray]:
    r"""Softmax cross-entropy and its gradient with respect to the logits, in one pass.

    .. math::
        \frac{\partial \ell}{\partial x_j} = p_j \quad (j \ne y), \qquad
        \frac{\partial \ell}{\partial x_y} = p_y - 1 = -\frac{r}{s}

    with :math:`r = \sum_{j \ne y} e^{x_j - m}` and :math:`s = r + e^{x_y - m}`, so that neither loses
    digits. The gradient is that of the reduced loss; with ``reduction='none'`` that of the sum, so row i
    of it is the gradient of ``loss[i]``.

    Parameters
    ----------
    logits, target, axis, sample_weight, ignore_index, reduction, normalizer, n_threads
        As in :func:`cross_entropy`.
    out : ndarray, optional
        Where to write the gradient: the logits' shape and dtype, writable. ``out=logits`` overwrites the
        logits and needs no second array. A new array costs about as much in page faults as the
        computation, so give `out` where a batch is large.

    Returns
    -------
    loss : float or ndarray
        As :func:`cross_entropy`, the same bits.
    grad : ndarray
        `out`, or a new array of the logits' dtype and memory order. Rows of `ignore_index` are exactly 0.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in :func:`cross_entropy`, before anything is written; and ValueError or TypeError if `out` has
        another shape or dtype than the logits, is read-only, or overlaps itself or an input in part.

    Notes
    -----
    Every element of the gradient above the subnormal range is within 4 ULP (float32) or 8 ULP
    (float64) of the exact value, the label's included.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([[20.0, 0.0, 0.0], [1.0, 2.0, 3.0]], dtype=np.float32)
    >>> loss, grad = fastce.cross_entropy_and_grad(logits, [0, 2], reduction="sum")
    >>> grad
    array([[-4.1223074e-09,  2.0611537e-09,  2.0611537e-09],
           [ 9.0030573e-02,  2.4472848e-01, -3.3475903e-01]], dtype=float32)
    >>> out = np.empty_like(logits)
    >>> fastce.cross_entropy_and_grad(logits, [0, 2], out=out)[1] is out
    True
    """
    return _kernels.kernels.cross_entropy_and_grad(
        logits, target, axis, sample_weight, ignore_index, reduction, normalizer, n_threads, out
    )
