"""The special functions into arrays of the caller; the same bits from any number of threads and batch."""

import itertools

import numpy as np
import pytest
from bounds import SOFTMAX_ULP, SOFTMAXES
from conftest import DTYPES, FLOATS, assert_ulp, bits, nasty

import fastce

OUTS = {
    "C": np.empty_like,
    "F": lambda x: np.empty_like(x, order="F"),
    "strided": lambda x: np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2],
    "reversed": lambda x: np.empty_like(x)[::-1, :, ::-1],
    "padded": lambda x: np.empty([n + 3 for n in x.shape], x.dtype)[1:-2, 1:-2, 1:-2],
}


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("layout", OUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out(dtype, layout, name, rng):
    function = getattr(fastce, name)
    for shape in ((3, 4, 5), (2, 3, 300), (2, 2, 9000)):
        x = rng.normal(size=shape).astype(dtype)
        for axis in (0, 1, -1, None, (0, 1), (0, 2), (2, 1)):
            expected = function(x, axis=axis)
            out = OUTS[layout](x)
            assert function(x, axis=axis, out=out) is out
            same = OUTS[layout](x)
            same[...] = x
            assert function(same, axis=axis, out=same) is same
            for written in (out, same):  # the order of the sum may differ
                assert_ulp(written, expected.astype(np.longdouble), 2 * SOFTMAX_ULP[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_out_of_logsumexp(dtype, rng):
    x, b = rng.normal(size=(2, 3, 40)).astype(dtype), rng.uniform(size=(2, 3, 40)).astype(dtype)
    for axis, keepdims, factors in itertools.product((0, 1, 2, None, (0, 2)), (False, True), (None, b)):
        options = {"axis": axis, "keepdims": keepdims, "b": factors}
        expected = np.asarray(fastce.logsumexp(x, **options))
        out = np.empty((*expected.shape, 2), dtype)[..., 0]
        assert fastce.logsumexp(x, out=out, **options) is out
        assert bits(out) == bits(expected)
        got, sign = fastce.logsumexp(x, out=out, return_sign=True, **options)
        assert got is out
        assert (np.asarray(sign) == 1).all()


@pytest.mark.parametrize("name", SOFTMAXES)
def test_overlap(name):
    function = getattr(fastce, name)
    memory = np.arange(64.0)
    x = memory[:24].reshape(4, 6)
    for out in (
        memory[1:25].reshape(4, 6),
        x[::-1],
        memory[:48].reshape(4, 12)[:, ::2],
        memory[23:47].reshape(4, 6),
    ):
        with pytest.raises(ValueError, match="overlap"):
            function(x, axis=1, out=out)
    for a, out in ((x, memory[:20]), (memory[:24], memory[:24].reshape(4, 6))):
        with pytest.raises(ValueError, match="out"):
            function(a, out=out)
    with pytest.raises(ValueError, match="overlap"):
        fastce.logsumexp(x, axis=1, out=x[:, 0])
    with pytest.raises(ValueError, match="overlap"):
        fastce.logsumexp(np.zeros((4, 6)), axis=1, b=x, out=x[0, :4])
    assert np.array_equal(memory, np.arange(64))
    for kind in (np.int64, complex):  # converted, and SciPy's
        x = np.arange(24).astype(kind)
        out = x.view(float if kind == np.int64 else complex)
        with pytest.raises(ValueError, match="overlap"):
            function(x[:20].reshape(4, 5), axis=1, out=out[4:].reshape(4, 5))
        with pytest.raises(ValueError, match="overlap"):
            fastce.logsumexp(x.reshape(4, 6), axis=1, out=out[:4])
        assert np.array_equal(x, np.arange(24))
    with pytest.raises(ValueError, match="overlap"):
        function(ints := np.arange(4), out=ints.view(float))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits(dtype):
    """No number of threads, split of the batch or order of rows changes any."""
    for shape in ((4001, 10), (200, 1003), (20, 8193), (3, 70000), (1, 40000), (2, 40000)):
        x = nasty(dtype, min(shape[0], 100), shape[1])[0]
        x = x[np.arange(shape[0]) % len(x)]
        b = np.resize(np.linspace(0.1, 2, 1009), shape).astype(dtype)
        calls = [
            lambda x, b, **more: fastce.softmax(x, axis=1, **more),
            lambda x, b, **more: fastce.log_softmax(x, axis=1, **more),
            lambda x, b, **more: fastce.logsumexp(x, axis=1, **more),
            lambda x, b, **more: fastce.logsumexp(x, axis=1, b=b, **more),
        ]
        for call in calls:
            expected = call(x, b, n_threads=1)
            for n_threads in (2, 3, 8):
                assert bits(call(x, b, n_threads=n_threads)) == bits(expected)
            half = shape[0] // 2
            for rows in (slice(half), slice(half, None), slice(None, None, -1), slice(1, 2)):
                if len(x[rows]):
                    assert bits(call(x[rows], b[rows])) == bits(expected[rows])


def test_out_of_complex_results():
    x = np.array([1, 2j, 3])
    for out in (np.empty((2, 3), complex), np.empty(3, np.float32)):
        with pytest.raises(ValueError, match="out has shape"):
            fastce.softmax(x, out=out)
    out = np.empty(3, complex)
    assert fastce.softmax(x, out=out) is out
    assert fastce.softmax(memory := x.copy(), out=memory) is memory
    assert bits(memory) == bits(out)
    with pytest.raises(ValueError, match="share memory"):
        fastce.softmax(x, out=np.lib.stride_tricks.as_strided(out, strides=(0,)))
    with pytest.raises(ValueError, match="n_threads"):
        fastce.softmax(x, n_threads=-3)
    with pytest.raises(TypeError, match="masked"):
        fastce.softmax(np.ma.array(x, mask=[0, 1, 0]))


def test_out_in_native_bytes():
    x = np.arange(6.0).astype(">f8")
    out = np.empty(6)
    assert bits(fastce.softmax(x, out=out)) == bits(fastce.softmax(x.astype(float)))
