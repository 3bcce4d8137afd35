"""Cross-entropy from logits: what each function means; `_kernels` computes it."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray

from fastce._kernels import computed_by

__all__ = ["cross_entropy", "cross_entropy_and_grad", "cross_entropy_and_hess"]


@computed_by("kernels", "cross_entropy", 0)
def cross_entropy(
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
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Softmax cross-entropy of logits with class labels or target probabilities.

    For a row of logits :math:`x` with label :math:`y`, or with target probabilities :math:`q`

    .. math::
        \ell = -\log p_y = \log \sum_j e^{x_j} - x_y, \qquad \ell = -\sum_j q_j \log p_j, \qquad
        p_j = \frac{e^{x_j}}{\sum_k e^{x_k}}

    computed without cancellation: with :math:`m = \max_j x_j` and the sum of the other terms
    :math:`r = \sum_{j \ne y} e^{x_j - m}` the first is :math:`\operatorname{log1p}(r)` where the label's
    logit is the maximum. A confident row keeps all its digits.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, in nats, of any shape with at least one axis. float32 and float64
        are computed in their own precision; float16 and bfloat16 (of ``ml_dtypes``) in float32;
        integers and bools convert to float64. Any memory layout; floating-point logits are never copied.
    target : array_like
        Class indices of an integer dtype, one for each row: the logits' shape without `axis`. Or target
        probabilities of a floating dtype and the logits' shape, which need not sum to 1; a class with
        :math:`q_j = 0` counts exactly 0, also where its logit is -inf.
    axis : int, default -1
        The class axis. All other axes are batch axes.
    weight : array_like, optional
        Weight :math:`w` of each class, of shape (C,). A row counts :math:`w_y` times, a term of target
        probabilities :math:`w_j` times. The weight of a class that no label names is not looked at.
    sample_weight : array_like, optional
        Weight :math:`s_i` of each row: the logits' shape without `axis`.
    ignore_index : int or None, default -100
        Rows with this label do not count: loss 0, and they leave the mean. None: no such value.
    label_smoothing : float, default 0
        :math:`\varepsilon` in [0, 1]: :math:`(1 - \varepsilon) w_y (-\log p_y) + \frac{\varepsilon}{C} \sum_j
        w_j (-\log p_j)`, and for target probabilities :math:`(1 - \varepsilon) q + \varepsilon / C` in
        place of q [2]_.
    z_loss : float, default 0
        Adds `z_loss` times the square of :math:`\log \sum_j e^{x_j}` to each row, times the sample weight
        alone [3]_.
    temperature : float, default 1
        Divides the logits; between 1e-18 and 1e18.
    softcap : float, optional
        Replaces the logits by ``softcap * tanh(logits / softcap)``, before the temperature; between
        1e-18 and 1e18 [4]_.
    reduction : {'mean', 'sum', 'none'}, default 'mean'
        ``'mean'`` is :math:`\sum_i s_i w_{y_i} \ell_i / \sum_i s_i w_{y_i}` over the rows that are not
        ignored; for target probabilities :math:`\sum_i s_i \ell_i / \sum_i s_i`, as PyTorch has it.
    normalizer : float, optional
        Replaces the denominator of the mean, for instance to accumulate over batches. It may be 0 where
        no row counts; the mean is 0 then, and the gradient. Where rows do count the mean is infinite and
        the gradient of no use. Other numbers below 1e-270 are refused.
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
        Shapes that do not match, no classes, an unknown `reduction`, an option outside its range, an
        `ignore_index` with target probabilities.

    Notes
    -----
    Per-row losses are within 2 ULP (float32) or 4 ULP (float64) of the exact value, for one-hot
    probabilities as for labels. Where soft targets, smoothing, `z_loss` or `softcap` make the loss a sum of
    terms, the ULP is that of the largest. NaN and infinities stay in their own row: one that holds NaN or
    +inf, or nothing but -inf, has loss NaN.

    The formula is that of [1]_, section 4.1, with the label's term taken out of the sum.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax
       functions", IMA Journal of Numerical Analysis 41 (2021), 2311-2330.
    .. [2] C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.
    .. [3] A. Chowdhery et al., "PaLM: scaling language modeling with Pathways", 2022.
    .. [4] Gemma Team, "Gemma 2: improving open language models at a practical size", 2024.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([[20.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    >>> fastce.cross_entropy(logits, [0, 2], reduction="none")
    array([4.1223074e-09, 1.0986123e+00], dtype=float32)
    >>> round(fastce.cross_entropy(logits, [0, 2]), 6)
    0.549306
    >>> round(fastce.cross_entropy(logits, [0, 2], weight=[1, 1, 3], label_smoothing=0.1), 6)
    1.454005
    >>> round(fastce.cross_entropy(logits, np.array([[0.5, 0.5, 0], [0, 0, 1]])), 6)
    5.549306
    """


