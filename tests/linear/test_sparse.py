"""linear_cross_entropy of sparse features: the dense answer, formats, bits, what is refused."""

import tracemalloc

import numpy as np
import pytest
from conftest import FLOATS, bits
from scipy import sparse

import fastce
from fastce import _kernels
from fastce.linear import sparse as by_kernels


def problem(dtype=np.float64, shape=(300, 50, 7), density=0.1, seed=0):
    n_rows, n_features, n_classes = shape
    rng = np.random.default_rng(seed)
    x = (
        sparse.random_array((n_rows, n_features), density=density, rng=rng, dtype=np.float64)
        .tocsr()
        .astype(dtype)
    )
    return (
        x,
        rng.normal(size=(n_classes, n_features)).astype(dtype),
        rng.normal(size=n_classes).astype(dtype),
        rng.integers(0, n_classes, n_rows),
    )


@pytest.fixture(params=["kernels", "blocks"])
def way(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(by_kernels, "has_room", lambda *_: False)
    return request.param


def check(x, w, b, y, dtype, **options):
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, **options)
    dense = (x.toarray(), w, y)
    expected, exact = fastce.linear_cross_entropy_and_grad(*dense, linear_bias=b, **options)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(loss, expected, rtol=20 * eps)
    assert grad.input is None
    for a, e in zip(grad[1:], exact[1:], strict=True):
        # Sums of 300 numbers of both signs, each off by a few eps.
        np.testing.assert_allclose(a, e, rtol=0, atol=100 * eps * max(1e-3, np.abs(e).max()))
    return loss, grad


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n_classes", [1, 2, 3, 8, 9, 20, 33, 100])
def test_dense_answer(dtype, n_classes, way):
    x, w, b, y = problem(dtype, (300, 50, n_classes))
    y[::9] = -100
    check(x, w, b, y, dtype)
    check(x, w, b, y, dtype, reduction="none", sample_weight=np.linspace(-1, 2, 300))
    check(x, w, b, y, dtype, label_smoothing=0.1, weight=np.arange(1.0, n_classes + 1), reduction="sum")


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", [slice(0, 40), slice(7, 30), slice(0, 0)], ids=str)
def test_few_features_have_entries(rows, accumulate, way):
    """In no order, some twice, some in rows that are ignored; the others' gradient is 0."""
    x, w, _, y = problem(shape=(40, 5000, 7), density=1e-3)
    y[::9] = -100
    x.indices[:] = x.indices[::-1] // 2 * 2 + 1
    part = by_kernels.rows_of(x, rows)  # views of arrays that hold more
    expected, exact = fastce.linear_cross_entropy_and_grad(part.toarray(), w, y[rows], reduction="sum")
    out = fastce.LinearGrad(None, np.ones_like(w), None)
    options = {"reduction": "sum", "memory": 1 << 19, "wrt": ("linear_weight",)}
    loss, grad = fastce.linear_cross_entropy_and_grad(
        part, w, y[rows], out=out, accumulate=accumulate, **options
    )
    assert loss == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(grad.linear_weight, exact.linear_weight + accumulate, rtol=0, atol=1e-15)
    assert (grad.linear_weight[:, ::2] == accumulate).all()


