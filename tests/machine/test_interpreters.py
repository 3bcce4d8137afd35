"""Interpreters beside the main one: fastce is refused there by an ImportError, or works, and nothing crashes.

NumPy is for one interpreter of a process, and fastce too: its threads belong to the process.
"""

import sys

import pytest
from conftest import python

pytestmark = pytest.mark.once

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")  # of NumPy, which says that it is in the wrong place
try:
    import _interpreters
    other = _interpreters.create({"isolated": "isolated", "shared": "legacy"}[sys.argv[1]])
    run = _interpreters.exec
except ImportError:  # before Python 3.13
    import _xxsubinterpreters
    other = _xxsubinterpreters.create(isolated=sys.argv[1] == "isolated")
    run = _xxsubinterpreters.run_string

def loss():
    import fastce
    return fastce.cross_entropy([[0.0, 1.0]] * 20_000, [0] * 20_000)

before = loss() if sys.argv[2] == "loaded" else None
for _ in range(2):
    failed = run(other, '''
import warnings
warnings.simplefilter("ignore")  # of NumPy, which says that it is in the wrong place
try:
    import fastce
    print("loss", fastce.cross_entropy([[0.0, 1.0]] * 20_000, [0] * 20_000), flush=True)
except ImportError as error:
    print("refused", *str(error).split(), flush=True)  # in one line, and in NumPy's words or Python's
''')
    assert failed is None, failed
try:
    print("main", before, loss())
except ImportError as error:
    print("main refused", error)
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="interpreters of CPython")
@pytest.mark.parametrize("main", ["loaded", "not loaded"])
@pytest.mark.parametrize("kind", ["isolated", "shared"])
def test_another_interpreter(kind, main):
    *others, last = python(SCRIPT, kind, main).stdout.splitlines()
    loss = 1.3132616875182228
    assert len(others) == 2
    if kind == "isolated" and sys.version_info >= (3, 12):  # before that all of them share one GIL
        assert all(said.startswith("refused") and "subinterpreters" in said for said in others)
    if main == "loaded":
        assert all(said.startswith("refused") for said in others)
        assert last == f"main {loss} {loss}"
    else:  # the first come is served
        assert all(said.startswith("refused") or said == f"loss {loss}" for said in others)
        assert last == f"main None {loss}" or last.startswith("main refused")
