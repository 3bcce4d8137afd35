"""`out` and `hess_out` of every function: what can't be written into is refused, and stays as it is."""

import numpy as np
import pytest
from conftest import bits
from numpy.lib.stride_tricks import as_strided
from test_bad_input import FUNCTIONS, SHAPE, C, N, call, derivatives

import fastce

pytestmark = pytest.mark.once  # the levels share the source of the checks

OUTS = [
    ("narrow", np.full((N, C - 1), 7.0), ValueError, "shape"),
    ("flat", np.full(N * C, 7.0), ValueError, "shape"),
    ("another dimension", np.full((1, N, C), 7.0), ValueError, "shape"),
    ("float32", np.full(SHAPE, 7, np.float32), (TypeError, ValueError), "float32"),
    ("int64", np.full(SHAPE, 7), (TypeError, ValueError), "int64"),
    ("read-only", np.broadcast_to(7.0, SHAPE), ValueError, "read-only"),
    ("one place for all", as_strided(np.full(C, 7.0), SHAPE, (0, 8)), ValueError, "memory"),
    ("list", [[7.0] * C] * N, TypeError, "list"),
    ("str", "out", TypeError, "str"),
    ("masked", np.ma.masked_array(np.full(SHAPE, 7.0)), TypeError, "masked"),
]
WRITERS = [
    (name, function, parameter_name)
    for function in FUNCTIONS
    for name in function.names
    for parameter_name, _ in derivatives(name, function.valid)
    if name != "logsumexp"
]


@pytest.mark.parametrize(("name", "function", "parameter_name"), WRITERS)
@pytest.mark.parametrize(("what", "value", "error", "message"), OUTS, ids=[what for what, *_ in OUTS])
def test_no_place_to_write(name, function, parameter_name, what, value, error, message):
    written = {**dict(derivatives(name, function.valid)), parameter_name: value}
    with pytest.raises(error) as caught:
        call(name, {**function.valid, **written})
    assert parameter_name in str(caught.value)
    assert message in str(caught.value)
    for a in written.values():
        if isinstance(a, np.ndarray):
            assert (a == 7).all()


@pytest.mark.parametrize(("name", "function", "parameter_name"), WRITERS)
@pytest.mark.parametrize("shift", [1, C, N * C - 1])
def test_overlap_with_the_first_argument(name, function, parameter_name, shift):
    first = next(iter(function.valid))
    memory = np.full(2 * N * C, 0.5)
    before = memory.copy()
    given = memory[shift : shift + N * C].reshape(SHAPE)
    written = {**dict(derivatives(name, function.valid)), parameter_name: memory[: N * C].reshape(SHAPE)}
    others = [a for key, a in written.items() if key != parameter_name]
    with pytest.raises(ValueError, match=f"{parameter_name}.*overlaps|overlaps.*{parameter_name}"):
        call(name, {**function.valid, first: given, **written})
    assert np.array_equal(memory, before)
    assert all((a == 7).all() for a in others)


OTHERS = [
    (*writer, other)
    for writer in WRITERS
    for other in ("target", "weight", "sample_weight", "pos_weight")
    if any(bad.parameter == other for bad in writer[1].bad)
]


@pytest.mark.parametrize(("name", "function", "parameter_name", "other"), OTHERS)
def test_overlap_with_another_argument(name, function, parameter_name, other):
    memory = np.ones(SHAPE)
    row = memory[0]
    part = {"target": memory, "weight": row, "sample_weight": row[:N], "pos_weight": row}[other]
    if other == "target" and function.valid["target"].dtype.kind == "i":
        part = row[:N].view(np.int64)
        part[...] = function.valid["target"]
    before = bits(memory)
    written = {**dict(derivatives(name, function.valid)), parameter_name: memory}
    with pytest.raises(ValueError, match=f"{parameter_name}.*overlaps|overlaps.*{parameter_name}"):
        call(name, {**function.valid, other: part, **written})
    assert bits(memory) == before


@pytest.mark.parametrize("name", ["cross_entropy_and_hess", "binary_cross_entropy_with_logits_and_hess"])
@pytest.mark.parametrize("shift", [0, 1, C])
def test_gradient_and_hessian_in_one_place(name, shift):
    function = next(f for f in FUNCTIONS if name in f.names)
    memory = np.full(2 * N * C, 7.0)
    out, hess_out = memory[: N * C].reshape(SHAPE), memory[shift : shift + N * C].reshape(SHAPE)
    with pytest.raises(ValueError, match=r"overlap"):
        call(name, {**function.valid, "out": out, "hess_out": hess_out})
    assert (memory == 7).all()


@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp_with_nowhere_to_write(keepdims):
    shape = (N, 1) if keepdims else (N,)
    for out, error in (
        (np.full((C,), 7.0), ValueError),
        (np.full((N, C), 7.0), ValueError),
        (np.full(shape, 7, np.float32), (TypeError, ValueError)),
        (np.broadcast_to(7.0, shape), ValueError),
        ([7.0] * N, TypeError),
    ):
        with pytest.raises(error, match="out"):
            fastce.logsumexp(np.zeros(SHAPE), axis=1, keepdims=keepdims, out=out)
        assert np.all(np.asarray(out) == 7)


class OfDLPack:
    """Memory of another library."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_out_overlaps_memory_of_another_library():
    memory = np.zeros((6, 3))
    with pytest.raises(ValueError, match="out overlaps logits"):
        fastce.cross_entropy_and_grad(OfDLPack(memory[:4]), [0, 1, 2, 0], out=memory[1:5])
    weight = OfDLPack(memory[:4, 0])
    with pytest.raises(ValueError, match="out overlaps sample_weight"):
        fastce.cross_entropy_and_grad(np.ones((4, 3)), [0, 1, 2, 0], sample_weight=weight, out=memory[:4])


def test_out_overlaps_an_array_that_is_converted():
    memory = np.zeros(40, np.float32)
    x, out = np.zeros((4, 5), np.float32), memory[:20].reshape(4, 5)
    with pytest.raises(ValueError, match="out overlaps sample_weight"):
        fastce.cross_entropy_and_grad(x, [0, 1, 2, 3], sample_weight=memory.view(np.float16)[:4], out=out)
    ints = np.zeros(20, np.int64)
    with pytest.raises(ValueError, match="out overlaps weight"):
        fastce.binary_cross_entropy_with_logits_and_grad(np.zeros(20), 1, weight=ints, out=ints.view(float))
    with pytest.raises(ValueError, match="out overlaps logits"):
        fastce.binary_cross_entropy_with_logits_and_grad(ints, 1, out=ints.view(float))
