"""Scores of tokens: how probable they are, at which rank, and how unsure the model was."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernels
from fastce._kernels.entry import advice, arrays
from fastce._kernels.entry.gathered import rows_of
from fastce.linear import arguments, products
from fastce.losses import cross_entropy

MEAN_OPTIONS = ("axis", "sample_weight", "temperature", "softcap", "ignore_index", "n_threads")
LARGEST_LOSS = math.log(np.finfo(np.float64).max)


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
    states = arrays.float_array(hidden, "hidden")
    layer = arguments.layer(states, linear_weight, linear_bias, memory, "hidden")
    y = _kernels.scoring.checked_tokens(tokens, len(layer.w), ignore_index)
    if y.shape != states.shape[:-1]:
        raise ValueError(
            f"tokens has shape {y.shape}; expected {states.shape[:-1]}, that of hidden without its last axis"
        )
    layer, labels = layer._replace(x=rows_of(states, y.ndim)), rows_of(y, y.ndim)
    options = (top_k, -1, temperature, softcap, ignore_index, n_threads)
    results = []
    for rows, logits, of_rows in products.of_blocks(layer, labels, n_threads):
        part = _kernels.scoring.token_logprobs(logits, of_rows, *options)
        results = results or [np.empty((y.size, *a.shape[1:]), a.dtype) for a in part]
        for result, a in zip(results, part, strict=True):
            result[rows] = a
    return TokenLogprobs(*(a.reshape(y.shape + a.shape[1:]) for a in results))


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
    return perplexity_of(_mean_loss("perplexity", logits, tokens, options))


def perplexity_of(loss: float) -> float:
    """Of a mean loss: infinite where no float64 is as large, without a warning."""
    return math.inf if loss > LARGEST_LOSS else math.exp(loss)


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
    return _mean_loss("bits_per_token", logits, tokens, options) / math.log(2)


def _mean_loss(name: str, logits: ArrayLike, tokens: ArrayLike, options: dict[str, Any]) -> float:
    for option in options:
        if option not in MEAN_OPTIONS:  # others of cross_entropy make no mean loss of tokens
            raise TypeError(f"{name} has no option {option!r}; expected {', '.join(MEAN_OPTIONS)}")
    try:
        return cross_entropy(logits, tokens, **options)
    except (IndexError, TypeError, ValueError) as error:
        raise advice.retold(error, (r"\btarget\b(?! probabilities)", "tokens")) from None
