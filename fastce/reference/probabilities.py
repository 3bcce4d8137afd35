"""Losses of the twin that read log-probabilities.

``log_loss`` has no twin: it is `nll_loss` of the logarithms of its probabilities once its labels are encoded,
and encoding them is the work of scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastce.reference._arithmetic import wide, zero_wins
from fastce.reference._batch import Batch

__all__ = ["nll_loss"]


@np.errstate(all="ignore")
def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    normalizer: float | None = None,
) -> Any:
    """Negative log-likelihood ``-log_probs[y]``, in wide precision.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities; one element of each row is read.
    target, axis, weight, sample_weight, ignore_index, reduction, normalizer
        As in `fastce.reference.cross_entropy_and_hess`, labels only.

    Returns
    -------
    loss : wide scalar, or wide ndarray of the shape of `target` for ``reduction="none"``
    """
    batch = Batch(log_probs, target, axis, weight, sample_weight, ignore_index, probabilities=False)
    loss = zero_wins(batch.at_target(batch.d), -batch.at_target(wide(batch.x)))
    return batch.reduced(reduction, normalizer, loss)[0]
