"""Where the gradient goes: a fresh array, a given one, or over the logits."""

from collections.abc import Callable
from functools import partial

from fastce import cross_entropy_and_grad
from fastce.cli.measure import random_batch
from fastce.cli.rivals import Batch

from .common import DTYPES, SHAPES, batches, rotate

OUTPUTS = ["fresh", "out", "in place"]


def _call(batch: Batch, output: str) -> Callable[[], object]:
    call = partial(cross_entropy_and_grad, batch.logits, batch.labels, n_threads=batch.n_threads)
    if output == "fresh":
        return call
    return partial(call, out=batch.out if output == "out" else batch.logits)


class Time:
    """Mean loss and gradient."""

    params = (SHAPES, DTYPES, OUTPUTS)
    param_names = ("shape", "dtype", "output")

    def setup(self, shape: tuple[int, int], dtype: str, output: str) -> None:
        self.call = rotate(_call(batch, output) for batch in batches(shape, dtype))

    def time_loss_and_grad(self, *_: object) -> None:
        self.call()


class PeakMemory:
    """The whole process: one batch, and what a call allocates."""

    params = (SHAPES[2:], DTYPES, OUTPUTS)
    param_names = ("shape", "dtype", "output")

    def setup(self, shape: tuple[int, int], dtype: str, output: str) -> None:
        self.call = _call(random_batch(shape, dtype, 1), output)

    def peakmem_loss_and_grad(self, *_: object) -> None:
        self.call()
