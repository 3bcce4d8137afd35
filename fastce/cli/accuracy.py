"""How many digits a library gets right: errors in ULP against the wide-precision reference."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastce import reference
from fastce.cli.rivals import RIVALS, Batch

MAX_ELEMENTS = 1 << 22  # the reference works in long doubles: about a gigabyte at this size


class Errors(NamedTuple):
    """One library's errors, each in ULP of the exact value in the result's dtype."""

    loss: float
    off_target: float
    target: float
    surest_loss: float

    @property
    def gradient(self) -> float:
        """The largest error of all gradient elements."""
        return max(self.off_target, self.target)


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
        return self.errors_of(*RIVALS[name].prepare(self.batch).loss_and_grad())

    def errors_of(self, losses: np.ndarray, gradient: np.ndarray) -> Errors:
        """Return the largest errors of given losses and of the gradient above the subnormals."""
        # bfloat16, of kind "V", has the exponents of float32.
        dtype = gradient.dtype if gradient.dtype.kind == "f" else np.float32
        distance = reference.ulp_distance(gradient, self.gradient)
        # A NaN or an infinity that should not be there counts wherever it is.
        subnormal = np.abs(self.gradient) < np.finfo(dtype).tiny
        distance[subnormal & np.isfinite(distance)] = 0
        at_target = float(np.max(distance[self.batch.index], initial=0))
        distance[self.batch.index] = 0
        return Errors(
            float(np.max(reference.ulp_distance(losses, self.losses), initial=0)),
            float(np.max(distance, initial=0)),
            at_target,
            float(losses[self.surest]),
        )


def truth(batch: Batch) -> Truth:
    """Compute the exact answer for rows of a matrix, evenly chosen where there are too many."""
    n_rows = min(len(batch.logits), max(1, MAX_ELEMENTS // batch.logits.shape[1]))
    rows = np.linspace(0, len(batch.logits) - 1, n_rows).astype(np.intp)
    logits, labels = np.asarray(batch.logits[rows]), batch.labels[rows]
    exact = reference.cross_entropy_and_grad(logits, labels, reduction="none")
    return Truth(Batch(logits, labels, reduction="none", n_threads=batch.n_threads), *exact)
