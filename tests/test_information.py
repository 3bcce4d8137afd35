"""Entropy and divergences of given distributions, against mpmath; digits, infinities, what is refused."""

import re
import tracemalloc

import ml_dtypes
import mpmath
import numpy as np
import pytest
from conftest import DTYPES, bits

import fastce
from fastce import information

# A log within 1 ULP, a product, the sum compensated, the rounding to float32
# or the quotient by the base's logarithm.
ULP = 4
ONE = (information.self_information, information.entropy)
TWO = (information.cross_entropy, information.kl_divergence)
context = mpmath.mp.clone()
context.prec = 300


def exact(values):
    return [context.mpf(float(v)) for v in values]


def exact_cross_entropy(p, q):
    return context.fsum(
        -a * context.log(b) if b else context.inf for a, b in zip(exact(p), exact(q), strict=True) if a
    )


def exact_kl(p, q):
    """The divergence, and the larger of the two sums it is made of."""
    p, q = exact(p), exact(q)
    kl = context.fsum(a * context.log(a / b) for a, b in zip(p, q, strict=True) if a)
    excess = context.fsum(a - b for a, b in zip(p, q, strict=True))
    return kl, max(abs(excess), abs(kl - excess))


def ulps(got, true, scale=None):
    """Error in units in the last place of the largest number involved."""
    scale = max(abs(float(true if scale is None else scale)), np.finfo(got.dtype).tiny)
    return abs(float((context.mpf(float(got)) - true) / np.spacing(got.dtype.type(scale)).astype(float)))


def distributions(rng, n, dtype):
    """Pairs far apart, close together, sparse, tiny, and not normalised."""
    p = rng.dirichlet(np.full(n, 0.5)) + 1e-30
    for q in (
        rng.dirichlet(np.ones(n)) + 1e-30,
        p * rng.uniform(0.3, 3, n),
        *(p * (1 + scale * rng.normal(size=n)) for scale in (1e-1, 1e-4, 1e-8, 1e-12, 1e-16)),
    ):
        yield p.astype(dtype), np.abs(q).astype(dtype)
    sparse = p * (rng.random(n) < 0.3)
    yield sparse.astype(dtype), p.astype(dtype)
    yield (p * 1e-30).astype(dtype), (p * rng.uniform(0.9, 1.1, n) * 1e-30).astype(dtype)
    yield (p / p.max() * 100).astype(dtype), p.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 100, 1001])
def test_digits(n, dtype, rng):
    for p, q in distributions(rng, n, dtype):
        got = information.kl_divergence(p, q)
        assert got.dtype == dtype
        assert ulps(got, *exact_kl(p, q)) <= ULP
        if q.max() <= 1:
            assert ulps(information.cross_entropy(p, q), exact_cross_entropy(p, q)) <= ULP
        if p.max() <= 1:
            assert ulps(information.entropy(p), exact_cross_entropy(p, p)) <= ULP
        for one, probability in zip(information.self_information(p)[:20], p[:20], strict=True):
            assert probability == 0 or ulps(one, -context.log(float(probability))) <= ULP


@pytest.mark.parametrize("base", [2, 10, 2.0, 0.5, 3, 256, 1 + 1e-9, np.float32(7)])
def test_base(base, rng):
    p, q = rng.dirichlet(np.ones(50), 2)
    unit = context.log(context.mpf(float(base)))
    kl, larger = exact_kl(p, q)
    assert ulps(information.kl_divergence(p, q, base=base), kl / unit, larger / unit) <= ULP
    assert ulps(information.cross_entropy(p, q, base=base), exact_cross_entropy(p, q) / unit) <= ULP
    assert ulps(information.entropy(p, base=base), exact_cross_entropy(p, p) / unit) <= ULP
    assert ulps(information.self_information(p, base=base)[0], -context.log(p[0]) / unit) <= ULP


def test_whole_bits_are_exact():
    for k in range(1, 1075):
        assert information.self_information(2.0**-k, base=2) == k
    for k in range(12):
        uniform = np.full(2**k, 2.0**-k)
        assert information.entropy(uniform, base=2) == k
        assert information.cross_entropy(uniform, uniform, base=2) == k
    assert information.self_information(0.001, base=10) == 3


def test_close_distributions_keep_their_digits():
    """The plain sum of p log(p/q) has none of them: 2^-79 is true, terms are 2^-41."""
    p, q = np.full(2, 0.5), 0.5 + np.array([1, -1]) * 2.0**-40
    assert information.kl_divergence(p, q) == 2.0**-79
    assert abs(np.sum(p * np.log(p / q)) / 2.0**-79 - 1) > 1e-6
    n = 8192
    p = np.full(n, 2.0**-13)
    q = p * (1 + np.resize([1, -1], n) * 2.0**-26)
    assert ulps(information.kl_divergence(p, q), *exact_kl(p, q)) <= ULP


