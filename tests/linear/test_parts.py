"""Rows whose logits come a part of the classes at a time: the bounds of whole rows; calls."""

import re
import tracemalloc
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from conftest import FLOATS, GRAD_ULP, KINDS, LOSS_ULP, assert_ulp, bits, nasty
from hypothesis import given, settings
from hypothesis import strategies as st

import fastce
from fastce import _kernels, reference
from fastce.linear import arguments, products
from fastce.reference.softmax import largest_terms

OPTIONS = {
    "plain": {},
    "weights": {"weight": True, "sample_weight": True},
    "smoothing": {"label_smoothing": 0.2},
    "weighted smoothing": {"label_smoothing": 0.2, "weight": True},
    "z-loss": {"z_loss": 0.01},
    "temperature": {"temperature": 2.5},
    "softcap": {"softcap": 30.0, "temperature": 0.5},
    "probabilities": {"q": True},
    "weighted probabilities": {"q": True, "weight": True, "label_smoothing": 0.1},
}


def in_parts(z, y, cuts, n_threads=None, **options):
    """Losses and gradient of logits that the row code sees in parts, cut where that is said."""
    plain = {"weight": None, "sample_weight": None, "ignore_index": -100, "label_smoothing": 0.0}
    plain |= {"z_loss": 0.0, "temperature": 1.0, "softcap": None} | options
    rows = _kernels.kernels.LinearRows(z.shape, z.dtype, y, *plain.values(), "none", None, n_threads)
    rows.check()
    parts = [(start, z[:, start:end].copy()) for start, end in pairwise(cuts)]
    kept = rows.begin_parts(parts[0][1], 0)
    for start, part in parts:
        rows.sweep_part(kept, part, 0, start)
    rows.finish_parts(kept, parts[0][1], 0, True)
    grad = z.copy()
    for start, end in pairwise(cuts):
        part = z[:, start:end].copy()
        rows.write_part(kept, part, 0, start)
        grad[:, start:end] = part
    return rows.result(), grad


def arguments_of(options, z, y):
    options, rng = dict(options), np.random.default_rng(1)
    if options.pop("q", False):
        y = rng.dirichlet(np.full(z.shape[1], 0.1), len(z)).astype(z.dtype)
    else:
        y[::17] = -100
    if options.get("weight"):
        options["weight"] = rng.random(z.shape[1]) + 0.1
    if options.get("sample_weight"):
        options["sample_weight"] = rng.random(len(z))
    return y, options


def check(z, y, cuts, options):
    """In ULP of the largest number that is added up."""
    loss, grad = in_parts(z, y, cuts, **options)
    exact, exact_grad = reference.cross_entropy_and_grad(z, y, reduction="none", **options)
    terms, of_grad = largest_terms(z, y, reduction="none", **options)
    factor = 1 if options.keys() <= {"weight", "sample_weight", "temperature"} and y.ndim == 1 else 1.5
    assert_ulp(loss, exact, factor * LOSS_ULP[z.dtype], scale=terms)
    if factor > 1 or "softcap" in options:  # sums and products of numbers that may be subnormal already
        above = np.abs(exact_grad) >= np.finfo(z.dtype).tiny
        grad, exact_grad, of_grad = grad[above], exact_grad[above], of_grad[above]
    assert_ulp(grad, exact_grad, factor * GRAD_ULP[z.dtype], scale=of_grad)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("cuts", [(0, 1, 2, 60), (0, 3, 40, 41, 300), (0, 9000, 20_000)], ids=str)
