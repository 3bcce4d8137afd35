"""Clocks: interleaved timing of calls, and the copy and the read that they are held against."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from timeit import Timer

import numpy as np

Call = Callable[[], object]

SAMPLE = 1e-3  # seconds; a sample repeats its call for that long: clock noise far below 1 %
TURN = 0.03  # seconds of samples that a call gets in each round
REST = 0.005  # seconds between turns, as often as the previous library's threads still spin:
LONGEST_REST = 0.5  # OpenBLAS's do for 0.1 s after a product, on the CPUs of whoever comes next
PATIENCE = 4.0  # seconds; a call that has had more sits out the rounds after the second
SERIAL_BYTES = 1 << 20  # up to here one thread copies faster than several can be woken


def interleaved(calls: Mapping[str, Call | Timer], rounds: int) -> dict[str, float]:
    """Time calls in turns and return each one's best seconds per call.

    Parameters
    ----------
    calls : mapping of str to callable or timeit.Timer
        What to time. A Timer with a statement spares tiny calls the cost of a closure.
    rounds : int
        How often each call gets its turn. Very slow calls get fewer turns, never less than two.

    Returns
    -------
    dict of str to float
        The minimum over all samples of all rounds.
    """
    timers = {k: call if isinstance(call, Timer) else Timer(call) for k, call in calls.items()}
    loops = {name: _loops(timer) for name, timer in timers.items()}
    best = dict.fromkeys(calls, float("inf"))
    spent = dict.fromkeys(calls, 0.0)
    for turn in range(rounds):
        for name, timer in timers.items():
            if turn >= 2 and spent[name] > PATIENCE:
                continue
            _rest()
            end = time.perf_counter() + TURN
            while True:
                sample = timer.timeit(loops[name])
                spent[name] += sample
                best[name] = min(best[name], sample / loops[name])
                if time.perf_counter() >= end:
                    break
    return best


def _rest() -> None:
    """Sleep until no thread of this process takes a CPU."""
    end = time.perf_counter() + LONGEST_REST
    while time.perf_counter() < end:
        start = time.process_time()
        time.sleep(REST)
        if time.process_time() - start < REST / 10:
            return


def _loops(timer: Timer) -> int:
    """Return how many calls fill a sample, after a first call that warms up."""
    timer.timeit(1)
    loops = 1
    while (seconds := timer.timeit(loops)) < SAMPLE:
        loops = max(2 * loops, int(loops * SAMPLE / max(seconds, 1e-7)))
    return loops


def copy_call(source: np.ndarray, out: np.ndarray, n_threads: int) -> Call:
    """Return a call that copies `source` into `out` with up to `n_threads` threads."""
    return _over_parts(np.copyto, (out, source), n_threads)


def read_call(source: np.ndarray, n_threads: int) -> Call:
    """Return a call that reads `source` with up to `n_threads` threads.

    The reduction is a bitwise or: unlike a sum of floats it runs at the memory's speed.
    """
    return _over_parts(np.bitwise_or.reduce, (_as_words(source),), n_threads)


def _as_words(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    return flat.view(np.uint64 if flat.nbytes % 8 == 0 else f"u{flat.itemsize}")


def _over_parts(function: Callable, arrays: tuple[np.ndarray, ...], n_threads: int) -> Call:
    """Return a call of `function` on `n_threads` contiguous parts of C-ordered `arrays`."""
    flat = [array.reshape(-1) for array in arrays]
    if n_threads == 1 or flat[0].nbytes <= SERIAL_BYTES:
        return lambda: function(*flat)
    parts = list(zip(*(np.array_split(array, n_threads) for array in flat), strict=True))
    pool = _pool(n_threads)
    return lambda: list(pool.map(lambda part: function(*part), parts))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads)