def test_formats():
    x, w, b, y = problem()
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    unsorted = sparse.csr_array(x.shape)
    order = np.concatenate([np.arange(s, e)[::-1] for s, e in zip(x.indptr, x.indptr[1:], strict=False)])
    unsorted = sparse.csr_array((x.data[order], x.indices[order], x.indptr), shape=x.shape)
    double = sparse.csr_array(  # each entry as two halves of it
        (np.repeat(x.data / 2, 2), np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape
    )
    long = sparse.csr_array((x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)), shape=x.shape)
    long.indices, long.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    for name, other in {
        "csc": x.tocsc(),
        "lil": x.tolil(),
        "matrix": sparse.csr_matrix(x),
        "int64": long,
        "unsorted": unsorted,
        "double": double,
    }.items():
        got, g = fastce.linear_cross_entropy_and_grad(other, w, y, linear_bias=b)
        assert got == pytest.approx(loss, rel=1e-13), name
        np.testing.assert_allclose(g.linear_weight, grad.linear_weight, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    x, w, b, y = problem(dtype, (3000, 70, 11))
    results = []
    for n_threads in (1, 2, 3):
        loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, n_threads=n_threads)
        results.append((loss, bits(grad.linear_weight), bits(grad.linear_bias)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("index_type", [np.int32, np.int64], ids=str)
@pytest.mark.parametrize("n_classes", [2, 7, 40])
def test_entries_by_feature_give_the_same_bits(dtype, index_type, n_classes):
    """From its second gradient on, a kept product adds up by feature, in whatever order entries come."""
    n_rows, rng = 500, np.random.default_rng(1)
    x, w, b, y = problem(dtype, (n_rows, 300, n_classes))
    order = np.concatenate([rng.permutation(np.arange(*x.indptr[i : i + 2])) for i in range(n_rows)])
    indices = np.minimum(x.indices[order] // 2 * 2, 200)  # some twice in a row, and some in none
    parts = x.data[order], indices.astype(index_type), x.indptr.astype(index_type)
    x = sparse.csr_array(parts, shape=x.shape)
    y[::9] = -100
    x.data[x.indptr[9] : x.indptr[10]] = np.nan  # of an ignored row
    options = dtype, y, None, None, -100, 0.0, 0.0, 1.0, None, "mean", None, None
    rows = _kernels.kernels.LinearRows((n_rows, n_classes), *options)
    rows.check()
    kept, results = by_kernels.Products(x, n_classes, np.dtype(dtype), False), []
    for _ in range(2):
        of_w, of_bias = np.empty(w.shape), np.empty(n_classes)
        by_kernels.run(rows, kept, w, b, (of_w, of_bias), False, 1 << 26)
        results.append((bits(of_w), bits(of_bias)))
    assert "by_feature" in vars(kept)
    assert results[0] == results[1]
    assert np.isfinite(of_w).all()
    assert of_w[:, :200].any()
    assert not of_w[:, 201:].any()


def test_ignored_rows_are_not_used(way):
    x, w, b, y = problem()
    y[5:9] = -100
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    x.data[x.indptr[5] : x.indptr[9]] = np.nan
    again, same = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    assert again == loss
    assert bits(same.linear_weight) == bits(grad.linear_weight)


def test_accumulate(way):
    x, w, b, y = problem()
    grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)[1]
    out = fastce.LinearGrad(None, np.ones_like(w), np.ones_like(b))
    fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, out=out, accumulate=True)
    np.testing.assert_allclose(out.linear_weight, 1 + grad.linear_weight, rtol=1e-15)
    np.testing.assert_allclose(out.linear_bias, 1 + grad.linear_bias, rtol=1e-15)


def test_refusals():
    x, w, _, y = problem()
    with pytest.raises(ValueError, match=r"wrt has 'input', which is sparse.*wrt=\('linear_weight',\)"):
        fastce.linear_cross_entropy_and_grad(x, w, y, wrt=("input",))
    with pytest.raises(ValueError, match=r"wrt=\('linear_weight', 'linear_bias'\)"):
        fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=np.zeros(len(w)), wrt=("input",))
    with pytest.raises(ValueError, match="wrt has 'linear_bias', which is not given"):
        fastce.linear_cross_entropy_and_grad(x, w, y, wrt=("linear_weight", "linear_bias"))
    with pytest.raises(ValueError, match=r"linear_weight has shape \(7, 49\) and input \(300, 50\)"):
        fastce.linear_cross_entropy(x, w[:, 1:], y)
    beyond = sparse.csr_array(x)
    beyond.indices = beyond.indices.copy()
    beyond.indices[3] = 50
    with pytest.raises(ValueError, match="column indices outside"):
        fastce.linear_cross_entropy(beyond, w, y)


def test_room_behind_the_entries_is_not_read(way):
    x, w, b, y = problem()
    roomy = sparse.csr_array(x)
    roomy.indices = np.concatenate([x.indices, np.full(9, 10**6, x.indices.dtype)])
    roomy.data = np.concatenate([x.data, np.full(9, np.nan)])
    y[::3] = -100
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    again, same = fastce.linear_cross_entropy_and_grad(roomy, w, y, linear_bias=b)
    assert again == loss
    assert bits(same.linear_weight) == bits(grad.linear_weight)


@pytest.mark.once
@pytest.mark.parametrize(
    ("shape", "density", "dtype", "memory"),
    [
        ((20_000, 1000, 2), 0.02, np.float32, 1 << 21),  # kernels, which convert a block at a time
        ((2000, 100_000, 2), 0.01, np.float64, 1 << 22),  # SciPy's products of a few classes
        ((2000, 100_000, 2), 0.01, np.float32, 1 << 22),
    ],
    ids=str,
)
def test_peak_memory(shape, density, dtype, memory):
    """Beside arguments and results: `memory`, and 1 MiB that Python may take. Weights are float64."""
    x, w, _, y = problem(np.float64, shape, density)
    x, n_bytes = x.astype(dtype), x.data.nbytes
    out = fastce.LinearGrad(None, np.empty_like(w), None)
    for ignored in (False, True):
        y[::7] = -100 if ignored else y[::7]
        tracemalloc.start()
        fastce.linear_cross_entropy_and_grad(x, w, y, out=out, memory=memory)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < memory + (1 << 20) < n_bytes