def test_bounds(options, dtype, cuts):
    z, y = nasty(dtype, 2 * len(KINDS) if cuts[-1] < 1000 else 12, cuts[-1])
    y, options = arguments_of(options, z, y)
    check(z, y, cuts, options)


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.sampled_from(FLOATS), st.sets(st.sampled_from([*OPTIONS]), max_size=3))
def test_any_cuts_and_options(seed, dtype, names):
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(1, 80))
    z, y = nasty(dtype, 9, n_classes, tuple(rng.permutation([*KINDS])), seed)
    y, options = arguments_of({k: v for name in names for k, v in OPTIONS[name].items()}, z, y)
    check(z, y, sorted({0, n_classes, *rng.integers(0, n_classes + 1, 3).tolist()}), options)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_softmax_is_a_distribution(dtype):
    """The only class that counts has exactly the row's factor, wherever it stands; nothing is above it."""
    z, y = np.full((4, 50), -1e4, dtype), np.full(4, 7)
    z[np.arange(4), (0, 8, 30, 49)] = 1e3, -50, 0.3, 77
    grad = in_parts(z, y, (0, 8, 30, 50))[1]
    assert (grad.max(axis=1) == 1).all()
    assert (grad[:, 7] == -1).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    z, y = nasty(dtype, 200, 400)
    results = {tuple(map(bits, in_parts(z, y, (0, 123, 400), n_threads=n))) for n in (1, 2, 3)}
    assert len(results) == 1


# ---- Calls ---------------------------------------------------------------------------------------------


def problem(dtype=np.float64, shape=(150, 12, 40)):
    rng = np.random.default_rng(shape)
    n_rows, n_features, n_classes = shape
    x, w = rng.normal(size=(n_rows, n_features)), rng.normal(size=(n_classes, n_features))
    return *(a.astype(dtype) for a in (x, w, rng.normal(size=n_classes))), rng.integers(0, n_classes, n_rows)


@pytest.fixture
def cut(monkeypatch):
    """No room for whole rows: a few classes, and a few rows, at a time."""
    monkeypatch.setattr(arguments, "FEW_WEIGHTS", 0)
    monkeypatch.setattr(products, "LEAST_ROWS", 1 << 20)
    monkeypatch.setattr(products, "HELD_BYTES", 8 * 49)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(ml_dtypes.bfloat16)], ids=str)
def test_same_as_whole_rows(options, dtype, accumulate, monkeypatch, request):
    monkeypatch.setattr(arguments, "FEW_WEIGHTS", 0)
    x, w, b, y = problem(dtype)
    y, options = arguments_of(options, np.empty((len(x), len(w)), np.float32), y)
    y = y if y.ndim == 1 else y.astype(dtype)
    start = fastce.LinearGrad(*(np.full_like(a, 0.5) for a in (x, w, b)))
    results = []
    for cut in (False, True):
        if cut:
            request.getfixturevalue("cut")
        out = fastce.LinearGrad(*(a.copy() for a in start))
        more = {"linear_bias": b, "out": out, "accumulate": accumulate, **options}
        results.append((fastce.linear_cross_entropy_and_grad(x, w, y, **more)[0], *out))
        alone = fastce.linear_cross_entropy(x, w, y, linear_bias=b, **options)
        assert alone == pytest.approx(results[-1][0], rel=1e-5 if dtype != np.float64 else 1e-14)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert results[0][0] == pytest.approx(results[1][0], rel=20 * min(eps, 1e-6))
    for a, e in zip(*(result[1:] for result in results), strict=True):
        a, e = a.astype(float), e.astype(float)
        assert np.abs(a - e).max() <= 20 * eps * (np.abs(e).max() + accumulate)


def test_sparse(cut, monkeypatch):
    from scipy import sparse as scipy_sparse

    monkeypatch.setattr("fastce.linear.sparse.has_room", lambda *_: False)
    x, w, b, y = problem()
    x[x < 0.8] = 0
    y[3] = -100
    exact = reference.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    loss, grad = fastce.linear_cross_entropy_and_grad(scipy_sparse.csr_array(x), w, y, linear_bias=b)
    assert loss == pytest.approx(float(exact[0]), rel=1e-14)
    for a, e in zip(grad[1:], exact[1][1:], strict=True):
        np.testing.assert_allclose(a, e.astype(float), atol=1e-15)


def test_ignored_rows_are_not_used(cut):
    x, w, b, y = problem()
    y[[0, 70, 149]] = -100
    exact = reference.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    x[[0, 70]], x[149] = np.nan, np.inf
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    assert loss == pytest.approx(float(exact[0]), rel=1e-14)
    for a, e in zip(grad, exact[1], strict=True):
        np.testing.assert_allclose(a, e.astype(float), atol=1e-15)


