"""The same bits: for every function, from any number of threads, in any part of a batch, in any process."""

import json
from itertools import pairwise

import numpy as np
import pytest
from calls import SHAPES, calls, digests, linear_calls
from conftest import FLOATS, bits, python


def test_threads_and_repetition():
    expected = digests(n_threads=1)
    for n_threads in (1, 2, 3, 8):
        assert digests(n_threads=n_threads) == expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parts_of_a_batch(shape):
    """Every row alone would do as well; parts of uneven sizes reach more of the ways to lay a batch out."""
    n_rows = shape[0]
    cuts = sorted({0, 1, n_rows // 7, n_rows // 2, n_rows})
    for dtype in FLOATS:
        for call in calls(dtype.type, *shape) + linear_calls(dtype.type, *shape):
            more = {"reduction": "none"} if call.reduces else {}
            whole = call.results(**more)
            parts = [call.part(slice(*cut)).results(**more) for cut in pairwise(cuts)]
            for k, result in enumerate(whole):
                assert bits(np.concatenate([part[k] for part in parts])) == bits(result), call.name


def test_processes(level):
    """In another process, whatever the memory holds that malloc returns there (glibc's MALLOC_PERTURB_)."""
    done = python(
        "import json, calls; print(json.dumps(calls.digests()))",
        timeout=300,
        OMP_NUM_THREADS="2",
        MALLOC_PERTURB_="170",
        FASTCE_LEVEL=level,
    )
    assert json.loads(done.stdout) == digests()
