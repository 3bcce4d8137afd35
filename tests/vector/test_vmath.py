"""The vector functions behind everything else, measured against wider arithmetic."""

import numpy as np
import pytest

import fastce

# The figures beside the functions in vmath.h; what is measured here may not exceed them.
EXP_ULP = {
    "baseline": {np.float32: 0.90, np.float64: 0.88},
    "v3": {np.float32: 0.60, np.float64: 0.87},
    "v4": {np.float32: 0.76, np.float64: 0.81},
}
LOG1P_ULP = {"baseline": 0.92, "v3": 0.92, "v4": 1.61}
LOG1P_OF_FLOAT32_ULP = {"baseline": 1.1, "v3": 1.0, "v4": 1.0}
LOWEST = {np.float32: -153.0, np.float64: -752.0}
LN2_HIGH = np.longdouble(float.fromhex("0x1.62e42fefap-1"))  # times an integer below 2**31: exact
LN2_LOW = np.longdouble("1.646594958289708128098443e-12")  # ln 2 - LN2_HIGH


def exp_error(x, m):
    """Largest error of the exps of a row with maximum m in ULP, and where."""
    kernels, dtype = fastce._kernels.kernels, x.dtype.type
    got, base, n = kernels.scaled_exp(x, m)
    wide = np.float64 if dtype is np.float32 else np.longdouble
    d, shift = x.astype(wide) - wide(base), wide(n) / kernels.EXP_STEPS[x.dtype.name]
    power = np.rint(d / wide(LN2_HIGH) - shift)
    exact = np.exp((d - (power + shift) * wide(LN2_HIGH)) - (power + shift) * wide(LN2_LOW))
    exact = np.ldexp(exact, power.astype(int)) * wide(kernels.EXP_SCALE[x.dtype.name])
    error = np.abs(got - exact) / np.spacing(exact.astype(dtype)).astype(wide)
    worst = int(np.argmax(error))
    return float(error[worst]), x[worst]


def float32s(low, high, step=1):
    """Every step-th float32 of low < x <= high, both of one sign."""
    least, most = sorted(int(np.float32(abs(bound)).view(np.uint32)) for bound in (low, high))
    for start in range(least, most + 1, step << 22):
        patterns = np.arange(start, min(start + (step << 22), most + 1), step, dtype=np.uint32)
        x = patterns.view(np.float32)
        x = -x if low < 0 else x
        x = x[(low < x) & (x <= high)]
        if x.size:
            yield x


def all_reduced(step):
    """Each x that is reduced as it is, with a maximum that it counts for."""
    for m in (305.99, 153.0, -0.0, -153.0, -305.99):
        for x in float32s(m + LOWEST[np.float32], m, step):
            yield x, np.float32(m)


def test_exp_of_float32(level):
    for x, m in all_reduced(1021):
        error, where = exp_error(x, m)
        assert error <= EXP_ULP[level][np.float32], (where, m)


@pytest.mark.exhaustive
def test_exp_of_every_float32(level):
    worst = max((*exp_error(x, m), m) for x, m in all_reduced(1))
    print(f"worst error of float32 exp: {worst[0]:.4f} ULP at {worst[1]!r} below {worst[2]!r}")
    assert worst[0] <= EXP_ULP[level][np.float32], worst


def test_exp_of_neighbours_keeps_their_order(level):
    """A larger float32 never has the smaller exp, nor one that m changes but by a power of two."""
    kernels, rng = fastce._kernels.kernels, np.random.default_rng(6)
    small = np.exp(rng.uniform(-20, 0, 30))
    starts = np.concatenate([rng.uniform(-150, 19, 150), rng.uniform(-1, 1, 150), small])
    seams = (rng.integers(-200, 25, 150) + 0.5) * np.log(2) / kernels.EXP_STEPS["float32"]
    for start in np.concatenate([starts, seams]).astype(np.float32):
        x = np.arange(2000, dtype=np.int32) - 1000 + start.view(np.int32)
        x = np.sort(x.view(np.float32))
        exps = kernels.scaled_exp(x, 0)[0]
        assert (np.diff(exps) >= 0).all(), start
        moved = kernels.scaled_exp(x, -2.5)[0]
        assert len(np.unique(moved / exps)) == 1
        assert np.frexp(moved[0] / exps[0])[0] == 0.5


