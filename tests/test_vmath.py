"""The vector functions behind everything else, measured against wider arithmetic."""

import numpy as np
import pytest

import fastce

# The figures beside the functions in vmath.h; what is measured here may not exceed them.
EXP_ULP = {np.float32: 0.99, np.float64: 1.11}
LOG1P_ULP = 0.88
LOWEST = {np.float32: -153.0, np.float64: -752.0}


def exp_error(x, m, scaled):
    """Largest error of scaled_exp in ULP, and where."""
    dtype = x.dtype.type
    wide = np.float64 if dtype is np.float32 else np.longdouble
    exact = np.exp(x.astype(wide) - wide(m)) * wide(fastce._kernels.kernels.EXP_SCALE[x.dtype.name])
    error = np.abs(scaled - exact) / np.spacing(exact.astype(dtype)).astype(wide)
    worst = int(np.argmax(error))
    return float(error[worst]), x[worst]


def negative_floats(start, stop, step=1):
    """float32 from the bit patterns start .. stop of their magnitudes, every step-th."""
    return -np.arange(start, stop, step, dtype=np.uint32).view(np.float32)


PATTERNS = int(np.float32(153).view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp(level, dtype):
    rng = np.random.default_rng(3)
    if dtype is np.float32:
        x = negative_floats(0, PATTERNS, 1021)
    else:
        tiny = -np.exp(rng.uniform(-700, 0, 100_000))
        x = np.concatenate([rng.uniform(LOWEST[dtype] + 1, 0, 1_000_000), tiny])
    error, where = exp_error(x, 0, fastce._kernels.kernels.scaled_exp(x, 0))
    assert error <= EXP_ULP[dtype], where


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [0.1, -3.7, 60.3, 1e4, -1e6])
def test_exp_of_a_difference_that_is_not_a_float(level, dtype, m):
    m = dtype(m)
    x = (m - np.random.default_rng(4).exponential(20, 500_000)).astype(dtype)
    x = x[x > m + LOWEST[dtype] + 1]
    error, where = exp_error(x, m, fastce._kernels.kernels.scaled_exp(x, m))
    assert error <= EXP_ULP[dtype], where


@pytest.mark.exhaustive
def test_exp_of_every_float32(level):
    worst = (0.0, None)
    for start in range(0, PATTERNS, 1 << 22):
        x = negative_floats(start, min(start + (1 << 22), PATTERNS))
        worst = max(worst, exp_error(x, 0, fastce._kernels.kernels.scaled_exp(x, 0)), key=lambda w: w[0])
    print(f"worst error of float32 exp: {worst[0]:.4f} ULP at {worst[1]!r}")
    assert worst[0] <= EXP_ULP[np.float32], worst


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_at_the_ends(level, dtype):
    scale = fastce._kernels.kernels.EXP_SCALE[np.dtype(dtype).name]
    x = np.array([0, -0.0, LOWEST[dtype] - 1, -np.inf, np.nan, -np.nan, np.finfo(dtype).min], dtype)
    expected = [scale, scale, 0, 0, np.nan, np.nan, 0]
    np.testing.assert_array_equal(fastce._kernels.kernels.scaled_exp(x, 0), np.array(expected, dtype))


def test_log1p(level):
    rng = np.random.default_rng(5)
    t = np.concatenate([np.exp(rng.uniform(-740, 40, 1_000_000)), rng.uniform(0, 3, 1_000_000), [0, 5e-324]])
    got = fastce._kernels.kernels.log1p(t)
    exact = np.log1p(t.astype(np.longdouble))
    error = np.abs(got - exact) / np.spacing(exact.astype(float)).astype(np.longdouble)
    assert error.max() <= LOG1P_ULP, t[np.argmax(error)]
    assert np.isnan(fastce._kernels.kernels.log1p(np.array([np.nan])))
