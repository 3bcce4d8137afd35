"""Scores of tokens, and the distributions that samples are drawn from.

For one row of transformed logits z with maximum m, the token y and e_j = exp(z_j - m)::

    log s = log1p(sum of e_j without one maximum)        log p_y = -((m - z_y) + log s)
    H     = log s + (sum of e_j (m - z_j)) / s            rank    = 1 + how many x_j > x_y

Every sum has terms of one sign.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import as_exact_float64, exp, wide, zero_wins
from fastce.reference._batch import Batch
from fastce.reference._rows import Softmax, transform

__all__ = ["TokenLogprobs", "sampled_distribution", "token_logprobs", "top_k"]


class TokenLogprobs(NamedTuple):
    """The fields of `fastce.inference.TokenLogprobs`, floats in wide precision."""

    logprob: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    top_tokens: np.ndarray
    top_logprobs: np.ndarray


@np.errstate(all="ignore")
def token_logprobs(
    logits: ArrayLike,
    tokens: ArrayLike,
    *,
    top_k: int = 0,
    axis: int = -1,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
) -> TokenLogprobs:
    """Log-probability and rank of tokens, entropies and the best tokens, in wide precision.

    Parameters
    ----------
    logits, tokens, top_k, axis, temperature, softcap, ignore_index
        As in `fastce.inference.token_logprobs`.

    Returns
    -------
    TokenLogprobs

    Examples
    --------
    >>> from fastce.reference import inference
    >>> f"{inference.token_logprobs([20.0, 0.0, 0.0], 0).logprob:.10e}"
    '-4.1223072364e-09'
    """
    batch = Batch(logits, tokens, axis, None, None, ignore_index, probabilities=False)
    z = transform(batch.x, temperature, softcap)
    softmax = Softmax(batch, z)
    logs = 0 - (z.gap + softmax.log_s[:, None])
    kept, best, n = batch.kept(), _order(batch.x)[:, :top_k], len(batch.x)
    invalid = np.asarray(softmax.log_s != softmax.log_s, dtype=bool)
    rank = 1 + (batch.x > batch.x[np.arange(n), batch.y][:, None]).sum(axis=1)
    spread = zero_wins(softmax.p, z.gap).sum(axis=1)
    found = (
        batch.at_target(logs),
        np.where(invalid, 0, rank),
        softmax.log_s + spread,
        np.where(invalid[:, None], -1, best),
        np.take_along_axis(logs, best, axis=1),
    )
    shape = np.shape(tokens)
    results = []
    for field, values in zip(TokenLogprobs._fields, found, strict=True):
        whole = np.full((kept.size, *values.shape[1:]), -1 if field == "top_tokens" else 0, values.dtype)
        if values.dtype == object:
            whole = wide(np.zeros(whole.shape))
        whole[kept] = values
        results.append(whole.reshape(shape + values.shape[1:])[()])
    return TokenLogprobs(*results)


def top_k(logits: ArrayLike, k: int, *, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest of each row as float64 and where they are, as `fastce.inference.top_k`.

    Parameters
    ----------
    logits, k, axis
        As there.

    Returns
    -------
    values, indices : ndarray
    """
    x = np.moveaxis(as_exact_float64(logits), axis, -1)
    indices = _order(x)[..., :k]
    values = np.take_along_axis(x, indices, axis=-1)
    invalid = np.isnan(x).any(axis=-1, keepdims=True)
    return np.where(invalid, np.nan, values), np.where(invalid, -1, indices)


def _order(rows: np.ndarray) -> np.ndarray:
    """Classes in descending order of their logits, ties by the lower index."""
    return np.argsort(-rows, axis=-1, kind="stable")


def sampled_distribution(
    logits: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Any:
    """Return what `fastce.inference.sample` draws from for one row: a probability for each class.

    Parameters
    ----------
    logits : array_like
        One row.
    temperature, top_k, top_p, min_p
        As there.

    Returns
    -------
    wide ndarray

    Examples
    --------
    >>> from fastce.reference import inference
    >>> inference.sampled_distribution([0.0, 0.0, -1.0, -9.0], top_p=0.8).astype(float)
    array([0.5, 0.5, 0. , 0. ])
    """
    x = as_exact_float64(logits)
    order = _order(x[None])[0]
    if temperature == 0:
        return wide(np.arange(x.size) == order[0])
    gap = transform(x[None], temperature, None).gap[0]
    keep = np.ones(x.size, bool)
    if top_k is not None:
        keep = x >= x[order[min(top_k, x.size) - 1]]
    p = _normalised(gap, keep)
    if top_p is not None and top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        before[0] = -1 + 0 * before[0]  # the first always stays
        keep[order] &= np.asarray(before < top_p, dtype=bool)
        p = _normalised(gap, keep)
    if min_p is not None:
        keep &= np.asarray(p >= min_p * p[order[0]], dtype=bool)
        p = _normalised(gap, keep)
    return p


def _normalised(gap: np.ndarray, keep: np.ndarray) -> np.ndarray:
    e = np.where(keep, exp(-gap), wide(0.0)[()])
    return e / e.sum()