@pytest.mark.exhaustive
def test_exp_of_every_float32_keeps_their_order(level):
    for m in (305.99, 153.0, -0.0, -153.0, -305.99):
        for x in float32s(m + LOWEST[np.float32], m):
            exps = fastce._kernels.kernels.scaled_exp(np.sort(x), np.float32(m))[0]
            assert (np.diff(exps) >= 0).all()


def test_exp_of_float64_neighbours_keeps_their_order(level):
    """At the seams of the table, where two polynomials meet, and elsewhere."""
    kernels, rng = fastce._kernels.kernels, np.random.default_rng(7)
    seams = (rng.integers(-1200, 100, 3000) + 0.5) * np.log(2) / kernels.EXP_STEPS["float64"]
    for start in np.concatenate([seams, rng.uniform(-700, 50, 1000), rng.uniform(-1, 1, 1000)]):
        x = np.arange(200, dtype=np.int64) - 100 + start.view(np.int64)
        assert (np.diff(kernels.scaled_exp(np.sort(x.view(np.float64)), 0)[0]) >= 0).all(), start


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [0, 0.1, -3.7, 60.3, 305.9, 306, -306, 1503.9, 1504, 1e4, -1e6])
def test_exp_below_any_maximum(level, dtype, m):
    m, rng = dtype(m), np.random.default_rng(4)
    tiny = np.exp(rng.uniform(-80, 0, 99))
    below = [rng.exponential(20, 300_000), -LOWEST[dtype] * rng.random(300_000), tiny]
    x = (m - np.concatenate(below)).astype(dtype)
    x = x[x > m + LOWEST[dtype]]
    error, where = exp_error(x, m)
    assert error <= EXP_ULP[level][dtype], where


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [0, 100, -100, 1e5, -1e5])
def test_exp_at_the_ends(level, dtype, m):
    kernels = fastce._kernels.kernels
    x = np.array([m + LOWEST[dtype] - 1, -np.inf, np.finfo(dtype).min, np.nan, -np.nan], dtype)
    got = kernels.scaled_exp(x, m)[0]
    np.testing.assert_array_equal(got, np.array([0, 0, 0, np.nan, np.nan], dtype))
    assert not np.signbit(got[:3]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [np.inf, -np.inf])
def test_no_exp_below_an_infinite_maximum(level, dtype, m):
    """-inf below -inf and inf below inf are NaN: what makes their rows NaN."""
    assert np.isnan(fastce._kernels.kernels.scaled_exp(np.array([m], dtype), m)[0]).all()


def test_log1p(level):
    rng = np.random.default_rng(5)
    t = [np.exp(rng.uniform(-740, 40, 1_000_000)), rng.uniform(0, 3, 1_000_000), [0, 5e-324]]
    t = np.concatenate([*t, rng.uniform(1 / 32, 0.032, 500_000), rng.uniform(0.28, 0.29, 500_000)])
    got = fastce._kernels.kernels.log1p(t)
    exact = np.log1p(t.astype(np.longdouble))
    error = np.abs(got - exact) / np.spacing(exact.astype(float)).astype(np.longdouble)
    assert error.max() <= LOG1P_ULP[level], t[np.argmax(error)]
    assert np.isnan(fastce._kernels.kernels.log1p(np.array([np.nan])))


def log1p_error_of_float32(step):
    """Largest error of log1p in ULP over every step-th float32 below 2**126, and where."""
    worst = (0.0, 0.0)
    for t in float32s(0, 2.0**126, step):
        exact = np.log1p(t.astype(float))
        got = fastce._kernels.kernels.log1p(t)
        error = np.abs(got - exact) / np.spacing(exact.astype(np.float32)).astype(float)
        k = int(np.argmax(error))
        worst = max(worst, (float(error[k]), float(t[k])))
    return worst


def test_log1p_of_float32(level):
    error, where = log1p_error_of_float32(1021)
    assert error <= LOG1P_OF_FLOAT32_ULP[level], where
    ends = fastce._kernels.kernels.log1p(np.array([0, 2.0**-149, np.nan], np.float32))
    np.testing.assert_array_equal(ends, np.array([0, 2.0**-149, np.nan], np.float32))


@pytest.mark.exhaustive
def test_log1p_of_every_float32(level):
    error, where = log1p_error_of_float32(1)
    print(f"worst error of float32 log1p: {error:.4f} ULP at {where!r}")
    assert error <= LOG1P_OF_FLOAT32_ULP[level], where
