"""One benchmark case: a shape, a dtype and a quantity, timed for every rival in one run."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastce.cli.rivals import RIVALS, Batch, UnsupportedError
from fastce.cli.timing import Call, copy_call, interleaved, read_call

LOSS = "loss"
GRAD = "loss+grad"
STREAM = "stream"  # the copy or the read that a case is held against


@dataclass(frozen=True)
class Case:
    """The best times of one shape, dtype and quantity, in seconds by library."""

    shape: tuple[int, ...]
    dtype: str
    quantity: str
    seconds: dict[str, float]

    @property
    def name(self) -> str:
        """The shape as on the command line."""
        return "x".join(map(str, self.shape))

    @property
    def fastce(self) -> float:
        """Seconds per call of fastce."""
        return self.seconds["fastce"]

    @property
    def gigabytes_per_second(self) -> float:
        """Logits read, and gradient written where there is one, per second of fastce."""
        n_arrays = 2 if self.quantity == GRAD else 1
        return n_arrays * np.prod(self.shape) * np.dtype(self.dtype).itemsize / self.fastce / 1e9

    @property
    def peers(self) -> dict[str, float]:
        """How many times fastce's time each other library takes."""
        own = {"fastce", STREAM}
        return {name: t / self.fastce for name, t in self.seconds.items() if name not in own}

    @property
    def best_peer(self) -> float:
        """How many times fastce's time the fastest other library takes."""
        return min(self.peers.values())


def random_batch(shape: tuple[int, ...], dtype: str, n_threads: int, axis: int = -1) -> Batch:
    """Return normal logits with standard deviation 3 and uniform labels."""
    rng = np.random.default_rng(0)
    label_shape = list(shape)
    n_classes = label_shape.pop(axis)
    logits = rng.standard_normal(shape, dtype=dtype)
    logits *= 3  # in place: peak memory is measured on this batch
    return Batch(logits, rng.integers(0, n_classes, label_shape), axis, n_threads=n_threads)


def measure(
    batch: Batch, rivals: list[str], rounds: int, report: Callable[[str], None]
) -> list[Case]:
    """Time both quantities of a batch.

    Parameters
    ----------
    batch : Batch
        What every library computes on.
    rivals : list of str
        Names in `RIVALS` beside fastce; one that cannot take this batch is left out.
    rounds : int
        Interleaved rounds.
    report : callable
        Called with a line of text for each rival that is left out.

    Returns
    -------
    list of Case
        Loss against a read of the logits, loss + gradient against a copy of them.
    """
    calls: dict[str, dict[str, Call]] = {LOSS: {}, GRAD: {}}
    expected = None
    for name in ["fastce", *rivals]:
        try:
            prepared = RIVALS[name].prepare(batch)
        except UnsupportedError as reason:
            report(f"{name} {reason}")
            continue
        result = prepared.loss_and_grad()
        expected = expected or (result[0], result[1].copy())
        if not _agree(result, expected):
            report(f"{name} disagrees with fastce on {batch.logits.shape} and is not timed")
            continue
        calls[LOSS][name], calls[GRAD][name] = prepared
    del expected, result
    calls[LOSS][STREAM] = read_call(batch.logits, batch.n_threads)
    calls[GRAD][STREAM] = copy_call(batch.logits, batch.out, batch.n_threads)
    return [
        Case(batch.logits.shape, str(batch.logits.dtype), quantity, interleaved(some, rounds))
        for quantity, some in calls.items()
    ]


def _agree(result: tuple, expected: tuple) -> bool:
    (loss, grad), (expected_loss, expected_grad) = result, expected
    scale = np.abs(expected_grad).max()
    difference = np.abs(np.asarray(grad).reshape(expected_grad.shape) - expected_grad).max()
    return np.isclose(float(loss), expected_loss, rtol=1e-3) and difference <= 1e-3 * scale
