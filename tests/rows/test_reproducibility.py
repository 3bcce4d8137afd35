"""The same bits: for every function, from any number of threads, in any part of a batch, in any process."""

import json
from itertools import pairwise

import numpy as np
import pytest
from calls import SHAPES, calls, digests, linear_calls
from conftest import FLOATS, bits, python

import fastce


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


@pytest.mark.parametrize(("dtype", "n_classes"), [(np.float32, 700_000), (np.float64, 300_000)])
def test_rows_whose_exps_no_cache_has_room_for(dtype, n_classes, rng):
    """They are staged in the gradient; where that can't hold them or takes the place of the logits they are
    computed twice. Many of them are as many bytes as make gradients of shorter rows be streamed."""
    n_rows = 2**25 // (n_classes * np.dtype(dtype).itemsize) + 1
    x = rng.standard_normal((n_rows, n_classes), dtype)
    y = x.argmax(axis=1)
    losses, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
    for i in (0, n_rows - 1):
        loss, alone = fastce.cross_entropy_and_grad(x[i : i + 1], y[i : i + 1], reduction="none")
        assert bits(loss) == bits(losses[i : i + 1])
        assert bits(alone) == bits(grad[i : i + 1])
    apart = np.empty((2, 2 * n_classes), dtype)[:, ::2]
    in_place = x[:2].copy()
    for out in (apart, in_place):
        fastce.cross_entropy_and_grad(x[:2] if out is apart else in_place, y[:2], reduction="none", out=out)
        assert bits(out) == bits(grad[:2])


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
