"""Time over the number of threads."""

import fastce

from .common import SHAPES, batches, prepare, rotate


def _thread_numbers() -> list[int]:
    """Return powers of two up to the default, and the default."""
    default = fastce.get_num_threads()
    return sorted({2**k for k in range(default.bit_length()) if 2**k <= default} | {default})


class Time:
    """Mean loss, and loss + gradient into a given array, in float32."""

    params = (SHAPES, _thread_numbers())
    param_names = ("shape", "n_threads")

    def setup(self, shape: tuple[int, int], n_threads: int) -> None:
        prepared = [prepare("fastce", batch) for batch in batches(shape, "float32", n_threads)]
        self.loss = rotate(calls.loss for calls in prepared)
        self.loss_and_grad = rotate(calls.loss_and_grad for calls in prepared)

    def time_loss(self, *_: object) -> None:
        self.loss()

    def time_loss_and_grad(self, *_: object) -> None:
        self.loss_and_grad()
