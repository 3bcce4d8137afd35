"""Parameters and buffers shared by the benchmarks."""

from collections.abc import Callable, Iterable
from itertools import cycle

import fastce
from fastce.cli.measure import random_batch
from fastce.cli.rivals import RIVALS, Batch, Calls, UnsupportedError

FEW_CLASSES = [(1_000_000, n_classes) for n_classes in (2, 3, 10)]
SHAPES = [(32, 10), *FEW_CLASSES, (100_000, 32), (8192, 1000), (1024, 32000), (1, 600_000)]
DTYPES = ["float32", "float64"]

ROTATED_BYTES = 128 << 20  # logits of one benchmark's copies together: far beyond the caches
MAX_COPIES = 64


def batches(shape: tuple[int, ...], dtype: str, n_threads: int | None = None) -> list[Batch]:
    """Return copies of one batch, so many that each is out of the cache when its turn comes."""
    first = random_batch(shape, dtype, n_threads or fastce.get_num_threads())
    n_copies = min(MAX_COPIES, max(2, ROTATED_BYTES // first.logits.nbytes))
    copies = [
        Batch(first.logits.copy(), first.labels, n_threads=first.n_threads)
        for _ in range(n_copies - 1)
    ]
    return [first, *copies]


def prepare(rival: str, batch: Batch) -> Calls:
    """Prepare a rival, or tell asv to skip it."""
    if not RIVALS[rival].installed:
        raise NotImplementedError(f"{rival} is not installed")
    try:
        return RIVALS[rival].prepare(batch)
    except UnsupportedError as reason:
        raise NotImplementedError(str(reason)) from reason


def rotate(calls: Iterable[Callable[[], object]]) -> Callable[[], object]:
    """Return a call that makes the next of `calls`, in turns, after each has been made once."""
    calls = list(calls)
    for call in calls:
        call()
    turns = cycle(calls)
    return lambda: next(turns)()
