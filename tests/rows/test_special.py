"""logsumexp, softmax and log_softmax: SciPy's answers, and right ones where SciPy rounds."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from bounds import SOFTMAX_ULP, SOFTMAXES, factors_scale, log_sum_scale
from conftest import DTYPES, FLOATS, HALVES, KINDS, NEW_SIGNS, assert_ulp, bits, nasty
from scipy import special

import fastce
from fastce import reference

NAMES = ("logsumexp", *SOFTMAXES)
CLASS_COUNTS = (1, 2, 3, 10, 33, 64, 65, 113, 128, 129, 1000, 8192, 8193, 16400)


def same_as_scipy(got, expected, rtol):
    """Shape, dtype and kind of what SciPy returns, and the numbers, -0 apart."""
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol, equal_nan=True)


# ---- SciPy's answers -----------------------------------------------------------------------------

SHAPES = [
    *((shape, axis) for shape in [(5,), (1,), (4, 5), (2, 3, 4), (2, 1, 3, 4)] for axis in (None, 0, -1)),
    *(((2, 3, 4), axis) for axis in itertools.permutations(range(3), 2)),
    *(((2, 3, 4), axis) for axis in [(0, 1, 2), (-1, 0), (1,), ()]),
    ((2, 3, 4, 5), (0, 2)),
    ((2, 3, 4, 5), (3, 1, 0)),
    ((2, 1000, 3), 1),
    ((9000, 2), 0),
]
# SciPy rounds at every step in the dtype; numbers here are below 10.
RTOL = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 4e-15}


@pytest.mark.parametrize(("shape", "axis"), [case for case in SHAPES if case[1] != ()], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_shapes(dtype, shape, axis, rng):
    x, b = rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    for order in "CF":
        a = np.array(x, order=order)
        for name in SOFTMAXES:
            expected = getattr(special, name)(a, axis=axis)
            same_as_scipy(getattr(fastce, name)(a, axis=axis), expected, RTOL[dtype])
        for keepdims in (False, True):
            options = {"axis": axis, "keepdims": keepdims}
            same_as_scipy(fastce.logsumexp(a, **options), special.logsumexp(a, **options), RTOL[dtype])
            got = fastce.logsumexp(a, b=b, return_sign=True, **options)
            expected = special.logsumexp(a, b=b, return_sign=True, **options)
            same_as_scipy(got[1], expected[1], 0)
            scale = 1 + special.logsumexp(a, b=abs(b), **options).max() - expected[0].min()
            same_as_scipy(got[0], expected[0], RTOL[dtype] * np.exp(scale))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)], ids=str)
def test_empty(shape):
    for axis in (None, *range(len(shape))):
        for keepdims in (False, True):
            options = {"axis": axis, "keepdims": keepdims}
            got = fastce.logsumexp(np.empty(shape), **options)
            expected = np.sum(np.empty(shape), **options)
            assert np.shape(got) == np.shape(expected)
            assert (np.asarray(got) == -np.inf).all()
            out = np.empty(np.shape(expected))
            assert fastce.logsumexp(np.empty(shape), out=out, **options) is out
            assert (out == -np.inf).all()
        for name in SOFTMAXES:
            assert getattr(fastce, name)(np.empty(shape), axis=axis).shape == shape


@pytest.mark.parametrize("value", [0.0, -3.5, np.inf, -np.inf, np.nan])
def test_scalars(value):
    for name in NAMES:
        with np.errstate(all="ignore"):
            expected = getattr(special, name)(value)
        got = getattr(fastce, name)(value)
        assert np.ndim(got) == 0
        assert got == expected or (np.isnan(got) and np.isnan(expected))
        for axis in (0, -1, (0,)):  # a row of one, for SciPy and PyTorch as well
            assert bits(getattr(fastce, name)(value, axis=axis)) == bits(got)
        with pytest.raises(np.exceptions.AxisError):
            getattr(fastce, name)(value, axis=1)


EDGES = [
    [np.inf, 1.0],
    [1.0, np.inf, np.inf],
    [-np.inf, 1.0],
    [-np.inf, -np.inf],
    [np.inf, -np.inf],
    [np.inf, -np.inf, 0.0],
    [np.nan, 1.0],
    [np.nan, np.inf],
    [np.nan, -np.inf],
    [1e308, 1e308],
    [-1e308, 1e308],
    [5e-324, 0.0],
    [1000.0, -1000.0],
    [-1e4, -1e4, -1e4],
    [0.0],
    [-0.0, -0.0],
]


@pytest.mark.parametrize("row", EDGES, ids=str)
def test_infinities_and_nan(row):
    for length in (len(row), 40, 9001):
        x = np.array([*row, *[-np.inf] * (length - len(row))])
        for name in SOFTMAXES:
            if name == "softmax" or np.isfinite(x).any() or np.isnan(x).any():
                with np.errstate(all="ignore"):
                    expected = getattr(special, name)(x)
                same_as_scipy(getattr(fastce, name)(x), expected, 4e-15)
        with np.errstate(all="ignore"):
            expected = special.logsumexp(x)
        got = fastce.logsumexp(x)
        assert got == pytest.approx(expected, rel=4e-15, nan_ok=True)


@pytest.mark.parametrize("n_classes", [1024, 8192, 8193, 40_000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_largest_logit_stands_anywhere(level, dtype, n_classes, rng):
    """Long rows are summed before it is known; the first 64 logits say what against."""
    heights = (3, 60, 66, 68, 70, 85, 104, 300, 307, 400, 3000)
    x = np.repeat(rng.normal(size=(1, n_classes)), 4 * len(heights), axis=0).astype(dtype)
    x[:, 0] = np.repeat([0, 0, -np.inf, 5], len(heights))
    for row, place in enumerate(np.resize([0, 63, 64, n_classes - 1], len(x))):
        x[row, place] += heights[row % len(heights)]
    p = fastce.softmax(x, axis=1)
    assert_ulp(p, reference.softmax(x, axis=1), SOFTMAX_ULP[x.dtype])
    assert bits(fastce.softmax(np.repeat(x, 2, axis=1)[:, ::2], axis=1)) == bits(p)
    assert fastce.softmax(x, axis=1, out=x) is x
    assert bits(x) == bits(p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_softmax_of_infinity_is_scipys(dtype):
    got = fastce.log_softmax(np.array([np.inf, 1], dtype)).astype(float)
    assert np.isnan(got[0])
    assert got[1] == -np.inf


FACTORS = [
    ([1.0, 2.0], [1.0, -1.0]),
    ([2.0, 2.0], [1.0, -1.0]),
    ([2.0, 1.0], [0.0, 0.0]),
    ([np.inf, 1.0], [0.0, 2.0]),
    ([np.nan, 1.0], [0.0, 2.0]),
    ([np.inf, 1.0], [2.0, -2.0]),
    ([np.inf, 1.0], [-2.0, 2.0]),
    ([np.inf, np.inf], [1.0, -1.0]),
    ([np.inf, np.inf], [1.0, 2.0]),
    ([1.0, 2.0], [np.nan, 1.0]),
    ([-np.inf, -np.inf], [1.0, -1.0]),
    ([-np.inf, 3.0], [-5.0, -2.0]),
    ([0.0, 0.0, 0.0], [1e-300, 1e-300, 1e-300]),
    ([-1000.0, -1001.0], [1.0, -3.0]),
    ([600.0, 700.0], [1e3, 1e-300]),
]


@pytest.mark.parametrize(("a", "b"), FACTORS, ids=str)
def test_factors(a, b):
    """A factor of 0 takes out whatever stands there, also infinities and NaN."""
    exact, exact_sign = reference.logsumexp(a, b=b, return_sign=True)
    got, sign = fastce.logsumexp(a, b=b, return_sign=True)
    assert got == pytest.approx(float(exact), rel=1e-15, nan_ok=True)
    assert sign == pytest.approx(float(exact_sign), nan_ok=True)
    alone = fastce.logsumexp(a, b=b)
    assert np.isnan(alone) if exact_sign < 0 else alone == pytest.approx(float(exact), rel=1e-15, nan_ok=True)
    if np.isposinf(a).any() and not NEW_SIGNS:
        return
    with np.errstate(all="ignore"):
        expected, expected_sign = special.logsumexp(a, b=b, return_sign=True)
    assert got == pytest.approx(expected, rel=1e-15, nan_ok=True)
    assert sign == pytest.approx(expected_sign, nan_ok=True)


@pytest.mark.parametrize("n_classes", [1, 3, 100, 9000, 40_000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_factors_at_the_ends(dtype, n_classes, rng):
    """Products and sums beyond the largest number have a logarithm nevertheless; SciPy's is infinite."""
    x = rng.normal(size=(3, n_classes)).astype(dtype) * 3
    for size in (np.finfo(dtype).max, np.finfo(dtype).tiny):
        b = (rng.uniform(0.5, 1, x.shape) * size).astype(dtype)
        for factors in (b, -b, b * rng.choice([1, 1, 1, -1], x.shape).astype(dtype)):
            exact, sign = reference.logsumexp(x, axis=1, b=factors, return_sign=True)
            got, got_sign = fastce.logsumexp(x, axis=1, b=factors, return_sign=True)
            assert (got_sign == sign).all()
            assert_ulp(got, exact, SOFTMAX_ULP[x.dtype], factors_scale(x, factors, exact)[0])
    mixed = np.array([[np.finfo(dtype).max, np.inf]], dtype)
    assert fastce.logsumexp(np.zeros((1, 2), dtype), b=mixed) == np.inf
    assert np.isnan(fastce.logsumexp(np.zeros((1, 2), dtype), b=mixed * [1, -1]))
    most, least = np.finfo(dtype).max, float(np.finfo(dtype).smallest_subnormal)
    large = ([most, -most, least], [most, -most, 1.0]) if dtype == np.float64 else ()
    for few in ([least] * 3, [least, -least, least], *large):
        exact, sign = np.log(abs(np.sum(np.array(few, dtype)))), 1  # of numbers that cancel in this order
        got, got_sign = fastce.logsumexp(np.zeros(3, dtype), b=np.array(few, dtype), return_sign=True)
        assert (got, got_sign) == (pytest.approx(exact, rel=4 * float(np.finfo(dtype).eps)), sign)
    x = np.array([np.finfo(dtype).max, np.inf])  # an exp that overflows beside infinity; SciPy returns NaN
    assert fastce.logsumexp(x, b=[-1, 2]) == reference.logsumexp(x, b=[-1, 2]) == np.inf


