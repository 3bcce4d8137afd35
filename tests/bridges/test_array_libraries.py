"""Arrays of other libraries in the place of NumPy's: the same bits, or an error that says the way."""

import numpy as np
import pytest

import fastce
from fastce import inference

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(6, 3)), np.arange(6) % 3, RNG.random(6)


def pandas(pd, a):
    return pd.DataFrame(a) if a.ndim == 2 else pd.Series(a)


def pandas_nullable(pd, a):
    return (
        pd.DataFrame(a) if a.ndim == 2 else pd.Series(a, dtype="Int64" if a.dtype.kind == "i" else "Float64")
    )


def pandas_arrow(pd, a):
    return (
        pd.DataFrame(a)
        if a.ndim == 2
        else pd.Series(a, dtype=f"{a.dtype}[pyarrow]".replace("float64", "double"))
    )


def polars(pl, a):
    return pl.DataFrame(a) if a.ndim == 2 else pl.Series(a)


def xarray(xr, a):
    return xr.DataArray(a, dims=("row", "class")[: a.ndim])


def dask(da, a):
    return da.from_array(a, chunks=(2,) * a.ndim)


def array_api(xp, a):
    return xp.asarray(a)


def pyarrow(pa, a):
    return a if a.ndim == 2 else pa.chunked_array([a[:2], a[2:]])


def parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("pandas", pandas),
        ("pandas", pandas_nullable),
        ("pandas", pandas_arrow),
        ("polars", polars),
        ("xarray", xarray),
        ("dask.array", dask),
        ("array_api_strict", array_api),
        ("pyarrow", pyarrow),
    ],
    ids=lambda of: getattr(of, "__name__", ""),
)
def test_arrays_are_taken(module, make):
    library = pytest.importorskip(module, reason=f"{module} is not installed: its arrays are NOT tested")
    if make is pandas_arrow:
        pytest.importorskip("pyarrow")
    x, y, w = (make(library, a) for a in (X, Y, W))
    for function, given, expected in (
        (fastce.cross_entropy_and_grad, (x, y), (X, Y)),
        (fastce.cross_entropy_and_hess, (x, y), (X, Y)),
        (inference.token_logprobs, (x, y), (X, Y)),
        (fastce.linear_cross_entropy, (x, np.eye(3), y), (X, np.eye(3), Y)),
        (fastce.softmax, (x,), (X,)),
        (fastce.binary_cross_entropy_with_logits, (w, w), (W, W)),
    ):
        for result, value in zip(parts(function(*given)), parts(function(*expected)), strict=True):
            assert isinstance(result, (np.ndarray, float))
            np.testing.assert_array_equal(result, value)
    assert fastce.cross_entropy(x, y, sample_weight=w) == fastce.cross_entropy(X, Y, sample_weight=W)


def test_what_no_array_says_is_an_error_that_says_the_way():
    pd = pytest.importorskip("pandas", reason="pandas is not installed: what its columns lack is NOT tested")
    with pytest.raises(TypeError, match=r"dtype object; .* convert it with \.astype\(float\)"):
        fastce.cross_entropy(pd.DataFrame(X).convert_dtypes(), Y)
    with pytest.raises(ValueError, match="give missing ones the number of ignore_index"):
        fastce.cross_entropy(X, pd.Series([0, 1, 2, 0, 1, None], dtype="Int64"))
    with pytest.raises(TypeError, match="return_inverse=True"):
        fastce.cross_entropy(X, pd.Series(list("abcabc"), dtype="category"))
