"""How many digits a library gets right: errors in ULP against the wide-precision reference."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastce import reference
from fastce.cli.rivals import RIVALS, Batch

MAX_ELEMENTS = 1 << 22  # the reference works in long doubles: about half a gigabyte at this size


class Errors(NamedTuple):
    """One library's errors, each in ULP of the exact value in the result's dtype."""

    loss: float
    gradient: float
    surest_loss: float


@dataclass(frozen=True)
class Truth:
    """A batch and its exact losses and gradient, row by row."""

    batch: Batch
    losses: np.ndarray
    gradient: np.ndarray

    @property
    def surest(self) -> int:
        """The row with the smallest loss: where the model is most sure and right."""
        return int(np.where(np.isnan(self.losses), np.inf, self.losses).argmin())

    def errors(self, name: str) -> Errors:
        """Return the largest errors of a rival's losses and gradient elements."""
        losses, gradient = RIVALS[name].prepare(self.batch).loss_and_grad()
        # bfloat16, of kind "V", has the exponents of float32.
        dtype = gradient.dtype if gradient.dtype.kind == "f" else np.float32
        normal = np.abs(self.gradient) >= np.finfo(dtype).tiny
        return Errors(
            _worst(losses, self.losses),
            _worst(gradient[normal], self.gradient[normal]),
            float(losses[self.surest]),
        )


def _worst(actual: np.ndarray, exact: np.ndarray) -> float:
    return float(np.max(reference.ulp_distance(actual, exact), initial=0.0))


def truth(batch: Batch) -> Truth:
    """Compute the exact answer for rows of a matrix, evenly chosen where there are too many."""
    n_rows = min(len(batch.logits), max(1, MAX_ELEMENTS // batch.logits.shape[1]))
    rows = np.linspace(0, len(batch.logits) - 1, n_rows).astype(np.intp)
    logits, labels = np.asarray(batch.logits[rows]), batch.labels[rows]
    exact = reference.cross_entropy_and_grad(logits, labels, reduction="none")
    return Truth(Batch(logits, labels, reduction="none", n_threads=batch.n_threads), *exact)