def test_factors_are_broadcast(rng):
    a = rng.normal(size=(3, 1, 5))
    for shape in [(), (5,), (4, 1), (2, 3, 4, 5), (1, 1, 1)]:
        b = rng.uniform(0.5, 2, shape)
        for axis in (None, -1, 0, (0, 2)):
            expected = special.logsumexp(a, axis=axis, b=b)
            same_as_scipy(fastce.logsumexp(a, axis=axis, b=b), expected, 4e-15)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u8", "?", ">i2"])
def test_integers(dtype):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    for name in NAMES:
        function = getattr(fastce, name)
        got = function(x, axis=1)
        assert got.dtype == np.float64
        assert bits(got) == bits(function(x.astype(float), axis=1))
    assert bits(fastce.softmax([1, 2, 3])) == bits(fastce.softmax([1.0, 2.0, 3.0]))
    assert fastce.logsumexp(np.float32([0, 1]), b=[1, 2]).dtype == np.float64


def test_dtypes_of_factors(rng):
    for one, other in itertools.product(DTYPES, DTYPES):
        got, sign = fastce.logsumexp(np.zeros(3, one), b=np.ones(3, other), return_sign=True)
        expected = np.float32 if {one, other} == set(HALVES) else np.promote_types(one, other)
        assert got.dtype == sign.dtype == expected
        assert float(got) == pytest.approx(np.log(3), rel=float(ml_dtypes.finfo(got.dtype).eps))


