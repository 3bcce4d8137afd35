"""Life after a fork: a child computes the same bits on one thread, and waits for no threads it does not have.

An OpenMP runtime that has made threads hangs in a child that asks for them: scikit-learn #7650,
LightGBM #4751, xgboost #7044.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest
from calls import digests
from conftest import python

import fastce

pytestmark = [
    pytest.mark.once,  # the levels share the code that watches forks
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # since Python 3.12, of threads
]

TIMEOUT = 120
# One of each way into OpenMP: blocks of rows, pieces of a row, strips of elements.
WAYS = (
    "gradient, float64, (300, 200)",
    "gradient, float32, (3, 20000)",
    "binary gradient, float64, (300, 200)",
)


@pytest.fixture(scope="module")
def expected():
    return digests(2)


def fork(function):
    """Start a child that computes function() and says what it was; returns how to ask for that."""
    readable, writable = os.pipe()
    if not (child := os.fork()):
        try:
            signal.alarm(TIMEOUT)  # a child that hangs ends, and whoever waits for it gets on
            os.close(readable)
            with open(writable, "w") as answer:
                json.dump(function(), answer)
            os._exit(0)
        finally:  # whatever has happened, the child is not to go on with the tests
            os._exit(1)
    os.close(writable)

    def answer():
        with open(readable) as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code != -signal.SIGALRM, "the child hangs"
        assert code == 0
        return json.loads(said)

    return answer


def all_calls_of_a_child():
    """Threads are neither the default nor to be had by asking for them."""
    said = [fastce.get_num_threads(), digests()]
    fastce.set_num_threads(4)
    return [*said, fastce.get_num_threads(), digests(), digests(4)]


def test_after_threads(expected):
    before = fastce.get_num_threads()
    for _ in range(2):
        assert fork(all_calls_of_a_child)() == [1, expected, 1, expected, expected]
    # The parent goes on with its threads.
    assert fastce.get_num_threads() == before
    assert digests(2) == expected


def test_two_children_at_once(expected):
    answers = [fork(digests) for _ in range(2)]
    assert digests(2) == expected
    assert [answer() for answer in answers] == [expected] * 2


def test_child_of_a_child(expected):
    def child():
        return [digests(2, WAYS), fork(lambda: [fastce.get_num_threads(), digests(2)])()]

    some = {name: expected[name] for name in WAYS}
    assert fork(child)() == [some, [1, expected]]


@pytest.mark.parametrize("in_main_thread", [True, False])
@pytest.mark.parametrize("n_callers", [1, 4])
def test_while_other_threads_compute(n_callers, in_main_thread, expected):
    """They are inside a call, with a team of OpenMP threads each, none of which lives on in the child."""
    some, stop, wrong = {name: expected[name] for name in WAYS}, threading.Event(), []
    busy = threading.Barrier(n_callers + 1)

    def caller():
        busy.wait()
        while not stop.is_set():
            if digests(2, WAYS) != some:
                wrong.append(1)

    def forks():
        for _ in range(8):
            said.append(fork(lambda: [fastce.get_num_threads(), digests(2, WAYS), digests(None, WAYS)])())

    said, callers = [], [threading.Thread(target=caller) for _ in range(n_callers)]
    for thread in callers:
        thread.start()
    busy.wait()
    try:
        if in_main_thread:
            forks()
        else:
            forking = threading.Thread(target=forks)
            forking.start()
            forking.join()
    finally:
        stop.set()
        for thread in callers:
            thread.join()
    assert said == [[1, some, some]] * 8
    assert not wrong


def test_threads_of_a_child(expected):
    """Python's threads, not OpenMP's: the child may have as many as it likes."""

    def child():
        results = []
        threads = [threading.Thread(target=lambda: results.append(digests(2))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    assert fork(child)() == [expected] * 3


BEFORE_ANY_CALL = """
import json, os, signal, sys
from calls import digests
import fastce
readable, writable = os.pipe()
if not os.fork():
    signal.alarm(60)
    os.write(writable, json.dumps([fastce.get_num_threads(), digests(2)]).encode())
    os._exit(0)
os.close(writable)
with open(readable) as pipe:
    said = json.load(pipe)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
json.dump([said, digests(2)], sys.stdout)
"""


def test_before_any_call(expected):
    """The child's runtime has made no threads yet, nor will it."""
    done = python(BEFORE_ANY_CALL)
    assert json.loads(done.stdout) == [[1, expected], expected]


IMPORTED_IN_THE_CHILD = """
import json, os, signal, sys
from ctypes import CDLL, c_uint, c_void_p, cast

run = CDLL("libgomp.so.1").GOMP_parallel  # of the runtime that fastce is built with, in threads of its own
run.argtypes = c_void_p, c_void_p, c_uint, c_uint
run(cast(CDLL(None).getpid, c_void_p), None, 2, 0)
assert "fastce" not in sys.modules
if not os.fork():
    signal.alarm(60)
    from calls import digests
    import fastce
    mapped = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split()[-1]}
    print(json.dumps([len(mapped) > 1 or fastce.get_num_threads(), digests(2)]), flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


@pytest.mark.skipif(
    sys.platform != "linux" or fastce.show_config("dict")["openmp"] is None, reason="of Linux with OpenMP"
)
def test_import_in_the_child_of_another_librarys_threads(expected):
    """As where the parent computes with PyTorch, whose runtime is libgomp.so.1 for all that come later.

    A fastce with another runtime (a wheel, a build by Clang) has nothing to fear, and all of its threads.
    """
    assert json.loads(python(IMPORTED_IN_THE_CHILD).stdout) == [1, expected]


FIRST_IN_THE_CHILD = """
import os
if not os.fork():
    import fastce
    print(fastce.get_num_threads(), flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


def test_import_in_the_child_of_a_parent_without_a_runtime():
    """As the workers of a server are made: they have threads.

    Unwatched: a thread that just starts as the process forks leaves locks of a sanitizer closed in the child.
    """
    assert int(python(FIRST_IN_THE_CHILD, watched=False).stdout) == fastce.get_num_threads()


def say(pipe):
    signal.alarm(TIMEOUT)
    pipe.send([fastce.get_num_threads(), digests(2)])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, expected):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=say, args=(theirs,))
    child.start()
    theirs.close()
    with ours:
        n_threads, said = ours.recv()
    child.join()
    assert child.exitcode == 0
    assert said == expected
    # A fresh interpreter has threads as usual; the fork server had not loaded fastce.
    assert n_threads == (1 if method == "fork" else fastce.get_num_threads())
    assert digests(2) == expected


PRELOADED = """
import json, multiprocessing, sys
from test_fork import say

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["fastce"])
ours, theirs = context.Pipe(duplex=False)
child = context.Process(target=say, args=(theirs,))
child.start()
print(json.dumps(ours.recv()))
child.join()
"""


def test_fork_server_that_has_loaded_fastce(expected):
    assert json.loads(python(PRELOADED).stdout) == [1, expected]


def test_process_pool(expected):
    """It forks while a thread of its own runs."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork"), signal.alarm, (TIMEOUT,)) as pool:
        assert list(pool.map(digests, [None, 2, 2])) == [expected] * 3


def test_a_program_started_in_between(expected):
    """What forks only to execute another program leaves the parent's threads alone."""
    before = fastce.get_num_threads()
    python("import fastce")
    os.waitpid(os.posix_spawnp("true", ["true"], os.environ), 0)
    assert fastce.get_num_threads() == before
    assert digests(2, WAYS) == {name: expected[name] for name in WAYS}
