"""Beside another library with an OpenMP runtime of its own: either may be imported first, both may be busy.

Known from threadpoolctl #41 and scikit-learn #34437: two runtimes in a process, or one where two were meant.
"""

import json

import pytest
from calls import digests, named
from conftest import python

pytestmark = [pytest.mark.once, pytest.mark.slow]  # the runtime is a matter of the process

SKLEARN = """
from sklearn.metrics import pairwise_distances_argmin
points = np.random.default_rng(0).normal(size=(3000, 20))
def other():
    return pairwise_distances_argmin(points, points[:500]).tobytes()
"""
TORCH = """
import torch
torch.set_num_threads(2)
points = torch.linspace(-3, 3, 300_000, dtype=torch.float64)
def other():
    return points.exp().numpy().tobytes()
"""
FASTCE = """
from calls import digests
digests(2)
"""
BOTH = """
import json, os, signal, sys, threading
import numpy as np
{first}
{second}
names = sys.argv[1:]
alone, others = digests(2, names), other()
rounds, same = 3, []

def repeat(function, expected):
    for _ in range(rounds):
        same.append(function() == expected)

threads = [threading.Thread(target=repeat, args=(lambda: digests(2, names), alone)) for _ in range(3)]
threads += [threading.Thread(target=repeat, args=(other, others)) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert same == [True] * 6 * rounds, same
if not os.fork():  # the threads of neither runtime are there
    signal.alarm(60)
    os._exit(digests(2, names) != alone)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
json.dump(alone, sys.stdout)
"""


@pytest.mark.parametrize("fastce_first", [True, False])
@pytest.mark.parametrize("other", [SKLEARN, TORCH], ids=["sklearn", "torch"])
def test_both_at_work(other, fastce_first):
    """Each in three of Python's threads at once, with OpenMP threads of its own: the same bits as alone."""
    if other == TORCH:
        pytest.importorskip("torch", reason="torch is not installed: pip install 'fastce[torch-tests]'")
    first, second = (FASTCE, other) if fastce_first else (other + "other()", FASTCE)
    names = list(named())[::6]  # of each shape and dtype: threads of two runtimes wait for each other a lot
    done = python(BOTH.format(first=first, second=second), *names)
    assert json.loads(done.stdout) == digests(2, names)