def test_sums_lose_nothing():
    """One large term and many that are each below its rounding error."""
    p = np.full(2**12 + 1, 2.0**-60)
    p[0] = 0.5
    assert ulps(information.entropy(p), exact_cross_entropy(p, p)) <= ULP
    assert ulps(information.entropy(p.reshape(-1, 1), axis=0)[0], exact_cross_entropy(p, p)) <= ULP


def test_zeros():
    assert information.self_information(0.0) == np.inf
    assert bits(information.self_information(1.0)) == bits(np.float64(0.0))  # not -0
    assert information.entropy([0, 1, 0]) == 0
    assert information.cross_entropy([0, 1, 0], [0, 1, 0]) == 0
    assert information.cross_entropy([0.5, 0.5, 0], [0.5, 0.5, 0]) == -np.log(0.5)
    for function in TWO:
        assert function([0.5, 0.5], [1.0, 0.0]) == np.inf
        assert function([5e-324, 1.0], [0.0, 1.0]) == np.inf
        assert np.array_equal(function([[0.5, 0.5], [1, 0]], [1, 0], base=2), [np.inf, 0])
    assert information.kl_divergence([1, 0], [0.5, 0.5], base=2) == 1


def test_equal_distributions_are_exactly_0_apart(rng):
    for p in (
        rng.dirichlet(np.ones(1000)),
        rng.dirichlet(np.full(1000, 0.01)),
        rng.random(77) * 1e-310,
        rng.random(77) * 1e300,
        np.array([5e-324, 0.0, 1.0, np.finfo(float).max]),
    ):
        assert bits(information.kl_divergence(p, p)) == bits(np.float64(0.0))


@pytest.mark.parametrize(
    ("p", "q"),
    [(1.0, 5e-324), (1e300, 5e-324), (5e-324, 1e300), (5e-324, 1.0), (1e-320, 5e-324), (1e308, 1.7e308)],
)
def test_quotients_that_overflow_or_underflow(p, q):
    for row, other in (([p], [q]), ([p, 0.25], [q, 0.5])):
        assert ulps(information.kl_divergence(row, other), *exact_kl(row, other)) <= ULP


def test_overflow_is_infinite():
    largest = np.finfo(np.float64).max
    assert information.cross_entropy([largest, 1.0], [1e-9, 1.0]) == np.inf
    assert information.entropy([largest, 1.0]) == -np.inf
    assert information.cross_entropy(np.float32([3e38, 1]), np.float32([1e-9, 1])) == np.inf


def test_it_is_the_difference_of_cross_entropy_and_entropy(rng):
    p, q = rng.dirichlet(np.ones(30), (2, 40))
    expected = information.cross_entropy(p, q) - information.entropy(p)
    np.testing.assert_allclose(information.kl_divergence(p, q), expected, rtol=1e-13)


def test_it_is_the_loss_of_logits(rng):
    x, target = rng.normal(size=(40, 30)), rng.integers(0, 30, 40)
    q = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    expected = fastce.cross_entropy(x, target, reduction="none")
    np.testing.assert_allclose(information.cross_entropy(np.eye(30)[target], q), expected, rtol=1e-13)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_axes_and_layouts(axis, rng):
    """Every row is computed by itself, wherever its events lie in memory."""
    p, q = rng.dirichlet(np.ones(60), 2).reshape(2, 3, 4, 5)
    for function, arrays in ((information.entropy, (p,)), *((f, (p, q)) for f in TWO)):
        got = function(*arrays, axis=axis)
        assert got.shape == tuple(np.delete(p.shape, axis))
        rows = [np.moveaxis(a, axis, -1) for a in arrays]
        for place in np.ndindex(got.shape):
            assert got[place] == function(*(np.ascontiguousarray(a[place]) for a in rows))
        for change in (np.asfortranarray, lambda a: a.copy()[::-1][::-1], lambda a: a.astype(">f8"), list):
            assert bits(function(*map(change, arrays), axis=axis)) == bits(got)


