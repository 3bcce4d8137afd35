"""Losses of dask arrays against those of the whole arrays, chunked in many ways."""

import numpy as np
import pytest

import fastce

dask = pytest.importorskip("dask", reason="dask is not installed: its losses are NOT tested")
da = pytest.importorskip("dask.array")
bridge = pytest.importorskip("fastce.dask")

pytestmark = pytest.mark.once

CHUNKS = [(50, 7), (13, 7), (1, 7), ((20, 0, 30), 7)]


@pytest.fixture(autouse=True)
def scheduler():
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


def batch(rng, dtype=np.float64):
    x = (rng.normal(size=(50, 7)) * 4).astype(dtype)
    y = rng.integers(7, size=50)
    y[::9] = -100
    return x, y, rng.random(50)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels(rng, chunks, reduction, dtype):
    x, y, w = batch(rng, dtype)
    for options in (
        {},
        {"weight": rng.random(7), "label_smoothing": 0.1},
        {"sample_weight": w, "temperature": 2.0},
    ):
        expected, gradient = fastce.cross_entropy_and_grad(x, y, reduction=reduction, **options)
        lazy = da.from_array(x, chunks=chunks)
        given = options | (
            {"sample_weight": da.from_array(w, chunks=9)} if "sample_weight" in options else {}
        )
        loss, grad = bridge.cross_entropy_and_grad(
            lazy, da.from_array(y, chunks=9), reduction=reduction, **given
        )
        assert grad.chunks == lazy.chunks
        assert grad.dtype == dtype
        assert loss.dtype == (dtype if reduction == "none" else np.float64)
        alone = bridge.cross_entropy(lazy, y, reduction=reduction, **options)
        loss, grad, alone = dask.compute(loss, grad, alone)
        np.testing.assert_array_equal(loss, alone)
        # Sums of chunks, each right to the last digits of float64; one quotient more in the gradient.
        np.testing.assert_allclose(loss, expected, rtol=1e-14)
        eps = 4 * np.finfo(dtype).eps  # of the largest term: smoothed elements are differences
        np.testing.assert_allclose(grad, gradient, rtol=eps, atol=eps * np.abs(gradient).max())
        if reduction == "none":
            assert (loss == expected).all()
            assert (grad == gradient).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_probabilities(rng, reduction):
    x, _, w = batch(rng)
    q = rng.dirichlet(np.ones(7), 50)
    expected, gradient = fastce.cross_entropy_and_grad(x, q, sample_weight=w, reduction=reduction)
    lazy = da.from_array(x, chunks=(13, 4)), da.from_array(q, chunks=(9, 7))
    loss, grad = dask.compute(*bridge.cross_entropy_and_grad(*lazy, sample_weight=w, reduction=reduction))
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(grad, gradient, rtol=1e-14)


def test_more_axes_of_rows(rng):
    x, y = rng.normal(size=(6, 4, 5)), rng.integers(5, size=(6, 4))
    expected, gradient = fastce.cross_entropy_and_grad(x, y, reduction="none")
    loss, grad = bridge.cross_entropy_and_grad(da.from_array(x, chunks=(4, 3, 5)), y, reduction="none")
    loss, grad = dask.compute(loss, grad)
    assert (loss == expected).all()
    assert (grad == gradient).all()


def test_the_result_depends_on_the_chunks_alone(rng):
    x, y, _ = batch(rng, np.float32)
    lazy = da.from_array(x, chunks=(7, 7))
    results = set()
    for scheduler in ("synchronous", "threads"):
        for _ in range(3):
            loss, grad = bridge.cross_entropy_and_grad(lazy, y)
            loss, grad = dask.compute(loss, grad, scheduler=scheduler)
            results.add((float(loss).hex(), grad.tobytes()))
    assert len(results) == 1


def test_nothing_is_computed_before_it_is_asked_for():
    def refuse(block):
        raise AssertionError("computed")

    lazy = da.zeros((4, 3), chunks=(2, 3)).map_blocks(refuse, meta=np.empty((0, 0)))
    for reduction in ("mean", "sum", "none"):
        bridge.cross_entropy_and_grad(lazy, np.zeros(4, int), reduction=reduction)


def test_chunks_of_unknown_size(rng):
    x, y, _ = batch(rng)
    lazy, labels = da.from_array(x, chunks=(13, 7)), da.from_array(y, chunks=13)
    keep = labels >= 0
    loss = bridge.cross_entropy(lazy[keep], labels[keep])
    np.testing.assert_allclose(loss.compute(), fastce.cross_entropy(x, y), rtol=1e-14)


@pytest.mark.parametrize("label", [-1, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_wrong_label_is_named_by_its_place_in_the_whole(rng, label, reduction):
    x, y, _ = batch(rng)
    y[41] = label
    loss, grad = bridge.cross_entropy_and_grad(da.from_array(x, chunks=(13, 7)), y, reduction=reduction)
    for lazy in (loss, grad):
        with pytest.raises(IndexError, match=rf"target\[41\] is {label}; expected a class in \[0, 7\)"):
            lazy.compute()


def test_nothing_to_average(rng):
    x = rng.normal(size=(6, 3))
    loss, grad = bridge.cross_entropy_and_grad(da.from_array(x, chunks=(2, 3)), np.full(6, -100))
    loss, grad = dask.compute(loss, grad)
    assert np.isnan(loss)
    assert not grad.any()
    for chunks in ((2, 3), (2, 2)):
        options = {"sample_weight": np.zeros(6), "normalizer": 0.0}
        loss, grad = bridge.cross_entropy_and_grad(
            da.from_array(x, chunks=chunks), np.zeros(6, int), **options
        )
        assert loss.compute() == 0
        assert not grad.compute().any()


def test_data_frames_become_arrays_by_their_own_method():
    pd, dd = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(pd.DataFrame(np.zeros((4, 3))), npartitions=2)
    with pytest.raises(TypeError, match=r"logits are a DataFrame; .*logits\.to_dask_array\(lengths=True\)"):
        bridge.cross_entropy(frame, np.zeros(4, int))


def test_arguments_that_make_no_sense():
    lazy = da.zeros((4, 3), chunks=(2, 3))
    with pytest.raises(TypeError, match="logits are a ndarray; expected a dask array"):
        bridge.cross_entropy(np.zeros((4, 3)), np.zeros(4, int))
    with pytest.raises(ValueError, match=r"target has shape \(5,\); expected \(4,\)"):
        bridge.cross_entropy(lazy, np.zeros(5, int))
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3,\); expected \(4,\)"):
        bridge.cross_entropy(lazy, np.zeros(4, int), sample_weight=da.zeros(3))
    with pytest.raises(ValueError, match="reduction is 'median'"):
        bridge.cross_entropy(lazy, np.zeros(4, int), reduction="median")
    with pytest.raises(TypeError, match=r"unexpected arguments: axis; expected label_.*last axis.*moveaxis"):
        bridge.cross_entropy(lazy, np.zeros(3, int), axis=0)
    with pytest.raises(TypeError, match=r"unexpected arguments: n_threads; .*as many tasks as it was given"):
        bridge.perplexity(lazy, np.zeros(4, int), n_threads=1)
    with pytest.raises(TypeError, match="unexpected arguments: gamma"):
        bridge.cross_entropy(lazy, np.zeros(4, int), gamma=2.0)
