"""Best classes of logits, and tokens drawn from what filters leave of their softmax."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernels
from fastce._kernels.entry import advice, options


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
    sizes = () if size is None else size if isinstance(size, (tuple, list)) else (size,)
    shape = tuple(options.checked_index(n, "size", "an int or a tuple of ints") for n in sizes)
    if min(shape, default=0) < 0:
        raise ValueError(f"size is {advice.shown(size)}; expected an int of at least 0, or a tuple of them")
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        expected = "a numpy.random.Generator, an int of at least 0, or None"
        raise type(error)(f"rng is {advice.shown(rng)}; expected {expected}") from None
    return Sample(
        *_kernels.scoring.sample(logits, temperature, top_k, top_p, min_p, shape, generator, axis, n_threads)
    )