@computed_by("kernels", "cross_entropy", 1)
def cross_entropy_and_grad(
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
    n_threads: int | None = None,
    out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray]:
    r"""Softmax cross-entropy and its gradient with respect to the logits, in one pass.

    .. math::
        \frac{\partial \ell}{\partial x_j} = p_j \quad (j \ne y), \qquad
        \frac{\partial \ell}{\partial x_y} = p_y - 1 = -\frac{r}{s}

    with :math:`r = \sum_{j \ne y} e^{x_j - m}` and :math:`s = r + e^{x_y - m}`, so that neither loses
    digits; for target probabilities :math:`p_j \sum_k q_k - q_j`. The gradient is that of the reduced loss;
    with ``reduction='none'`` that of the sum, so row i of it is the gradient of ``loss[i]``. It is one with
    respect to the logits as given, before `softcap` and `temperature`.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index
        As in :func:`cross_entropy`.
    label_smoothing, z_loss, temperature, softcap
        As in :func:`cross_entropy`.
    reduction, normalizer, n_threads
        As in :func:`cross_entropy`.
    out : ndarray, optional
        Where to write the gradient: the logits' shape and dtype, writable. ``out=logits`` overwrites the
        logits and needs no second array. A new array costs about as much in page faults as the
        computation, so give `out` where a batch is large.

    Returns
    -------
    loss : float or ndarray
        As :func:`cross_entropy`. Of each row the same bits; a sum over rows of weights of both signs may
        differ in its last ones.
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
    (float64) of the exact value, the label's included; where it is a difference of terms, ULP of the largest.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([[20.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    >>> loss, grad = fastce.cross_entropy_and_grad(logits, [0, 2], reduction="sum")
    >>> print(np.array2string(grad, precision=4))
    [[-4.1223e-09  2.0612e-09  2.0612e-09]
     [ 3.3333e-01  3.3333e-01 -6.6667e-01]]
    >>> out = np.empty_like(logits)
    >>> fastce.cross_entropy_and_grad(logits, [0, 2], out=out)[1] is out
    True
    """


@computed_by("kernels", "cross_entropy", 2)
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
    n_threads: int | None = None,
    out: NDArray | None = None,
    hess_out: NDArray | None = None,
) -> tuple[float | NDArray, NDArray, NDArray]:
    r"""Softmax cross-entropy, its gradient and the diagonal of its Hessian, as boosting wants them.

    .. math::
        \frac{\partial^2 \ell}{\partial x_j^2} = p_j (1 - p_j)

    times the weights of the row, :math:`\sum_k q_k` for target probabilities and :math:`1 / T^2` for a
    `temperature` T; with `softcap` the exact second derivative through the tanh, with `z_loss` that of its
    term as well. :math:`1 - p_j` is the sum of the other exponentials over that of all where it would cancel.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index
        As in :func:`cross_entropy_and_grad`.
    label_smoothing, z_loss, temperature, softcap
        As in :func:`cross_entropy_and_grad`.
    reduction, normalizer, n_threads, out
        As in :func:`cross_entropy_and_grad`.
    hess_out : ndarray, optional
        Where to write the Hessian, under the same rules as `out`; it may not overlap `out`.

    Returns
    -------
    loss : float or ndarray
        As :func:`cross_entropy`, but for the last bits.
    grad, hess : ndarray
        Gradient and diagonal of the Hessian of the reduced loss, of the logits' shape and dtype.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in :func:`cross_entropy_and_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([[0.0, 0.0], [25.0, 0.0]])
    >>> loss, grad, hess = fastce.cross_entropy_and_hess(logits, [0, 0], reduction="sum")
    >>> hess
    array([[2.50000000e-01, 2.50000000e-01],
           [1.38879439e-11, 1.38879439e-11]])
    """
