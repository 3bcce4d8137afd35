"""What fastce does with dask arrays: lazy losses and scores, and a classifier fitted where its data are."""

from typing import Any

from fastce.dask.losses import cross_entropy, cross_entropy_and_grad, perplexity, token_logprobs

__all__ = ["LogisticRegression", "cross_entropy", "cross_entropy_and_grad", "perplexity", "token_logprobs"]


def __getattr__(name: str) -> Any:
    """The classifier imports scikit-learn, which losses need not have."""
    if name != "LogisticRegression":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastce.dask.linear_model import LogisticRegression

    return LogisticRegression
