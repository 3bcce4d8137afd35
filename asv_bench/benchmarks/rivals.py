"""fastce and its rivals: time and peak memory of the loss, and of loss + gradient."""

from fastce.cli.measure import random_batch
from fastce.cli.rivals import RIVALS

from .common import DTYPES, SHAPES, batches, prepare, rotate


class Time:
    """Mean loss; the gradient goes to a given array wherever the library can do that."""

    params = (SHAPES, DTYPES, list(RIVALS))
    param_names = ("shape", "dtype", "rival")

    def setup(self, shape: tuple[int, int], dtype: str, rival: str) -> None:
        prepared = [prepare(rival, batch) for batch in batches(shape, dtype)]
        self.loss = rotate(calls.loss for calls in prepared)
        self.loss_and_grad = rotate(calls.loss_and_grad for calls in prepared)

    def time_loss(self, *_: object) -> None:
        self.loss()

    def time_loss_and_grad(self, *_: object) -> None:
        self.loss_and_grad()


class PeakMemory:
    """The whole process: the library itself, one batch, and what a call allocates."""

    params = (SHAPES[2:], DTYPES, list(RIVALS))
    param_names = ("shape", "dtype", "rival")

    def setup(self, shape: tuple[int, int], dtype: str, rival: str) -> None:
        self.calls = prepare(rival, random_batch(shape, dtype, 1))

    def peakmem_loss(self, *_: object) -> None:
        self.calls.loss()

    def peakmem_loss_and_grad(self, *_: object) -> None:
        self.calls.loss_and_grad()
