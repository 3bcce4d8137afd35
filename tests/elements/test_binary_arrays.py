"""The binary losses: layouts, broadcasting, threads, reductions, `out`, and what is refused."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
from conftest import DTYPES, FLOATS, HALVES, bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastce
from fastce import reference

WITH_OUT = (
    fastce.binary_cross_entropy_with_logits_and_grad,
    fastce.binary_cross_entropy_with_logits_and_hess,
    fastce.binary_focal_loss_and_grad,
)
ALL = (
    fastce.binary_cross_entropy_with_logits,
    fastce.binary_focal_loss,
    fastce.binary_cross_entropy,
    *WITH_OUT,
)
# Around the vectors of all levels and the strips of 1024 elements.
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 1023, 1024, 1025, 1040, 5000)


def everything(x, y, **options):
    """All that the functions return, in one tuple; logits stand for probabilities too."""
    pos_weight = options.pop("pos_weight", None)
    results = fastce.binary_cross_entropy_with_logits_and_hess(x, y, pos_weight=pos_weight, **options)
    return results + fastce.binary_focal_loss_and_grad(x, y, alpha=0.3, **options)


def probabilities(function, x):
    """Arguments that a function of probabilities takes as well as one of logits."""
    return 1 / (1 + np.exp(-np.asarray(x, float))) if function is fastce.binary_cross_entropy else x


# ---- Layouts, dtypes, broadcasting ---------------------------------------------------------------

LAYOUTS = {
    "F": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda a: a.T.copy().T,
    "padded": lambda a: np.pad(a.astype(float), 1).astype(a.dtype)[1:-1, 1:-1],
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
}


@pytest.mark.parametrize("shape", [(7, 5), (40, 33), (3, 2000), (2000, 3)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    # ml_dtypes has no bfloat16 with swapped bytes.
    [(d, name) for d in DTYPES for name in LAYOUTS if (d.name, name) != ("bfloat16", "swapped")],
    ids=str,
)
def test_layouts(dtype, layout, shape, rng):
    x = (rng.normal(size=shape) * 4).astype(dtype)
    y, w = rng.random(shape), rng.random(shape)
    expected = everything(x, y, weight=w, reduction="none")
    move = LAYOUTS[layout]
    for args in ((move(x), y, w), (x, move(y), w), (x, y, move(w)), (move(x), move(y), move(w))):
        got = everything(args[0], args[1], weight=args[2], reduction="none")
        assert [bits(a.astype(b.dtype)) for a, b in zip(got, expected, strict=True)] == [
            bits(b) for b in expected
        ]
        assert got[1].dtype == args[0].dtype


@pytest.mark.parametrize("order", ["C", "F"])
def test_results_have_the_order_of_the_logits(order):
    x = np.zeros((4, 5), order=order)
    for a in everything(x, 1, reduction="none"):
        assert a.flags[f"{order}_CONTIGUOUS"]


def test_read_only_and_memory_mapped(tmp_path):
    x, y = np.linspace(-5, 5, 3000).astype(np.float32), np.arange(3000) % 2
    expected = everything(x, y, reduction="none")
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r")
    y.flags.writeable = False
    for a, b in zip(everything(mapped, y, reduction="none"), expected, strict=True):
        assert bits(a) == bits(b)
        assert type(a) is np.ndarray


@pytest.mark.parametrize("code", ["?", *"bBhHiIlLqQ", "e", "f", "d", ">i4", ">u2", ">f4", ">f2", ">i8"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes_of_targets(dtype, code, rng):
    x, y = rng.normal(size=(30, 70)).astype(dtype), rng.integers(0, 2, (30, 70))
    expected = everything(x, y.astype(dtype), reduction="none")
    for target in (y.astype(code), y.astype(code).T.copy().T, np.repeat(y, 2, 1).astype(code)[:, ::2]):
        for a, b in zip(everything(x, target, reduction="none"), expected, strict=True):
            assert bits(a) == bits(b)


@pytest.mark.parametrize("dtype", ["?", *"bBhHiIlLqQ"])
def test_integer_logits_convert_to_float64(dtype, rng):
    x, y = rng.integers(0, 2, 50).astype(dtype), rng.integers(0, 2, 50)
    got, expected = (everything(a, y, reduction="none") for a in (x, x.astype(float)))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == np.float64
        assert bits(a) == bits(b)


shapes = hnp.mutually_broadcastable_shapes(num_shapes=4, max_dims=4, max_side=9)


@given(shapes=shapes, data=st.data(), seed=st.integers(0, 2**20))
def test_broadcasting(shapes, data, seed):
    """Each operand of any shape that broadcasts to the logits, any order of the logits' axes."""
    rng = np.random.default_rng(seed)
    shape = shapes.result_shape
    axes = data.draw(st.permutations(range(len(shape))))
    inverse = np.argsort(axes) if shape else ()
    x = rng.normal(size=tuple(shape[i] for i in axes)).transpose(inverse)
    y, w, p = (rng.random(s) for s in shapes.input_shapes[1:])
    options = {"weight": w, "pos_weight": p, "reduction": "none"}
    got = fastce.binary_cross_entropy_with_logits_and_hess(x, y, **options)
    full = [np.broadcast_to(a, shape).copy() for a in (y, w, p)]
    options = {"weight": full[1], "pos_weight": full[2], "reduction": "none"}
    expected = fastce.binary_cross_entropy_with_logits_and_hess(x.copy(), full[0], **options)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == shape
        assert bits(a) == bits(b)
    exact = reference.binary_cross_entropy_with_logits(x, full[0], **options)
    np.testing.assert_allclose(got[0], exact.astype(float), rtol=1e-14)


