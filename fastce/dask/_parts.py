r"""Tasks of chunks that hold some of the classes of their rows, and what joins them.

A chunk j of classes tells of each row its largest logit m_j and the logarithm of s_j = sum exp(x - m_j). With
m = max m_j and q_j = s_j exp(m_j - m) the loss is (m - x_y) + log sum q_j, where nothing cancels; chunk j has
the share P_j = q_j / sum q of the probability, by which its own softmax becomes the whole one's, and the
entropy is sum P_j (H_j - log P_j). Logits are widened to float64, a block of rows at a time, a row's numbers
to long doubles: results of float32 are rounded once, those of float64 carry the rounding of log s_j.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastce
from fastce import inference
from fastce._kernels.entry import arrays
from fastce.dask._chunks import Labels

BLOCK = 1 << 18  # logits that are widened at a time: they stay in cache


class Part(NamedTuple):
    """What a chunk of classes tells of each of its rows."""

    target_logit: NDArray  # 0 where the target is in another chunk
    largest: NDArray
    log_sum: NDArray  # of exp(x - largest)
    entropy: NDArray
    n_larger: NDArray  # than the target's, if that is known
    top_tokens: NDArray
    top_logits: NDArray


class Rows(NamedTuple):
    """What is known of each row when its parts are."""

    target_logit: NDArray
    loss: NDArray  # NaN where there is none, and of rows that do not count too
    largest: NDArray
    log_sum: NDArray
    entropy: NDArray
    rank: NDArray
    shares: NDArray  # of the probability, a row for each part
    top_tokens: NDArray
    top_logits: NDArray


def _blocks(x: Any, first: int, labels: Labels) -> Iterator[tuple[slice, NDArray, NDArray, NDArray]]:
    """Rows, their logits in float64, whether they count, and their targets here, or -1."""
    if np.shape(labels.target) != np.shape(x)[:-1]:
        raise ValueError(
            f"{labels.name} has shape {np.shape(labels.target)} in a chunk; expected {np.shape(x)[:-1]}"
        )
    x = arrays.any_array(x, "logits").reshape(-1, np.shape(x)[-1])
    live, y = labels.live.reshape(-1), np.asarray(labels.target).reshape(-1)
    label = np.where(live & (y >= first) & (y < first + x.shape[1]), y.astype(np.int64) - first, -1)
    n = max(1, BLOCK // x.shape[1])
    for start in range(0, len(x), n):
        rows = slice(start, start + n)
        yield rows, x[rows].astype(np.float64, copy=False), live[rows], label[rows]


def target_logits(x: Any, first: int, labels: Labels) -> NDArray:
    """Of rows whose target is in this chunk; 0 of others."""
    labels.check()
    parts = [_picked(z, label) for _, z, _, label in _blocks(x, first, labels)]
    return np.concatenate(parts) if parts else np.empty(0)


def picked(parts: list[NDArray]) -> NDArray:
    """What one of the parts has, of each row."""
    return np.sum(parts, axis=0)


def _picked(z: NDArray, label: NDArray) -> NDArray:
    return np.where(label >= 0, z[np.arange(len(z)), label], 0.0)


def part(x: Any, first: int, labels: Labels, top_k: int, anchors: NDArray | None) -> Part:
    labels.check()
    n_classes = np.shape(x)[-1]
    parts = []
    for rows, z, live, label in _blocks(x, first, labels):
        options = labels.score_options | {"ignore_index": -1}
        k = min(max(1, top_k), n_classes)
        scores = inference.token_logprobs(z, np.where(live, 0, -1), top_k=k, **options)
        best = scores.top_tokens[:, 0]
        found = best >= 0
        values = np.where(found[:, None], np.take_along_axis(z, scores.top_tokens, axis=1), -np.inf)
        largest, log_sum, entropy = values[:, 0].copy(), -scores.top_logprobs[:, 0], scores.entropy.copy()
        odd = live & ~found  # NaN or +inf in it, or nothing but -inf
        largest[odd] = z[odd].max(axis=1)
        nothing = ~found & (largest == -np.inf)
        log_sum[nothing] = entropy[nothing] = 0
        larger = np.zeros(len(z), np.int64)
        if anchors is not None:
            larger = np.count_nonzero(z > anchors[rows, None], axis=1)
        # Where there is nothing but -inf, tokens tie.
        tokens = np.where(found[:, None], scores.top_tokens, np.arange(k)) + first
        parts.append(Part(_picked(z, label), largest, log_sum, entropy, larger, tokens, values))
    if not parts:
        none = np.empty((0, min(max(1, top_k), n_classes)))
        return Part(*[np.empty(0)] * 4, np.empty(0, np.int64), none.astype(np.int64), none)
    return Part(*map(np.concatenate, zip(*parts, strict=True)))


def _wide(logits: NDArray, labels: Labels) -> NDArray:
    """Logits as the softmax has them."""
    x, softcap = logits.astype(np.longdouble), labels.options.get("softcap")
    return (x if softcap is None else softcap * np.tanh(x / softcap)) / labels.options.get("temperature", 1.0)


@np.errstate(all="ignore")
def joined(parts: list[Part], labels: Labels) -> Rows:
    logits = np.array([p.largest for p in parts])
    first = logits.argmax(axis=0)[None]
    maxima = _wide(logits, labels)
    distance = np.where(maxima == -np.inf, -np.inf, maxima - np.take_along_axis(maxima, first, axis=0))
    log_sums = np.array([p.log_sum for p in parts], np.longdouble)
    terms = np.exp(distance + log_sums)
    np.put_along_axis(terms, first, np.expm1(np.take_along_axis(log_sums, first, axis=0)), axis=0)
    largest = np.take_along_axis(logits, first, axis=0)[0]
    log_sum = np.log1p(terms.sum(axis=0))
    is_row = np.isfinite(_wide(largest, labels))
    target_logit = picked([p.target_logit for p in parts])
    loss = np.where(is_row, _wide(largest, labels) - _wide(target_logit, labels) + log_sum, np.nan)

    log_shares = distance + log_sums - log_sum
    np.put_along_axis(terms, first, 1 + np.take_along_axis(terms, first, axis=0), axis=0)
    for j, of in enumerate(terms):  # of nearly all, the logarithm is what the rest lacks
        rest = np.delete(terms, j, axis=0).sum(axis=0)
        log_shares[j] = np.where(rest < of, -np.log1p(rest / of), log_shares[j])
    shares = np.exp(log_shares)
    inner = np.array([p.entropy for p in parts])
    entropy = np.where(shares > 0, shares * (inner - log_shares), 0).sum(axis=0)

    tokens = np.concatenate([p.top_tokens for p in parts], axis=1)
    values = np.concatenate([p.top_logits for p in parts], axis=1)
    order = np.lexsort((tokens, -values), axis=1)
    rank = 1 + np.sum([p.n_larger for p in parts], axis=0)
    return Rows(
        target_logit,
        loss,
        largest,
        log_sum,
        np.where(is_row, entropy, np.nan),
        np.where(is_row, rank, 0),
        shares.astype(np.float64),
        np.take_along_axis(tokens, order, axis=1),
        np.take_along_axis(values, order, axis=1),
    )


def _weighted(rows: Rows, labels: Labels) -> NDArray:
    """Losses of the rows that count; an infinite one of no weight is 0, as in the kernels."""
    weight, loss = labels.weights(), rows.loss[labels.live.reshape(-1)]
    return np.where((weight == 0) & (loss == np.inf), 0, weight * loss)


@np.errstate(all="ignore")
def sum_of_losses(rows: Rows, labels: Labels) -> float:
    return float(_weighted(rows, labels).sum())


@np.errstate(all="ignore")
def losses(rows: Rows, labels: Labels, dtype: Any) -> NDArray:
    out = np.zeros(np.shape(labels.target), dtype)
    out[labels.live] = _weighted(rows, labels)
    return out


@np.errstate(all="ignore")
def gradient(
    x: Any, j: int, first: int, labels: Labels, of: Part, rows: Rows, denominator: float | None, dtype: Any
) -> NDArray:
    """Of the logits of part j: its own softmax, by its share."""
    options = labels.score_options | {"ignore_index": -1}
    temperature, softcap = options.get("temperature", 1.0), options.get("softcap")
    out = np.zeros((np.size(labels.target), np.shape(x)[-1]), dtype)
    scale = np.zeros(len(out))
    divisor = 1.0 if denominator is None else denominator or np.nan  # weights that sum to 0: 0 / 0
    scale[labels.live.reshape(-1)] = labels.weights() / divisor
    for block, z, live, label in _blocks(x, first, labels):
        here, share = label >= 0, rows.shares[j, block]
        # The kernel takes a 1 from one class of each row, whose element is then written again.
        known = np.where(here, label, np.maximum(of.top_tokens[block, 0] - first, 0))
        given = np.where(live, known, -1)
        grad = fastce.cross_entropy_and_grad(z, given, reduction="none", **options)[1]
        grad *= share[:, None]
        grad[share == 0] = 0
        each = np.arange(len(z))
        slope = 1 / temperature
        if softcap is not None:
            slope = slope / np.cosh(z[each, known] / softcap) ** 2  # 1 - tanh², without cancelling
        of_target = np.expm1(-rows.loss[block].astype(np.float64))
        element = np.where(here, of_target, share * np.exp(-of.log_sum[block]))
        grad[each, known] = slope * element
        grad[np.isnan(rows.loss[block])] = np.nan
        grad *= scale[block, None].astype(np.float64)
        out[block] = np.where(live[:, None], grad, 0)
    return out.reshape(np.shape(x))


@np.errstate(all="ignore")
def scores(rows: Rows, labels: Labels, top_k: int, dtype: Any) -> inference.TokenLogprobs:
    """What `fastce.inference.token_logprobs` has of whole rows."""
    live, shape = labels.live.reshape(-1), np.shape(labels.target)
    logits, largest = (_wide(a, labels) for a in (rows.top_logits[:, :top_k], rows.largest))
    top = logits - largest[:, None] - rows.log_sum[:, None]
    given = (live & ~np.isnan(rows.loss))[:, None]
    tokens = np.where(given, rows.top_tokens[:, :top_k], -1)
    top = np.where(given, top, np.where(live, np.nan, 0)[:, None])
    fields = (-rows.loss, rows.rank, rows.entropy)
    of_rows = (np.where(live, a, 0).reshape(shape) for a in fields)
    logprob, rank, entropy = of_rows
    return inference.TokenLogprobs(
        logprob.astype(dtype), rank, entropy.astype(dtype),
        tokens.reshape(*shape, top_k), top.astype(dtype).reshape(*shape, top_k),
    )  # fmt: skip
