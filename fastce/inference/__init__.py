"""Scoring and sampling: what a pipeline asks of logits, from one read of them."""

from fastce.inference.sampling import Sample, sample, top_k
from fastce.inference.scoring import TokenLogprobs, bits_per_token, perplexity, score, token_logprobs

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
