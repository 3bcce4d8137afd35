"""The number of threads, and several callers at once."""

import os
import threading

import numpy as np
import pytest
from conftest import UNSANITIZED, bits, nasty, python

import fastce


@pytest.fixture
def restore_threads():
    before = fastce.get_num_threads()
    yield before
    fastce.set_num_threads(before)


@pytest.mark.once
def test_set_and_get(restore_threads):
    assert isinstance(restore_threads, int)
    assert restore_threads >= 1
    for n in (1, 2, np.int64(1)):
        fastce.set_num_threads(n)
        assert fastce.get_num_threads() == n
        assert type(fastce.get_num_threads()) is int


# A boolean is a slip for another option.
REFUSED = [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]


@pytest.mark.once
@pytest.mark.parametrize(("n", "error"), [*REFUSED, (None, TypeError)])
def test_set_refuses(n, error, restore_threads):
    with pytest.raises(error, match="thread"):
        fastce.set_num_threads(n)
    assert fastce.get_num_threads() == restore_threads


@pytest.mark.once
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this platform")
def test_default_is_no_more_than_the_cores_allowed():
    if "OMP_NUM_THREADS" not in os.environ:
        assert fastce.get_num_threads() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("n_threads", "error"), REFUSED)
def test_n_threads_refuses(n_threads, error):
    for function in (fastce.cross_entropy, fastce.cross_entropy_and_grad):
        with pytest.raises(error, match="thread"):
            function(np.eye(2), [0, 1], n_threads=n_threads)


def test_n_threads_beyond_the_rows_and_the_cores():
    for shape in ((3, 50), (3, 40_000), (2000, 50)):
        x, y = nasty(np.float32, *shape)
        expected = fastce.cross_entropy_and_grad(x, y, n_threads=1)
        for n_threads in (4, 100, 1_000_000, np.int32(3)):
            loss, grad = fastce.cross_entropy_and_grad(x, y, n_threads=n_threads)
            assert bits(loss) == bits(expected[0])
            assert bits(grad) == bits(expected[1])


@pytest.mark.parametrize("n_threads", [None, 1, 2])
def test_eight_callers_at_once(n_threads):
    """Each with data of its own and several calls; scratch memory that two share would show."""
    shapes = [
        (3000, 10),
        (300, 129),
        (40, 5000),
        (1, 40000),
        (500, 3),
        (64, 1003),
        (5000, 2),
        (65, 65),
    ]
    work = [nasty(np.float32 if i % 2 else np.float64, *shape) for i, shape in enumerate(shapes)]

    def compute(x, y):
        loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none", n_threads=n_threads)
        return bits(loss), bits(grad), bits(fastce.cross_entropy(x, y, n_threads=n_threads))

    expected = [compute(x, y) for x, y in work]
    barrier, results = threading.Barrier(8), [[] for _ in work]

    def caller(i):
        barrier.wait()
        for _ in range(5):
            results[i].append(compute(*work[i]))

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, same in zip(results, expected, strict=True):
        assert got == [same] * 5


@UNSANITIZED
@pytest.mark.once
@pytest.mark.parametrize("level", fastce._kernels.runnable())
def test_small_stacks(level):
    """Servers with many threads give them little; one that overflows takes the process along."""
    code = """
import threading
import numpy as np
import calls, fastce
expected = calls.digests(1)
found = []
def work():
    found.append(calls.digests(1))
    for target in (np.zeros(70, int), np.eye(70, 10)):  # of extreme weights: few classes go another way
        fastce.cross_entropy_and_grad(np.eye(70, 10), target, sample_weight=np.full(70, 1e300), n_threads=1)
threading.stack_size(128 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert found == [expected]
"""
    python(code, FASTCE_LEVEL=level)