LENGTHS = (2, 9, 128, 129, 1500, 2**15 + 77)  # across vectors, along them, in several strips and pieces


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_on_the_row_alone(n, dtype, rng, request):
    """Not on threads, the rows beside it, its layout or the byte order."""
    n_rows = max(3, 5000 // n)
    p, q = ((rng.dirichlet(np.ones(n), n_rows) + 1e-6).astype(dtype) for _ in range(2))
    spread = np.zeros((n_rows, 2 * n), dtype)
    before = fastce.get_num_threads()
    request.addfinalizer(lambda: fastce.set_num_threads(before))
    for function, arrays in ((information.entropy, (p,)), *((f, (p, q)) for f in TWO)):
        got = function(*arrays)
        for n_threads in (1, 2, 5):
            fastce.set_num_threads(n_threads)
            assert bits(function(*arrays)) == bits(got)
            assert bits(function(*(a[1:] for a in arrays))) == bits(got[1:])
        fastce.set_num_threads(before)
        assert bits(function(*(a[::-1] for a in arrays))) == bits(got[::-1])
        assert bits(function(*(np.asfortranarray(a) for a in arrays))) == bits(got)
        assert bits(function(*(np.ascontiguousarray(a.T) for a in arrays), axis=0)) == bits(got)
        spread[:, ::2] = p
        assert bits(function(spread[:, ::2], *arrays[1:])) == bits(got)
        if dtype in (np.float32, np.float64):
            assert bits(function(p.astype(np.dtype(dtype).newbyteorder(">")), *arrays[1:])) == bits(got)
        if len(arrays) == 2:
            same = np.broadcast_to(q[:1], q.shape)
            assert bits(function(p, same)) == bits(function(p, same.copy())) == bits(function(p, q[0]))


@pytest.mark.parametrize("n", [130, 2**15 + 77])
@pytest.mark.parametrize("scale", [1e-2, 1e-9, 1e-15])
def test_long_rows_that_are_close(n, scale, rng):
    p = rng.dirichlet(np.ones(n))
    q = p * (1 + scale * rng.normal(size=n))
    assert ulps(information.kl_divergence(p, q), *exact_kl(p, q)) <= ULP
    assert bits(information.kl_divergence(p, p)) == bits(np.float64(0))
    p[n // 2], q[n - 1] = 0, 0
    assert information.kl_divergence(p, q) == information.cross_entropy(p, q) == np.inf
    assert ulps(information.entropy(p), exact_cross_entropy(p, p)) <= ULP


def test_negative_zero_is_zero():
    for n in (3, 200):
        zero, half = np.full(n, -0.0), np.full(n, 0.5)
        assert np.array_equal(information.self_information(zero), np.full(n, np.inf))
        for result in (information.entropy(zero), *(function(zero, zero) for function in TWO)):
            assert bits(result) == bits(np.float64(0))
        assert information.kl_divergence(zero, half) == 0
        assert information.cross_entropy(half, zero) == information.kl_divergence(half, zero) == np.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_allocated_but_results(dtype, rng):
    p = rng.random((300, 1000)).astype(dtype)
    arrays = (p, np.asfortranarray(p), p[::2, ::3], p[::-1].T)
    calls = [(f, a) for f in (*ONE, lambda a: information.kl_divergence(a, a[:1])) for a in arrays]
    for function, a in calls:
        function(a)
        tracemalloc.start()
        result = function(a)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result.nbytes + 4096


@pytest.mark.parametrize("n", LENGTHS)
def test_where_the_improper_number_is(n, rng):
    for value in (-0.25, np.nan, -np.nan, np.inf, -np.inf, -5e-324):
        p, good = np.full((2, n, 3), 0.5), np.full(3, 0.5)
        p[1, n - 1, 2] = value
        message = rf" is {value} at \(1, {n - 1}, 2\); expected"
        for axis in (-1, 1):
            with pytest.raises(ValueError, match="p" + message):
                information.entropy(p, axis=axis)
            for function in TWO:
                with pytest.raises(ValueError, match="q" + message):
                    function(good, p, axis=axis)
        with pytest.raises(ValueError, match="p" + message):
            information.self_information(p)


def test_broadcasting(rng):
    p, q = rng.dirichlet(np.ones(6), 5), rng.dirichlet(np.ones(6))
    for function in TWO:
        expected = [function(row, q) for row in p]
        assert np.array_equal(function(p, q), expected)
        assert np.array_equal(function(p.T, q[:, None], axis=0), expected)
        assert function(p[:, None], p[None]).shape == (5, 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, rng):
    p, q = (rng.dirichlet(np.ones(9), 4).astype(dtype) for _ in range(2))
    expected = np.float64 if dtype == np.float64 else np.float32
    for function, arrays in (*((f, (p,)) for f in ONE), *((f, (p, q)) for f in TWO)):
        got = function(*arrays)
        assert got.dtype == expected
        wide = function(*(a.astype(np.float64) for a in arrays)).astype(expected)
        exact = expected == np.float64 or function is information.kl_divergence
        np.testing.assert_array_max_ulp(got, wide, maxulp=0 if exact else 2)  # a logarithm in float32
        assert np.isscalar(function(*(a[0, 0] if function in ONE[:1] else a[0] for a in arrays)))


def test_integers_bools_and_mixtures_are_float64():
    for dtype in (np.bool_, np.int8, np.uint64):
        assert information.entropy(np.array([0, 1], dtype)).dtype == np.float64
    for p, q in (([0, 1], np.float32([0.5, 0.5])), (np.float32([0.5, 0.5]), np.array([0.5, 0.5]))):
        for function in TWO:
            assert function(p, q).dtype == np.float64
    assert information.cross_entropy(np.float16([1]), np.array([0.5], ml_dtypes.bfloat16)).dtype == np.float32


def test_empty():
    assert information.self_information(np.empty((3, 0))).shape == (3, 0)
    assert information.entropy(np.empty((0, 4))).shape == (0,)
    assert np.array_equal(information.entropy(np.empty((2, 0))), [0, 0])
    for function in TWO:
        assert function(np.empty((0, 4)), np.ones(4)).shape == (0,)
        assert np.array_equal(function(np.empty((2, 0)), np.empty(0)), [0, 0])


def calls(*arguments, **options):
    for function in ONE:
        yield lambda f=function: f(*arguments[:1], **options)
    for function in TWO:
        yield lambda f=function: f(*arguments, **options)


@pytest.mark.parametrize("value", [-0.25, -5e-324, np.nan, np.inf, -np.inf])
def test_improper_probabilities(value):
    bad = np.full((2, 3), 0.5)
    bad[1, 2] = value
    for call in calls(bad, np.ones(3)):
        with pytest.raises(ValueError, match=rf"p is {value} at \(1, 2\); expected"):
            call()
    for function in TWO:
        with pytest.raises(ValueError, match=rf"q is {value} at \(1, 2\); expected"):
            function(np.ones(3), bad)
    with pytest.raises(ValueError, match=rf"p is {value}; expected"):
        information.self_information(value)


@pytest.mark.parametrize("dtype", [complex, np.longdouble, object, "U3", "datetime64[s]", "V4"], ids=str)
def test_dtypes_refused(dtype):
    bad = np.zeros(2, dtype)
    for call in calls(bad, np.ones(2)):
        with pytest.raises(TypeError, match=re.escape(f"p has dtype {bad.dtype};")):
            call()
    for function in TWO:
        with pytest.raises(TypeError, match="q has dtype"):
            function(np.ones(2), bad)


def test_masked_arrays():
    for call in calls(np.ma.masked_less([0.5, 0.0], 0.1), np.ones(2)):
        with pytest.raises(TypeError, match="masked array"):
            call()


def test_results_beyond_the_numbers_are_infinite():
    """The logarithm of a base near 1 is a small unit."""
    base = 1 + 1e-7
    assert information.cross_entropy([1e306], [0.5], base=base) == np.inf
    assert information.entropy([1e306], base=base) == -np.inf
    assert information.kl_divergence([1e306], [0.5], base=base) == np.inf


@pytest.mark.parametrize("base", [0, -2, 1, 1.0, np.nan, np.inf, 2**5000, -(2**5000)])
def test_base_refused(base):
    for call in calls([0.5, 0.5], [0.5, 0.5], base=base):
        with pytest.raises(ValueError, match=f"base is {base}; expected a finite number above 0"):
            call()


@pytest.mark.parametrize("base", ["2", 2j, True, [2]])
def test_base_must_be_a_number(base):
    for call in calls([0.5, 0.5], [0.5, 0.5], base=base):
        with pytest.raises(TypeError, match=r"base is .*expected a number"):
            call()


def test_axis_refused():
    p = np.ones((2, 3))
    for function, arrays in ((information.entropy, (p,)), *((f, (p, p)) for f in TWO)):
        for axis in (2, -3):
            with pytest.raises(np.exceptions.AxisError, match=f"axis {axis} is out of bounds"):
                function(*arrays, axis=axis)
        for axis in (None, 0.0, (0, 1), True, np.True_, np.ma.masked_array(1, True)):
            with pytest.raises(TypeError, match=r"(?s)axis is .*expected an int"):
                function(*arrays, axis=axis)
        with pytest.raises(np.exceptions.AxisError):
            function(*(0.5 for _ in arrays))


def test_shapes_that_do_not_broadcast():
    for function in TWO:
        with pytest.raises(ValueError, match=r"p has shape \(3,\) and q has shape \(2, 2\)"):
            function(np.ones(3), np.ones((2, 2)))


def test_inputs_are_left_alone(rng):
    p, q = rng.dirichlet(np.ones(9), 2)
    before = bits(p), bits(q)
    for a in (p, q):
        a.flags.writeable = False
    for call in calls(p, q):
        call()
    assert (bits(p), bits(q)) == before
