"""Several Python threads that call fastce at once, against the same calls one after the other."""

import threading
from time import perf_counter

import fastce
from fastce.cli.common import time_text
from fastce.cli.measure import random_batch
from fastce.cli.rivals import Batch

CALLERS = 8
ELEMENTS = 10_000_000  # of logits that each caller goes through
SHAPES = ((32, 10), (64, 100), (512, 100), (64, 1000), (1024, 1000), (8192, 1000), (100_000, 10))


def at_once(rounds: int, n_threads: int) -> tuple[float, str]:
    """Return the worst quotient of the best times over `SHAPES`, and what it is made of."""
    fastce.set_num_threads(n_threads)
    worst, source = 0.0, ""
    for shape in SHAPES:
        batches = [random_batch(shape, "float32", n_threads) for _ in range(CALLERS)]
        calls = max(1, ELEMENTS // batches[0].logits.size)
        times = [(_together(batches, calls), _in_sequence(batches, calls)) for _ in range(rounds)]
        together, sequence = (min(seconds) / calls / CALLERS for seconds in zip(*times, strict=True))
        if together / sequence > worst:
            worst = together / sequence
            source = f"{'x'.join(map(str, shape))}: {time_text(together)} ÷ {time_text(sequence)} per call"
    return worst, source


def _work(batch: Batch, calls: int) -> None:
    for _ in range(calls):
        fastce.cross_entropy_and_grad(batch.logits, batch.labels, out=batch.out)


def _in_sequence(batches: list[Batch], calls: int) -> float:
    start = perf_counter()
    for batch in batches:
        _work(batch, calls)
    return perf_counter() - start


def _together(batches: list[Batch], calls: int) -> float:
    ready = threading.Barrier(len(batches) + 1)

    def caller(batch: Batch) -> None:
        ready.wait()
        _work(batch, calls)

    threads = [threading.Thread(target=caller, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    start = perf_counter()
    ready.wait()
    for thread in threads:
        thread.join()
    return perf_counter() - start