def test_broadcast_logits():
    x, y = np.broadcast_to(np.linspace(-3, 3, 50), (40, 50)), np.arange(40)[:, None] % 2
    got, expected = (everything(a, y, reduction="none") for a in (x, x.copy()))
    assert [bits(a) for a in got] == [bits(a) for a in expected]


@pytest.mark.parametrize("shape", [(3,), (4, 5), (2, 1, 4), (1, 4, 3), (5, 4, 3), (4, 2)])
@pytest.mark.parametrize("name", ["target", "weight", "pos_weight"])
def test_operands_do_not_enlarge_the_logits(name, shape):
    x = np.zeros((4, 1))
    options = {"target": 1.0, name: np.ones(shape)}
    with pytest.raises(ValueError, match=rf"{name} has shape .*expected one that broadcasts") as error:
        fastce.binary_cross_entropy_with_logits(x, **options)
    assert str(shape) in str(error.value)
    assert "(4, 1)" in str(error.value)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_no_elements(shape):
    x = np.empty(shape, np.float32)
    for function in ALL:
        for reduction, expected in (("mean", np.nan), ("sum", 0.0)):
            got = function(x, 1, reduction=reduction)
            loss = got[0] if isinstance(got, tuple) else got
            np.testing.assert_equal(loss, expected)
        got = function(x, np.ones(shape), reduction="none")
        for a in got if isinstance(got, tuple) else (got,):
            assert a.shape == shape
    assert fastce.binary_cross_entropy_with_logits(x, 1, normalizer=0) == 0


def test_scalars():
    got = fastce.binary_cross_entropy_with_logits_and_hess(0.0, True, reduction="none")
    assert [a.shape for a in got] == [()] * 3
    np.testing.assert_allclose(got, [np.log(2), -0.5, 0.25])
    assert type(fastce.binary_cross_entropy_with_logits(0.0, True)) is float