WEAK = (True, 2, 2.5)  # without a dtype of their own
TYPES = ("?", *"bBhHiIlLefdFD")


@pytest.mark.skipif(not NEW_SIGNS, reason="SciPy's dtypes since 1.16: pip install -U scipy")
@pytest.mark.parametrize("of_b", [*TYPES, *WEAK], ids=str)
@pytest.mark.parametrize("of_a", [*TYPES, *WEAK], ids=str)
def test_dtypes_are_scipys(of_a, of_b):
    a, b = (np.array([0, 1], of) if isinstance(of, str) else of for of in (of_a, of_b))
    one, other = (np.ones((), of)[()] if isinstance(of, str) else of for of in (of_a, of_b))
    for given in ((a, b), (one, other), (a, other), (one, b)):
        with np.errstate(all="ignore"):
            expected = special.logsumexp(given[0], b=given[1])
        got = fastce.logsumexp(given[0], b=given[1])
        assert got.dtype == expected.dtype
        assert got == pytest.approx(expected, rel=4 * float(np.finfo(got.dtype).eps))
        if got.dtype.kind == "f":
            out = np.empty((), got.dtype)
            assert fastce.logsumexp(given[0], b=given[1], out=out) == got


@pytest.mark.skipif(not NEW_SIGNS, reason="SciPy's dtypes since 1.16: pip install -U scipy")
@pytest.mark.parametrize("b", [*WEAK, [True, False], np.bool_(True), np.uint8([1, 0]), [1, 2], [1.0, 2.0]])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_factors_that_are_no_floats(dtype, b, rng):
    a = rng.normal(size=(3, 2)).astype(dtype)
    same_as_scipy(fastce.logsumexp(a, axis=1, b=b), special.logsumexp(a, axis=1, b=b), RTOL[dtype])