def test_plans_stay_within_memory():
    rng, refused = np.random.default_rng(0), 0
    for _ in range(3000):
        n_rows, n_features, n_classes = shape = tuple(int(2**k) for k in rng.uniform(0, 20, 3))
        item, with_grad = int(rng.choice([4, 8])), bool(rng.integers(2))
        per_row, in_parts, per_class = (int(k) * n_features for k in rng.integers(0, 3, 3))
        most = int(rng.choice([products.SUMMED_BYTES, products.WIDE_BYTES]))
        numbers = (item, per_row, per_row + in_parts, per_class, most, with_grad)
        memory = int(2 ** rng.uniform(6, 28))
        try:
            plan = products.plan(shape, *numbers, memory)
        except ValueError as error:
            refused += 1
            memory = int(re.search(r"at least (\d+) bytes", str(error))[1])
            plan = products.plan(shape, *numbers, memory)
        is_whole = plan.n_held == n_classes
        row = plan.n_held + per_row if is_whole else plan.n_held + per_row + in_parts
        assert plan.n_rows * row * item + plan.n_part * per_class * item <= memory
        assert 0 < plan.n_part <= n_classes
        assert 0 < plan.n_rows <= n_rows
    assert 100 < refused < 2000


def test_memory_has_room_for_one_logit():
    x, w, _, y = problem(shape=(20, 6, 300))
    for memory in (1 << 10, 3000, 20_000, 1 << 20):
        loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, memory=memory)
        exact, exact_grad = reference.linear_cross_entropy_and_grad(x, w, y)
        assert loss == pytest.approx(float(exact), rel=1e-14)
        for a, e in zip(grad[:2], exact_grad, strict=False):
            np.testing.assert_allclose(a, e.astype(float), atol=1e-15)
    with pytest.raises(ValueError, match="memory is 300; expected at least 360 bytes, which one row and one"):
        fastce.linear_cross_entropy_and_grad(x, w, y, memory=300)
    fastce.linear_cross_entropy_and_grad(x, w, y, memory=360)


@pytest.mark.once
def test_peak_memory_of_long_rows(monkeypatch):
    """A row of logits is larger than `memory`, and so are the weights."""
    x, w, b, y = problem(np.float32, (3000, 8, 300_000))
    out, memory = fastce.LinearGrad(*map(np.zeros_like, (x, w, b))), 1 << 20
    assert 4 * len(w) > memory
    tracemalloc.start()
    fastce.linear_cross_entropy_and_grad(x[:40], w, y[:40], out=(out[0][:40], out[1], None), memory=memory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory + (1 << 20)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", ["f2", ml_dtypes.bfloat16])
def test_gradients_of_half_weights_are_rounded_once(dtype, accumulate):
    """However many blocks of rows add to them."""
    rng = np.random.default_rng(0)
    x, y = (rng.random((3000, 40)) + 0.5).astype(dtype), rng.integers(0, 2000, 3000)
    w = (rng.normal(size=(2000, 40)) * 0.02).astype(dtype)
    start = (rng.normal(size=w.shape) * 1e-4).astype(dtype)
    out = fastce.LinearGrad(None, start.copy(), None)
    fastce.linear_cross_entropy_and_grad(
        x, w, y, wrt="linear_weight", out=out, accumulate=accumulate, memory=1 << 20
    )
    wide = fastce.linear_cross_entropy_and_grad(*(a.astype(np.float32) for a in (x, w)), y)[1].linear_weight
    exact = wide.astype(np.float64) + accumulate * start.astype(np.float64)
    # Half a unit of the half, and sums of 3000 terms in float32 in another order.
    half_ulp = 2.0 ** -(ml_dtypes.finfo(dtype).nmant + 1)
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    error = np.abs(out.linear_weight.astype(np.float64) - exact)
    assert (error <= half_ulp * np.abs(exact) + 1e-5 * np.abs(wide).max() + tiny).all()