# ---- The same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_place_and_neighbours_decide_nothing(dtype, n, rng):
    """An element's bits are those it has alone; with weights of 1 they are those without."""
    x, y = (rng.normal(size=n) * 6).astype(dtype), rng.random(n).astype(dtype)
    got = everything(x, y, reduction="none")
    reversed_ = everything(x[::-1], y[::-1], reduction="none")
    weighted = everything(x, y, weight=np.ones(n), pos_weight=1, reduction="none")
    assert [bits(a) for a in got] == [bits(a[::-1]) for a in reversed_]
    assert [bits(a) for a in got] == [bits(a) for a in weighted]
    p = 1 / (1 + np.exp(-x.astype(np.float32)))
    losses = fastce.binary_cross_entropy(p, y, reduction="none")
    for i in {0, n // 2, n - 1}:
        alone = everything(x[i], y[i], reduction="none")
        assert [bits(a[i]) for a in got] == [bits(a) for a in alone]
        assert bits(losses[i]) == bits(fastce.binary_cross_entropy(p[i], y[i], reduction="none"))


@pytest.mark.parametrize("n", [5000, 9000, 70_001, pytest.param(300_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads(dtype, n, rng):
    x, y, w = rng.normal(size=n).astype(dtype), rng.random(n), rng.random(n)
    for options in ({"reduction": "none"}, {"weight": w}, {"reduction": "sum"}):
        for function in ALL:
            given = probabilities(function, x)
            results = [function(given, y, n_threads=k, **options) for k in (1, 2, 3, 8, None)]
            results = [[bits(a) for a in (r if isinstance(r, tuple) else (r,))] for r in results]
            assert all(r == results[0] for r in results)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_way_to_call(reduction, rng):
    x, y = rng.normal(size=(50, 40)).astype(np.float32), rng.integers(0, 2, (50, 40))
    options = {"reduction": reduction, "pos_weight": rng.random(40)}
    hess = fastce.binary_cross_entropy_with_logits_and_hess(x, y, **options)
    grad = fastce.binary_cross_entropy_with_logits_and_grad(x, y, **options)
    loss = fastce.binary_cross_entropy_with_logits(x, y, **options)
    assert bits(loss) == bits(grad[0]) == bits(hess[0])
    assert bits(grad[1]) == bits(hess[1])


# ---- Reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_reductions(dtype, n, rng):
    """A float32 exp is off by up to an ULP, whose mean over elements of one size can be seen."""
    x, y, w = (rng.normal(size=n) * 3).astype(dtype), rng.random(n), rng.random(n)
    rtol = 1e-15 if dtype == np.float64 else 2e-7
    for name in ("binary_cross_entropy_with_logits_and_hess", "binary_focal_loss_and_grad"):
        function, twin = getattr(fastce, name), getattr(reference, name)
        for options in ({}, {"reduction": "sum"}, {"normalizer": 7.5}, {"weight": w}):
            got, exact = function(x, y, **options), twin(x, y, **options)
            assert type(got[0]) is float
            assert got[0] == pytest.approx(float(exact[0]), rel=4 * rtol)
            for a, b in zip(got[1:], exact[1:], strict=True):
                scale = float(np.abs(b).max())
                np.testing.assert_allclose(a, b.astype(float), rtol=8 * rtol, atol=4 * rtol * scale)
    p = probabilities(fastce.binary_cross_entropy, x).astype(dtype)
    for options in ({}, {"reduction": "sum"}, {"normalizer": 7.5}, {"weight": w}):
        exact = reference.binary_cross_entropy(p, y, **options)
        got = fastce.binary_cross_entropy(p, y, **options)
        assert got == pytest.approx(float(exact), rel=4e-15 if dtype == np.float64 else 1e-8)


def test_sums_are_of_more_than_float64():
    """Ten million summands, one of them 1e16 times the others."""
    x = np.full(10_000_000, -20.0)
    x[4_321] = 2e7
    small = fastce.binary_cross_entropy_with_logits(-20.0, 0)
    exact = 2e7 + small * (x.size - 1)
    assert fastce.binary_cross_entropy_with_logits(x, 0, reduction="sum") == pytest.approx(exact, rel=3e-16)


def test_infinite_sums():
    x = np.zeros(5000)
    for place in (0, 77, 4999):
        x[:] = 0
        x[place] = np.inf
        assert fastce.binary_cross_entropy_with_logits(x, 0) == np.inf
        x[place - 1] = np.nan
        assert np.isnan(fastce.binary_cross_entropy_with_logits(x, 0))


# ---- out -----------------------------------------------------------------------------------------

OUTS = {
    "C": np.empty_like,
    "F": lambda x: np.empty_like(x, order="F"),
    "strided": lambda x: np.empty((2 * len(x), 3 * x.shape[1]), x.dtype)[::2, ::3],
    "reversed": lambda x: np.empty_like(x)[::-1, ::-1],
    "unaligned": lambda x: np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("layout", OUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out(dtype, layout, rng):
    x, y = rng.normal(size=(70, 33)).astype(dtype), rng.random((70, 33))
    for function in WITH_OUT:
        expected = [bits(a) for a in function(x, y)]
        out = OUTS[layout](x)
        out[...] = 7
        got = function(x, y, out=out)
        assert got[1] is out
        assert [bits(a) for a in got] == expected
        logits = OUTS[layout](x)
        logits[...] = x
        loss, *derivatives = function(logits, y, out=logits)
        assert derivatives[0] is logits
        assert [bits(a) for a in derivatives] == expected[1:]
        assert loss == pytest.approx(function(x, y)[0], rel=1e-15)  # summed in another order
    out, hess_out = OUTS[layout](x), OUTS[layout](x)
    function = fastce.binary_cross_entropy_with_logits_and_hess
    got = function(x, y, out=out, hess_out=hess_out)
    assert got[1] is out
    assert got[2] is hess_out
    assert [bits(a) for a in got] == [bits(a) for a in function(x, y)]
    assert bits(function(x, y, hess_out=hess_out)[1]) == bits(out)


@pytest.mark.parametrize("n", [10, 3000, 100_000])
def test_nothing_is_written_before_an_error(n):
    """A bad target at the very end; also where logits are used in place."""
    x, y = np.full(n, 0.5), np.ones(n)
    for bad, error in ((1.5, "1.5"), (-1e-9, "-1e-09"), (np.nan, "nan"), (np.inf, "inf")):
        y[-1] = bad
        for function in WITH_OUT:
            out = np.full(n, 7.0)
            for logits, array in ((x, out), (out, out)):
                with pytest.raises(ValueError, match=rf"target\[{n - 1}\] is {error}.*in \[0, 1\]"):
                    function(logits, y, out=array)
                assert (out == 7).all()
        hess_out = np.full(n, 7.0)
        with pytest.raises(ValueError, match="target"):
            WITH_OUT[1](x, y, hess_out=hess_out)
        assert (hess_out == 7).all()


def test_overlaps():
    buffer = np.zeros(100)
    x, function = buffer[:50], WITH_OUT[1]
    refused = partial(pytest.raises, ValueError)
    with refused(match="out overlaps logits"):
        function(x, 1, out=buffer[10:60])
    with refused(match="hess_out overlaps logits"):
        function(x, 1, hess_out=buffer[10:60])
    with refused(match="out overlaps target"):
        function(x, buffer[50:], out=buffer[50:])
    with refused(match="out overlaps weight"):
        function(x, 1, weight=buffer[60:61], out=buffer[50:])
    with refused(match="hess_out overlaps pos_weight"):
        function(x, 1, pos_weight=buffer[60:61], hess_out=buffer[50:])
    with refused(match="out overlaps hess_out"):
        function(x, 1, out=x, hess_out=x)
    with refused(match="may share memory"):
        function(x[:4], 1, hess_out=np.lib.stride_tricks.as_strided(np.zeros(1), (4,), (0,)))
    assert (buffer == 0).all()


@pytest.mark.parametrize("name", ["out", "hess_out"])
def test_out_that_does_not_fit(name):
    x = np.zeros((3, 4))
    read_only = np.zeros((3, 4))
    read_only.flags.writeable = False
    for out in (np.zeros((4, 3)), np.zeros((3, 4), np.float32), np.zeros((3, 4), ">f8"), np.zeros(12)):
        with pytest.raises(ValueError, match=rf"^{name} has shape .*expected those of the logits"):
            WITH_OUT[1](x, 1, **{name: out})
    with pytest.raises(ValueError, match=rf"^{name} is read-only"):
        WITH_OUT[1](x, 1, **{name: read_only})
    with pytest.raises(TypeError, match=rf"^{name} is a list"):
        WITH_OUT[1](x, 1, **{name: [[0.0] * 4] * 3})


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i1", "u1", "i8", ">i2", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_targets_outside_0_and_1(dtype, code):
    """Also of the dtypes and layouts that are read in other ways; the first bad one is named."""
    x = np.zeros((60, 40), dtype)
    for bad in (2, 127) if code == "u1" else (-1, 2, 127):
        y = np.zeros((60, 40), code)
        y[50, 30] = y[59, 39] = bad
        for target in (y, np.asfortranarray(y), y[:, :]):
            for function in ALL:
                with pytest.raises(ValueError, match=rf"target\[50, 30\] is {bad}(\.0)?; expected"):
                    function(x, target)
        with pytest.raises(ValueError, match=rf"target is {bad}(\.0)?; expected"):
            fastce.binary_cross_entropy_with_logits(x, y[50, 30])
    y = np.zeros((60, 40), code)
    y[50, 30] = 1
    fastce.binary_cross_entropy_with_logits(x, -y * 0 + y)


def test_targets_of_minus_0():
    x = np.array([3.0, -3.0])
    assert bits(everything(x, [-0.0, -0.0])[0]) == bits(everything(x, 0)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [-0.5, 1.5, np.nan, np.inf])
def test_probabilities_outside_0_and_1(dtype, bad):
    p = np.full((40, 50), 0.5, dtype)
    p[39, 48] = bad
    with pytest.raises(ValueError, match=rf"probs\[39, 48\] is {bad}; expected a number in \[0, 1\]"):
        fastce.binary_cross_entropy(p, 1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_target_that_is_a_signalling_nan(dtype):
    """Comparing one, as for the advice in the message, is an invalid operation that ml_dtypes warns of."""
    target = np.array([np.inf], dtype).view(np.uint16) + np.uint16(1)
    with pytest.raises(ValueError, match=r"target\[0\] is nan; expected a number in \[0, 1\]"):
        fastce.binary_cross_entropy_with_logits(np.zeros(1), target.view(dtype))


@pytest.mark.parametrize("dtype", [np.complex64, np.longdouble, object, "U3", "datetime64[s]"], ids=str)
def test_dtypes_that_are_refused(dtype):
    a = np.zeros(3, dtype)
    for function in ALL:
        with pytest.raises(TypeError, match=r"(logits|probs) has dtype"):
            function(a, 1)
        with pytest.raises(TypeError, match="target has dtype"):
            function(np.zeros(3), a)
        with pytest.raises(TypeError, match="weight has dtype"):
            function(np.zeros(3), 1, weight=a)
        with pytest.raises(TypeError, match="masked"):
            function(np.zeros(3), np.ma.masked_array([0.0, 1, 1]))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"reduction": "average"}, ValueError, "reduction is 'average'; expected 'mean', 'sum' or 'none'"),
        ({"normalizer": -1}, ValueError, "normalizer is -1; expected a finite"),
        ({"normalizer": 2, "reduction": "sum"}, ValueError, "normalizer is 2 with reduction='sum'"),
        ({"normalizer": "2"}, TypeError, "normalizer is '2'; expected a number"),
        ({"n_threads": 0}, ValueError, "n_threads"),
    ],
    ids=str,
)
def test_options(options, error, match):
    for function in ALL:
        with pytest.raises(error, match=match):
            function(np.zeros(3), 1, **options)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, -np.inf])
def test_parameters_of_the_focal_loss(value):
    for function in (fastce.binary_focal_loss, fastce.binary_focal_loss_and_grad):
        with pytest.raises(ValueError, match=rf"gamma is {value}; expected .*at least 0"):
            function(np.zeros(3), 1, gamma=value)
        with pytest.raises(ValueError, match=rf"alpha is {value}; expected .*in \[0, 1\]"):
            function(np.zeros(3), 1, alpha=value)
        with pytest.raises(TypeError, match="gamma is '2'; expected a number"):
            function(np.zeros(3), 1, gamma="2")
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        fastce.binary_focal_loss(np.zeros(3), 1, alpha=1.5)


def test_inputs_are_left_alone(rng):
    x, y, w = rng.normal(size=(3, 40, 50))
    y = np.abs(np.tanh(y))
    before = [bits(a) for a in (x, y, w)]
    everything(x, y, weight=w, pos_weight=w)
    assert [bits(a) for a in (x, y, w)] == before