def test_python_numbers_beyond_the_dtype():
    assert fastce.logsumexp(np.float32([0, 1]), b=1e300) == np.inf
    assert fastce.logsumexp(np.float16([0, 1]), b=70000) == np.inf
    assert fastce.logsumexp(np.float32([0, 1]), b=1e-300) == -np.inf
    half = np.zeros(2, ml_dtypes.bfloat16)
    for b in (*WEAK, np.array([True, True])):
        assert fastce.logsumexp(half, b=b).dtype == half.dtype
    for b in (np.ones(2, "i8"), np.ones(2)):
        assert fastce.logsumexp(half, b=b).dtype == np.float64
    short = np.ones(2, "u2") # float64 with ml_dtypes 0.6, float32 with 0.7
    assert fastce.logsumexp(half, b=short).dtype == np.promote_types(half.dtype, short.dtype)
    assert fastce.logsumexp(half, b=np.ones(2, np.float16)).dtype == np.float32


@pytest.mark.parametrize("a", [np.zeros((2, 2)), np.zeros((2, 2), complex)])
def test_factors_that_do_not_fit_are_named(a):
    with pytest.raises(ValueError, match=r"^b has shape \(3,\) and a has shape \(2, 2\); expected"):
        fastce.logsumexp(a, axis=1, b=[1, 2, 3])
    with pytest.raises(TypeError, match=r"^b has dtype <U3"):
        fastce.logsumexp(a, b="abc")
    with pytest.raises(TypeError, match=r"^b has dtype object"):
        fastce.logsumexp(a, b=np.array([1, None]))


