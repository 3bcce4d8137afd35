"""How many threads a call gets: limits from outside, and calls at the same time.

Threads are counted in the system's list of them, in processes of their own: the OpenMP runtime keeps
those it has started, so a process shows the most it has ever used.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from calls import named
from conftest import HALVES
from scipy import sparse

import fastce
from fastce._kernels.machine import threads
from fastce.linear import objective

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        fastce.show_config(mode="dict")["openmp"] is None, reason="built without OpenMP: there is one thread"
    ),
    pytest.mark.skipif(
        not fastce.show_config(mode="dict")["compiler"].startswith("gcc"),
        reason="threads of GCC's OpenMP runtime are counted; LLVM's keeps those of callers that have ended",
    ),
    pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in Linux' /proc"),
]

PRELUDE = """
import json, os, threading
from pathlib import Path
import numpy as np
import threadpoolctl
import fastce

def count():
    return len(os.listdir("/proc/self/task"))

def call(n_threads=None):
    fastce.cross_entropy(x, y, n_threads=n_threads)

x, y = np.zeros((20_000, 50)), np.zeros(20_000, int)
before = count()
"""


def python(code, **environment):
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_as_many_as_asked_for():
    code = """
call(3)
of_argument = count() - before
fastce.set_num_threads(5)
call()
print(json.dumps([of_argument, count() - before]))
"""
    assert python(code) == [2, 4]


def test_threadpoolctl_sees_and_limits():
    code = """
fastce.set_num_threads(4)
seen = [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "openmp"]
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    limited = fastce.get_num_threads()
    call()
    under_limit = count() - before
    call(2)
    asked_for = count() - before
after = fastce.get_num_threads()
call()
print(json.dumps([len(seen), limited, under_limit, asked_for, after, count() - before]))
"""
    assert python(code, OMP_NUM_THREADS="4") == [1, 1, 0, 1, 4, 3]


@pytest.mark.parametrize("limits", ["affinity", "OMP_NUM_THREADS"])
def test_least_of_the_limits(limits):
    """OMP_NUM_THREADS does not lift what the process is bound to."""
    one = {min(os.sched_getaffinity(0))}
    code = "print(json.dumps(fastce.get_num_threads()))"
    if limits == "OMP_NUM_THREADS":
        assert python(code, OMP_NUM_THREADS="1") == 1
        assert python(code, OMP_NUM_THREADS="1000") <= len(os.sched_getaffinity(0))
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, one)  # children inherit it
        assert python(code) == 1
        assert python(code, OMP_NUM_THREADS="3") == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_quota_of_the_group():
    code = """
from fastce._kernels.machine import cgroups, threads
found = {}
for quota in (None, 0.5, 1.9, 1000):
    cgroups.cpu_quota = lambda: quota
    found[str(quota)] = threads.available()
print(json.dumps(found))
"""
    most = min(len(os.sched_getaffinity(0)), os.cpu_count())
    assert python(code) == {"None": most, "0.5": 1, "1.9": 1, "1000": most}


POOL = """
import concurrent.futures, time
from fastce._kernels.machine import threads

fastce.set_num_threads(4)
shapes = [(20_000, 50), (700, 300), (2, 40_000)] * 40
most, work = 0, [(np.zeros(shape), np.zeros(shape[0], int)) for shape in shapes]
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    calls = [pool.submit(fastce.cross_entropy_and_grad, *arrays, n_threads=N_THREADS) for arrays in work]
    while not all(done.done() for done in calls):
        most = max(most, threads.at_work())
        time.sleep(0)
print(json.dumps([most, threads.at_work()]))
"""


@pytest.mark.parametrize("n_threads", [None, 3])
def test_a_pool_of_callers(n_threads):
    """Eight of them: however their calls begin and end beside each other, what was taken is given back."""
    most, afterwards = python(POOL.replace("N_THREADS", str(n_threads)))
    if n_threads is None:
        assert 1 <= most <= 4 + 7
    assert afterwards == 0


CALLERS_AT_ONCE = """
import time
from fastce._kernels.machine import threads

fastce.set_num_threads(4)
logits = np.broadcast_to(np.float32([1, 2, 3]), (2**36, 3))  # for minutes: none ends while others begin
target = np.broadcast_to(np.int8(0), 2**36)
options = {"n_threads": N_THREADS}
found = []
for _ in range(8):
    taken = threads.at_work()
    threading.Thread(target=fastce.cross_entropy, args=(logits, target), kwargs=options).start()
    while threads.at_work() == taken or count() - before < threads.at_work():
        time.sleep(0.001)
    found.append([threads.at_work(), count() - before])
print(json.dumps(found), flush=True)
os._exit(0)  # without waiting for the calls
"""


@pytest.mark.parametrize("n_threads", [None, 3])
def test_callers_at_once(n_threads):
    """With a default of 4, K callers are 4 + K - 1 threads at most; each takes so many if it says so."""
    found = python(CALLERS_AT_ONCE.replace("N_THREADS", str(n_threads)))
    for k, (counted, existing) in enumerate(found, 1):
        assert counted == existing == (4 + k - 1 if n_threads is None else 3 * k)


BESIDE_A_LONG_CALL = """
fastce.set_num_threads(3)
logits = np.broadcast_to(np.float32([1, 2, 3]), (2**28, 3))
target = np.broadcast_to(np.int8(0), 2**28)
long = threading.Thread(target=fastce.cross_entropy, args=(logits, target), kwargs={"n_threads": 3})
long.start()
while count() < before + 3 and long.is_alive():  # it and its two helpers
    pass
call()
alone = count() - before - 3
call(4)
several = count() - before - 3
print(json.dumps([long.is_alive(), alone, several]), flush=True)
os._exit(0)  # without waiting for the long call
"""


def test_a_call_beside_another_gets_what_is_left():
    """One that has all threads keeps them; a second one runs on its own thread, unless it asks for more."""
    assert python(BESIDE_A_LONG_CALL) == [True, 0, 3]


@pytest.mark.parametrize("n_threads", [None, 1, 2])
def test_what_is_taken_is_given_back(n_threads):
    """Also where it is the thread that the call is on: else calls to come would have fewer and fewer."""
    x, y = np.random.default_rng(0).normal(size=(4000, 100)), np.arange(4000) % 20
    w = np.ones((1000, 100))
    f = objective(sparse.csr_array(x), y, 20, n_threads=n_threads)
    linear = {
        "a part of the classes at a time": lambda: fastce.linear_cross_entropy(
            x, w, y, memory=1 << 20, n_threads=n_threads
        ),
        "widened weights": lambda: fastce.linear_cross_entropy(
            x.astype(HALVES[0]), w.astype(HALVES[0]), y, n_threads=n_threads
        ),
        "Hessian": lambda: f.hessian_product(np.zeros(f.size), np.ones(f.size)),
    }
    before = threads.at_work()
    for name, call in named().items():
        call.results(n_threads=n_threads)
        assert threads.at_work() == before, name
    for name, call in linear.items():
        call()
        assert threads.at_work() == before, name
