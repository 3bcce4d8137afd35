"""Scoring and sampling: what a pipeline asks of logits, from one read of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernels
from fastce._kernels.entry import arrays
from fastce.losses import cross_entropy

__all__ = [
    "Sample",
    "TokenLogprobs",
    "bits_per_token",
    "perplexity",
    "sample",
    "score",
    "token_logprobs",
    "top_k",
]


class TokenLogprobs(NamedTuple):
    """What `token_logprobs` and `score` return: arrays with one entry for each row, or `top_k` of them.

    Attributes
    ----------
    logprob : ndarray
        Logarithm of the token's probability, the negative of its loss.
    rank : ndarray of int64
        1 + the number of logits strictly above the token's.
    entropy : ndarray
        Entropy of the row's distribution in nats.
    top_tokens : ndarray of int64
        The most probable tokens in descending order, ties by the lower index.
    top_logprobs : ndarray
        Logarithms of their probabilities.
    """

    logprob: NDArray
    rank: NDArray
    entropy: NDArray
    top_tokens: NDArray
    top_logprobs: NDArray


class Sample(NamedTuple):
    """What `sample` returns.

    Attributes
    ----------
    tokens : ndarray of int64
        The tokens drawn.
    logprobs : ndarray
        Logarithms of their probabilities in the distribution that they were drawn from.
    """

    tokens: NDArray
    logprobs: NDArray


def token_logprobs(
    logits: ArrayLike,
    tokens: ArrayLike,
    *,
    top_k: int = 0,
    axis: int = -1,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    n_threads: int | None = None,
) -> TokenLogprobs:
    r"""Log-probability and rank of a token in each row of logits, the row's entropy and its best tokens.

    For a row of logits :math:`x` with token :math:`y`, temperature :math:`T` and :math:`m = \max_j x_j`

    .. math::
        \log p_y = -\Bigl(\frac{m - x_y}{T} + \log s\Bigr), \qquad s = \sum_j e^{(x_j - m) / T}, \qquad
        H = \log s + \frac{1}{s} \sum_j e^{(x_j - m) / T} \, \frac{m - x_j}{T}

    where :math:`\log s` is the log1p of the sum without the maximum's own term: nothing cancels, however sure
    the row is. All of it takes one read of the logits.

    Parameters
    ----------
    logits : array_like
        Of any shape with at least one axis, dtype and memory layout, as in `fastce.cross_entropy`;
        floating-point logits are read as they are.
    tokens : array_like of int
        One for each row: the logits' shape without `axis`.
    top_k : int, default 0
        How many of the most probable tokens to return.
    axis : int, default -1
        The class axis.
    temperature : float, default 1
        Divides the logits; between 1e-18 and 1e18.
    softcap : float, optional
        Replaces the logits by ``softcap * tanh(logits / softcap)``, before the temperature. Ranks and the
        order of tokens are those of the logits as given.
    ignore_index : int or None, default -100
        Rows with this token are not read. None: no such value.
    n_threads : int, optional
        At most that many threads; default :func:`fastce.get_num_threads`. Changes no bit of the result.

    Returns
    -------
    TokenLogprobs
        Named tuple of arrays: ``logprob``, ``rank`` and ``entropy`` of the tokens' shape, ``top_tokens`` and
        ``top_logprobs`` with a last axis of length `top_k`. Floats are float64 for float64 logits and
        float32 for the others. An ignored row has logprob, rank and entropy 0, tokens -1 and their logprobs
        0; a row that holds NaN or +inf, or nothing but -inf, has NaN, rank 0 and tokens -1.

    Raises
    ------
    IndexError
        A token is neither in ``[0, C)`` nor `ignore_index`.
    TypeError, ValueError
        As `fastce.cross_entropy`; a `top_k` that is negative or more than there are classes.

    Notes
    -----
    ``logprob`` is within 2 ULP (float32) or 4 ULP (float64) of the exact value, ``entropy`` within 4 or 8,
    for sure rows too, with any temperature. With `softcap` capped logits are rounded first: bounds are half
    as large again, in ULP of ``softcap / temperature`` and, of the entropy :math:`H`, of that times
    :math:`1 + 2 H`, where these are larger than the result. Ranks and top tokens are exact. vLLM's rank
    counts tokens that tie with the chosen one as well.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.inference import token_logprobs
    >>> logits = np.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=np.float32)
    >>> scores = token_logprobs(logits, [0, 1], top_k=2)
    >>> print(np.array2string(scores.logprob, precision=4))
    [-4.1223e-09 -1.4076e+00]
    >>> scores.rank
    array([1, 2])
    >>> print(np.array2string(scores.entropy, precision=4))
    [8.6568e-08 8.3240e-01]
    >>> scores.top_tokens
    array([[0, 1],
           [2, 1]])
    """
    return TokenLogprobs(
        *_kernels.scoring.token_logprobs(
            logits, tokens, top_k, axis, temperature, softcap, ignore_index, n_threads
        )
    )


def score(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    tokens: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    top_k: int = 0,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    memory: int = 64 * 2**20,
    n_threads: int | None = None,
) -> TokenLogprobs:
    """`token_logprobs` of ``hidden @ linear_weight.T + linear_bias``, which never exists as a whole.

    Parameters
    ----------
    hidden : array_like
        Hidden states, of shape (..., D).
    linear_weight : array_like
        The head, of shape (C, D).
    tokens : array_like of int
        Of the shape of `hidden` without its last axis.
    linear_bias : array_like, optional
        Of shape (C,).
    top_k, temperature, softcap, ignore_index, n_threads
        As in `token_logprobs`.
    memory : int, default 64 MiB
        Bytes that the call may hold beyond arguments and results: blocks of logits, and of states and
        weights where they have another dtype than the products, which are float64 if either is and else
        float32.

    Returns
    -------
    TokenLogprobs
        As of `token_logprobs`.

    Raises
    ------
    IndexError
        A token is neither in ``[0, C)`` nor `ignore_index`.
    TypeError, ValueError
        Shapes that do not match; `memory` that not even one row of logits fits into.

    Notes
    -----
    The last bits of the products are the BLAS library's, and may depend on its threads and on the blocks.
    From the logits on, the bounds of `token_logprobs` hold.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.inference import score, token_logprobs
    >>> rng = np.random.default_rng(0)
    >>> hidden, head = rng.normal(size=(2, 3, 8)), rng.normal(size=(100, 8))
    >>> tokens = rng.integers(100, size=(2, 3))
    >>> scores = score(hidden, head, tokens, memory=4096)
    >>> np.allclose(scores.logprob, token_logprobs(hidden @ head.T, tokens).logprob)
    True
    """
    h = arrays.float_array(hidden, "hidden")
    w = arrays.float_array(linear_weight, "linear_weight")
    b = None if linear_bias is None else arrays.float_array(linear_bias, "linear_bias")
    if h.ndim == 0 or w.ndim != 2 or w.shape[1] != h.shape[-1]:
        raise ValueError(
            f"hidden has shape {h.shape} and linear_weight {w.shape}; expected (..., D) and (C, D)"
        )
    n_classes, n_features = w.shape
    if b is not None and b.shape != (n_classes,):
        raise ValueError(f"linear_bias has shape {b.shape}; expected ({n_classes},), one for each class")
    y = _kernels.scoring.checked_tokens(tokens, n_classes, ignore_index)
    if y.shape != h.shape[:-1]:
        raise ValueError(
            f"tokens has shape {y.shape}; expected {h.shape[:-1]}, that of hidden without its last axis"
        )
    rows, labels = h.reshape(-1, n_features), y.reshape(-1)
    dtype = np.float64 if np.float64 in (h.dtype, w.dtype) else np.float32
    options = (top_k, -1, temperature, softcap, ignore_index, n_threads)
    parts = [
        _kernels.scoring.token_logprobs(logits, labels[start : start + len(logits)], *options)
        for start, logits in _blocks_of_logits(rows, w, b, np.dtype(dtype), int(memory))
    ]
    joined = (a[0] if len(a) == 1 else np.concatenate(a) for a in zip(*parts, strict=True))
    return TokenLogprobs(*(a.reshape(y.shape + a.shape[1:]) for a in joined))


def _blocks_of_logits(h: NDArray, w: NDArray, b: NDArray | None, dtype: np.dtype, memory: int) -> Any:
    """Yield the first row and the logits of one block of rows after the other, in the same memory."""
    (n_rows, n_features), n_classes, item = h.shape, len(w), dtype.itemsize
    of_row = item * (n_classes + n_features * (h.dtype != dtype))
    of_class = item * n_features * (w.dtype != dtype)
    if memory < of_row + of_class:
        raise ValueError(
            f"memory is {memory} bytes; expected at least {of_row + of_class}, what one row of "
            f"{n_classes} logits takes"
        )
    # Converted weights get a fourth of the memory: each block of rows converts all of them again.
    at_once = max(1, min(n_classes, (memory - of_row) // 4 // of_class)) if of_class else n_classes
    n = max(1, min(n_rows, (memory - at_once * of_class) // of_row))
    logits = np.empty((n, n_classes), dtype)
    states = np.empty((n, n_features), dtype) if h.dtype != dtype else None
    weights = np.empty((at_once, n_features), dtype) if of_class else None
    for start in range(0, max(n_rows, 1), n):  # an empty block, where there are no rows
        x = h[start : start + n]
        block = logits[: len(x)]
        if states is not None:
            np.copyto(states[: len(x)], x)
            x = states[: len(x)]
        for first in range(0, n_classes, at_once):
            part = w[first : first + at_once]
            if weights is not None:
                np.copyto(weights[: len(part)], part)
                part = weights[: len(part)]
            np.matmul(x, part.T, out=block[:, first : first + at_once])
        if b is not None:
            np.add(block, b, out=block, casting="same_kind")
        yield start, block


def perplexity(logits: ArrayLike, tokens: ArrayLike, **options: Any) -> float:
    r"""Exponential of the mean loss of tokens: :math:`\exp(-\frac{1}{n} \sum_i \log p_{y_i})`.

    Parameters
    ----------
    logits, tokens
        As in `token_logprobs`.
    **options
        `axis`, `sample_weight`, `temperature`, `softcap`, `ignore_index` and `n_threads` of
        `fastce.cross_entropy`; with a `sample_weight` the mean is weighted.

    Returns
    -------
    float
        NaN where there is no token to average over.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.inference import perplexity
    >>> round(perplexity(np.zeros((3, 8)), [1, 2, 3]), 6)
    8.0
    """
    loss = _mean_loss(logits, tokens, **options)
    return math.exp(loss) if loss < 709 else math.inf if loss == loss else math.nan


def bits_per_token(logits: ArrayLike, tokens: ArrayLike, **options: Any) -> float:
    r"""Mean loss of tokens in bits: :math:`-\frac{1}{n} \sum_i \log_2 p_{y_i}`.

    Parameters
    ----------
    logits, tokens, **options
        As in `perplexity`.

    Returns
    -------
    float
        NaN where there is no token to average over.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.inference import bits_per_token
    >>> bits_per_token(np.zeros((3, 8)), [1, 2, 3])
    3.0
    """
    return _mean_loss(logits, tokens, **options) / math.log(2)


def _mean_loss(
    logits: ArrayLike,
    tokens: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    n_threads: int | None = None,
) -> float:
    return cross_entropy(
        logits,
        tokens,
        axis=axis,
        sample_weight=sample_weight,
        temperature=temperature,
        softcap=softcap,
        ignore_index=ignore_index,
        n_threads=n_threads,
    )


def top_k(
    logits: ArrayLike, k: int, *, axis: int = -1, sorted: bool = True, n_threads: int | None = None
) -> tuple[NDArray, NDArray]:
    """Return the k largest logits of each row and where they are.

    Parameters
    ----------
    logits : array_like
        As in `token_logprobs`.
    k : int
        How many, at most the number of classes.
    axis : int, default -1
        The class axis.
    sorted : bool, default True
        In descending order, ties by the lower index. Otherwise in any order.
    n_threads : int, optional
        At most that many threads. Changes no bit of the result.

    Returns
    -------
    values : ndarray
        Of the logits' dtype, with `k` along a last axis in place of `axis`.
    indices : ndarray of int64
        Of the same shape. Of equal logits those with lower indices are taken. A row that holds NaN
        has values NaN and indices -1.

    Raises
    ------
    TypeError, ValueError
        A dtype that is not a number's; a `k` that is negative or more than there are classes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.inference import top_k
    >>> top_k(np.array([1.0, 5.0, 3.0, 5.0]), 3)
    (array([5., 5., 3.]), array([1, 3, 2]))
    """
    return _kernels.scoring.top_k(logits, k, axis, sorted, n_threads)


def sample(
    logits: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    size: int | tuple[int, ...] | None = None,
    rng: np.random.Generator | int | None = None,
    axis: int = -1,
    n_threads: int | None = None,
) -> Sample:
    r"""Draw tokens from the softmax of each row of logits.

    Parameters
    ----------
    logits : array_like
        As in `token_logprobs`.
    temperature : float, default 1
        Divides the logits. 0 takes the maximum, of equal ones that with the lowest index, whatever the
        filters.
    top_k : int, optional
        Leaves the `top_k` largest logits, and those that are equal to the last of them.
    top_p : float in [0, 1], optional
        Of what is left, in descending order, leaves each token before which there is less than `top_p` of the
        probability; the first always [1]_. Equal logits are in the order of their indices.
    min_p : float in [0, 1], optional
        Of what is left, takes away tokens of less than `min_p` times the probability of the first [2]_.
    size : int or tuple of ints, optional
        How many tokens to draw from each row, independently. Default: one, without an axis of its own.
    rng : numpy.random.Generator, int or None
        Where randomness comes from, by way of `numpy.random.default_rng`.
    axis : int, default -1
        The class axis.
    n_threads : int, optional
        At most that many threads. Changes no token.

    Returns
    -------
    Sample
        Named tuple of ``tokens`` and ``logprobs``, of the logits' shape without `axis` followed by `size`. A
        logprob is that of the distribution the token was drawn from, after temperature and filters. A row
        that holds NaN or +inf, or nothing but -inf, has token -1 and logprob NaN.

    Raises
    ------
    TypeError, ValueError
        An option outside its range.

    Notes
    -----
    Filters are applied in the order of the arguments, each to the distribution that the one before it has
    left, as transformers does (vLLM has min-p before the others). The row of a batch takes one 64-bit key
    from `rng`, in C order, and draw number i of that row depends on the key, i and the row alone: a batch
    that is drawn from in several calls with one generator gives the tokens that one call would, and fewer
    draws are the first of more. No token of probability 0 is drawn.

    Without filters a row is read once. `top_p` sorts nothing but the tokens near its threshold.

    References
    ----------
    .. [1] A. Holtzman et al., "The curious case of neural text degeneration", ICLR 2020.
    .. [2] M. N. Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs",
       ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.inference import sample
    >>> logits = np.array([[2.0, 1.0, 0.0, -9.0], [-np.inf, 0.0, -np.inf, -np.inf]])
    >>> int(sample(logits, top_p=0.95, rng=0).tokens[1])
    1
    >>> drawn = sample(logits[0], top_k=2, size=1000, rng=0)
    >>> np.unique(drawn.tokens)
    array([0, 1])
    >>> np.exp(np.unique(drawn.logprobs)).round(4)
    array([0.2689, 0.7311])
    """
    shape = () if size is None else tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if not all(hasattr(n, "__index__") and n >= 0 for n in shape):
        raise ValueError(f"size is {size!r}; expected an int of at least 0, or a tuple of them")
    return Sample(
        *_kernels.scoring.sample(
            logits, temperature, top_k, top_p, min_p, shape, np.random.default_rng(rng), axis, n_threads
        )
    )