def test_complex_numbers_are_scipys(rng):
    z = rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4))
    assert bits(fastce.logsumexp(z, axis=1).view(float)) == bits(special.logsumexp(z, axis=1).view(float))
    assert np.array_equal(fastce.softmax(z, axis=0), special.softmax(z, axis=0))
    got, sign = fastce.logsumexp(z.real, b=z, axis=0, return_sign=True, keepdims=True)
    expected, expected_sign = special.logsumexp(z.real, b=z, axis=0, return_sign=True, keepdims=True)
    assert np.array_equal(got, expected)
    assert np.array_equal(sign, expected_sign)
    out = np.empty(3, complex)
    assert fastce.logsumexp(z, axis=1, out=out) is out
    assert np.array_equal(out, special.logsumexp(z, axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_bad_axes(name):
    function = getattr(fastce, name)
    for axis, error in (
        (2, ValueError),
        (-3, ValueError),
        ((0, 0), ValueError),
        ((1, -1), ValueError),
        (0.5, TypeError),
        (True, TypeError),
        ((0, True), TypeError),
        (np.True_, TypeError),
        (np.ma.masked_array(1, True), TypeError),
        (10**5000, ValueError),
    ):
        for dtype in (float, complex):
            with pytest.raises(error, match="axis"):
                function(np.zeros((2, 3), dtype), axis=axis)
    for dtype in (object, "U1", np.longdouble, "M8[s]"):
        with pytest.raises(TypeError, match="dtype"):
            function(np.zeros(3).astype(dtype))


# ---- Digits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [3, 10_500])
def test_accuracy_of_many_elements(n_classes):
    """An ULP more than the usual error shows in one of some ten thousand elements."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(150_000 // n_classes, n_classes))
    x *= rng.choice([0.1, 1, 5, 20], (len(x), 1))
    assert_ulp(fastce.softmax(x, axis=1), reference.softmax(x, axis=1), SOFTMAX_ULP[x.dtype])


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy(dtype, name):
    """Of all kinds of rows, near 0 of the logarithm too."""
    for n_classes in CLASS_COUNTS:
        x = nasty(dtype, len(KINDS) if n_classes < 5000 else 7, n_classes)[0]
        got, exact = getattr(fastce, name)(x, axis=1), getattr(reference, name)(x, axis=1)
        assert got.dtype == dtype
        # Below the normal numbers an exp and its factor are two roundings.
        tiny = np.finfo(np.float64 if dtype == np.float64 else np.float32).tiny
        normal = ~((abs(exact) < tiny) & (exact != 0))
        assert_ulp(got[normal], exact[normal], SOFTMAX_ULP[dtype], label=f"C={n_classes}")
        assert (abs(got[~normal].astype(float)) <= tiny).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_of_logsumexp(dtype):
    for n_classes in CLASS_COUNTS:
        x = nasty(dtype, len(KINDS) if n_classes < 5000 else 7, n_classes)[0]
        exact = reference.logsumexp(x, axis=1)
        finite, terms = np.isfinite(x.astype(float).max(axis=1)), log_sum_scale(x, exact)
        got = fastce.logsumexp(x, axis=1)
        assert bits(got[~finite]) == bits(exact[~finite].astype(dtype))
        normal = finite & (terms >= float(ml_dtypes.finfo(dtype).smallest_normal))
        assert_ulp(got[normal], exact[normal], SOFTMAX_ULP[dtype], terms[normal], f"C={n_classes}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_accuracy_with_factors(dtype, rng):
    """In ULP of the result, or of what the sum of all terms without their signs means for it."""
    for n_classes in CLASS_COUNTS:
        x = rng.normal(size=(20, n_classes)).astype(dtype) * 5
        for b in (rng.uniform(0, 2, x.shape).astype(dtype), rng.normal(size=x.shape).astype(dtype)):
            exact, sign = reference.logsumexp(x, axis=1, b=b, return_sign=True)
            scale = factors_scale(x, b, exact)[0]
            got, got_sign = fastce.logsumexp(x, axis=1, b=b, return_sign=True)
            assert (got_sign == sign).all()
            assert_ulp(got, exact, SOFTMAX_ULP[dtype], scale, f"C={n_classes}")


@pytest.mark.parametrize("top", [0, 1, 2])
def test_near_0(top):
    """Where the usual formulas return 0, wherever the maximum stands."""
    for dtype, lead in ((np.float32, 20), (np.float32, 80), (np.float64, 40), (np.float64, 700)):
        x = np.zeros(3, dtype)
        x[top] = lead
        got = fastce.log_softmax(x)
        rest = 2 * np.exp(-float(lead))
        assert got[top] == pytest.approx(-rest, rel=4 * float(np.finfo(dtype).eps), abs=0)
        assert got[top - 1] == got[top - 2] == -lead
        got = fastce.logsumexp(x - dtype(lead))
        assert got == pytest.approx(rest, rel=4 * float(np.finfo(dtype).eps), abs=0)


@pytest.mark.skipif(not NEW_SIGNS, reason="SciPy's answers since 1.16: pip install -U scipy")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([np.nan, 1], None),
        ([1, np.nan], None),
        ([0.5, 1], [np.inf, 1]),
        ([0.5, 1], [-np.inf, 1]),
        ([0.5, 1], [np.inf, -np.inf]),
        ([-np.inf, 1], [np.inf, 1]),
    ],
)
def test_signs_of_sums_that_are_not_finite(a, b, dtype):
    a = np.array(a, dtype)
    with np.errstate(all="ignore"):
        expected = special.logsumexp(a, b=b, return_sign=True)
    for got, exact in zip(fastce.logsumexp(a, b=b, return_sign=True), expected, strict=True):
        np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize("name", NAMES)
def test_n_threads_of_nothing(name):
    """Checked where no kernel is called as well."""
    for shape in ((0,), (2, 0)):
        for n_threads, error in ((0, ValueError), (1.5, TypeError)):
            with pytest.raises(error, match="n_threads"):
                getattr(fastce, name)(np.empty(shape), axis=-1, n_threads=n_threads)


def test_no_rows_over_several_axes():
    assert fastce.logsumexp(np.zeros((0, 2, 1)), axis=(1, 2)).shape == (0,)
    assert fastce.logsumexp(np.zeros((0, 2)), axis=()).shape == (0, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_the_short_way_gives_the_same_bits(rng, dtype, axis):
    """Arrays as they usually are go by one call; those in another memory order or with an `out` do not."""
    x, b = rng.normal(size=(2, 5, 7)).astype(dtype)
    b[0, :] = [1, -1, 0, 1, 2, -3, 0]
    b[:, 3] = -2
    spread = np.repeat(b, 2, axis=1)[:, ::2]
    for keepdims in (False, True):
        for options in ({}, {"b": b}, {"b": b, "return_sign": True}):
            got = fastce.logsumexp(x, axis, keepdims=keepdims, **options)
            other = options | ({"b": spread} if options else {})
            out = np.empty_like(got[0] if options.get("return_sign") else got)
            expected = fastce.logsumexp(x, axis, keepdims=keepdims, out=out, **other)
            for a, e in zip(np.atleast_1d(got), np.atleast_1d(expected), strict=True):
                assert np.shape(a) == np.shape(e)
                assert a.dtype == e.dtype == dtype
                np.testing.assert_array_equal(np.asarray(a, float), np.asarray(e, float))
    for function in (fastce.softmax, fastce.log_softmax):
        got, expected = function(x, axis), function(np.repeat(x, 2, axis=1)[:, ::2], axis)
        assert (got.dtype, got.shape) == (dtype, x.shape)
        np.testing.assert_array_equal(got.astype(float), expected.astype(float))
        out = x.copy()
        assert function(out, axis, out=out) is out
        np.testing.assert_array_equal(got.astype(float), out.astype(float))
