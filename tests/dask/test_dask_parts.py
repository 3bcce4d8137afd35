"""Rows whose classes are split into chunks, against the same rows in one piece, in float64."""

import numpy as np
import pytest

import fastce
from fastce import inference

dask = pytest.importorskip("dask", reason="dask is not installed: rows in parts are NOT tested")
da = pytest.importorskip("dask.array")
bridge = pytest.importorskip("fastce.dask")

pytestmark = pytest.mark.once

CHUNKS = [(40, 3), ((15, 0, 25), (1, 6, 2)), (7, (8, 1))]
OPTIONS = [{}, {"temperature": 0.7}, {"softcap": 5.0}]
# Sums carry the rounding of log s_j, the largest of which is log 8, four ULP at most: a few eps of each term.
EXACT = 32 * np.finfo(np.float64).eps


@pytest.fixture(autouse=True)
def scheduler():
    with dask.config.set(scheduler="synchronous"):
        yield


def rows(rng, dtype):
    """Sure rows, ties, infinities, NaN, rows that do not count, and chunks of nothing but -inf."""
    x = (rng.normal(size=(40, 9)) * 6).astype(dtype)
    y = rng.integers(9, size=40)
    x[1, y[1]] = 45
    x[2] = 3
    x[3, :4] = -np.inf
    x[4, y[4]] = -np.inf
    x[5, 2] = np.inf
    x[6, 8] = np.nan
    x[7] = -np.inf
    x[8] = np.nan
    y[8:12] = -100
    x[13, 1:] = -np.inf
    x[14] = 1e4 * np.arange(9)
    return x, y


def expected_of(function, x, y, **options):
    return function(x.astype(np.float64), y, **options)


def assert_within(actual, expected, dtype):
    """`expected` is of float64; that of float32 is rounded once."""
    if dtype == np.float32:
        np.testing.assert_allclose(actual, expected.astype(dtype), rtol=np.finfo(dtype).eps)
    else:
        np.testing.assert_allclose(actual, expected, rtol=EXACT)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_losses(rng, chunks, dtype, options):
    x, y = rows(rng, dtype)
    lazy = da.from_array(x, chunks=chunks)
    loss, grad = bridge.cross_entropy_and_grad(lazy, y, reduction="none", **options)
    assert grad.chunks == lazy.chunks
    assert loss.dtype == grad.dtype == dtype
    loss, grad = dask.compute(loss, grad)
    expected, gradient = expected_of(fastce.cross_entropy_and_grad, x, y, reduction="none", **options)
    assert_within(loss, expected, dtype)
    assert_within(grad, gradient, dtype)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduced(rng, chunks, reduction):
    x = rng.normal(size=(40, 9)) * 5
    y = np.where(np.arange(40) % 7, rng.integers(9, size=40), -100)
    weight, sample_weight = rng.random(9), rng.random(40)
    given = {"weight": weight, "reduction": reduction}
    loss, grad = bridge.cross_entropy_and_grad(
        da.from_array(x, chunks=chunks), da.from_array(y, chunks=11), sample_weight=sample_weight, **given
    )
    loss, grad = dask.compute(loss, grad)
    expected, gradient = fastce.cross_entropy_and_grad(x, y, sample_weight=sample_weight, **given)
    np.testing.assert_allclose(loss, expected, rtol=EXACT)
    np.testing.assert_allclose(grad, gradient, rtol=EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options", [{"sample_weight": [0.0, 1, 1]}, {"weight": [1.0, 1, 0, 1]}, {"sample_weight": [0.0, 1, 0]}]
)
def test_infinite_losses_without_weight(reduction, options):
    x, y = np.array([[0, 1, -np.inf, 2], [1, 2, 3, 4], [np.nan, 1, 2, 3]]), np.array([2, 1, 1])
    for n in (2, 3):  # without the row that has no probabilities, and with it
        given = {name: np.array(v[:n] if name == "sample_weight" else v) for name, v in options.items()}
        lazy = bridge.cross_entropy_and_grad(
            da.from_array(x[:n], chunks=(2, 2)), y[:n], reduction=reduction, **given
        )
        expected = fastce.cross_entropy_and_grad(x[:n], y[:n], reduction=reduction, **given)
        for actual, value in zip(dask.compute(*lazy), expected, strict=True):
            np.testing.assert_allclose(actual, value, rtol=EXACT)


def test_losses_beyond_float32():
    x, y = np.array([[3e38, -3e38, 0, 0]], np.float32), np.array([1])
    lazy = da.from_array(x, chunks=(1, 2))
    assert bridge.cross_entropy(lazy, y, reduction="none").compute() == np.inf  # without a warning
    assert bridge.token_logprobs(lazy, y).logprob.compute() == -np.inf


@pytest.mark.parametrize("chunks", [(40, 9), (7, 9), *CHUNKS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_scores(rng, chunks, dtype, options, top_k):
    x, y = rows(rng, dtype)
    lazy = bridge.token_logprobs(da.from_array(x, chunks=chunks), y, top_k=top_k, **options)
    scores = dask.compute(*lazy)
    expected = expected_of(inference.token_logprobs, x, y, top_k=top_k, **options)
    for name, of, actual, value in zip(lazy._fields, lazy, scores, expected, strict=True):
        assert of.dtype == actual.dtype, name
        assert of.shape == actual.shape == value.shape, name
        if actual.dtype.kind == "i":
            np.testing.assert_array_equal(actual, value, err_msg=name)
        elif isinstance(chunks[1], int) and chunks[1] == 9 and dtype == np.float32:  # the kernel's own, 4 ULP
            np.testing.assert_allclose(actual, value.astype(dtype), rtol=8 * np.finfo(dtype).eps)
        else:
            assert_within(actual, value, dtype)


@pytest.mark.parametrize("chunks", [(7, 9), (7, 4)])
def test_perplexity(rng, chunks):
    x, y = rng.normal(size=(40, 9)), rng.integers(9, size=40)
    weight = rng.random(40)
    lazy = bridge.perplexity(da.from_array(x, chunks=chunks), y, sample_weight=weight, temperature=2.0)
    expected = inference.perplexity(x, y, sample_weight=weight, temperature=2.0)
    np.testing.assert_allclose(lazy.compute(), expected, rtol=EXACT)
    assert bridge.perplexity(da.from_array([[0, 1e4]]), [0]).compute() == np.inf  # without a warning
    with pytest.raises(TypeError, match="unexpected arguments: label_smoothing"):
        bridge.perplexity(da.zeros((4, 3)), np.zeros(4, int), label_smoothing=0.1)


def test_more_axes_of_rows(rng):
    x, y = rng.normal(size=(6, 4, 5)), rng.integers(5, size=(6, 4))
    lazy = da.from_array(x, chunks=(4, 3, 2))
    loss, grad = dask.compute(*bridge.cross_entropy_and_grad(lazy, y, reduction="none"))
    expected, gradient = fastce.cross_entropy_and_grad(x, y, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=EXACT)
    np.testing.assert_allclose(grad, gradient, rtol=EXACT)
    scores, values = (
        dask.compute(*bridge.token_logprobs(lazy, y, top_k=2)),
        inference.token_logprobs(x, y, top_k=2),
    )
    for actual, value in zip(scores, values, strict=True):
        np.testing.assert_allclose(actual, value, rtol=EXACT)


def test_parts_never_meet(rng):
    lazy = da.from_array(rng.normal(size=(6, 8)), chunks=(6, 2))
    y = rng.integers(8, size=6)
    for result in (*bridge.cross_entropy_and_grad(lazy, y), *bridge.token_logprobs(lazy, y, top_k=2)):
        layers = str(sorted(result.__dask_graph__().layers))
        assert "rechunk" not in layers
        assert "concatenate" not in layers


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"z_loss": 0.01}])
def test_what_asks_for_all_classes_has_them_joined(rng, options):
    x, y = rng.normal(size=(6, 8)), rng.integers(8, size=6)
    lazy = da.from_array(x, chunks=(4, 3))
    loss, grad = bridge.cross_entropy_and_grad(lazy, y, **options)
    expected, gradient = fastce.cross_entropy_and_grad(x, y, **options)
    np.testing.assert_allclose(loss.compute(), expected, rtol=1e-14)
    np.testing.assert_allclose(grad.compute(), gradient, rtol=1e-14)


@pytest.mark.parametrize("label", [-1, 9])
def test_a_wrong_label_is_named_by_its_place_in_the_whole(rng, label):
    x, y = rng.normal(size=(40, 9)), rng.integers(9, size=40)
    y[31] = label
    lazy = da.from_array(x, chunks=(7, 4))
    scores = (bridge.token_logprobs(lazy, y).logprob, bridge.perplexity(lazy, y))
    scores += (bridge.perplexity(lazy.rechunk((7, 9)), y),)
    named = [("target", result) for result in bridge.cross_entropy_and_grad(lazy, y)]
    for name, result in (*named, *(("tokens", score) for score in scores)):
        with pytest.raises(IndexError, match=rf"^{name}\[31\] is {label}; expected a class in \[0, 9\)"):
            result.compute()


WAYS = {"whole rows": (4, 10), "split classes": (4, 5)}


@pytest.mark.parametrize("chunks", WAYS.values(), ids=WAYS)
def test_what_arrays_are_refused_for_is_refused_at_once(chunks):
    rng = np.random.default_rng(1)
    x, y = da.from_array(rng.normal(size=(12, 10)), chunks=chunks), rng.integers(0, 10, 12)
    with pytest.raises(ValueError, match=r"target has shape \(12,\) and dtype float64; expected class"):
        bridge.cross_entropy(x, y.astype(float))
    with pytest.raises(TypeError, match="target has dtype bool"):
        bridge.cross_entropy_and_grad(x, y > 4)
    with pytest.raises(ValueError, match=r"weight has shape \(11,\); expected \(10,\)"):
        bridge.cross_entropy(x, y, weight=np.ones(11), reduction="none")
    with pytest.raises(TypeError, match=r"^tokens has dtype bool"):
        bridge.perplexity(x, y > 4)
    for function in (bridge.perplexity, bridge.token_logprobs):
        with pytest.raises(ValueError, match=r"^tokens has shape \(11,\); expected \(12,\)"):
            function(x, y[1:])
    with pytest.raises(TypeError, match="sample_weight has dtype complex128"):
        bridge.perplexity(x, y, sample_weight=np.ones(12, complex))
    with pytest.raises(ValueError, match="temperature is -1"):
        bridge.token_logprobs(x, y, temperature=-1)
    for top_k in (-1, 11):
        with pytest.raises(ValueError, match=rf"top_k is {top_k}; expected an int in \[0, 10\]"):
            bridge.token_logprobs(x, y, top_k=top_k)


@pytest.mark.parametrize("chunks", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("total", [-3.5, 0, np.nan], ids=str)
def test_sample_weights_that_sum_to_no_positive_number(chunks, total):
    rng = np.random.default_rng(1)
    x, y, weight = rng.normal(size=(12, 10)), rng.integers(0, 10, 12), np.ones(12)
    weight[5] = total - 10  # ten others count, the fourth row does not
    y[3] = -100
    loss, grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight)
    given = da.from_array(x, chunks=chunks)
    lazy = dask.compute(*bridge.cross_entropy_and_grad(given, y, sample_weight=weight))
    np.testing.assert_allclose(lazy[0], loss, rtol=1e-13)
    finite = np.isfinite(grad)  # 0 where the row is ignored; else whether NaN or infinite is not said
    assert (np.isfinite(lazy[1]) == finite).all()
    np.testing.assert_allclose(lazy[1][finite], grad[finite], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("chunks", [((0, 0), (10,)), ((0, 0, 0), (4, 6))], ids=WAYS)
def test_no_rows_in_several_chunks(chunks):
    x, y = da.zeros((0, 10), chunks=chunks), np.empty(0, int)
    loss, grad = bridge.cross_entropy_and_grad(x, y, sample_weight=da.ones(0, chunks=-1))
    assert np.isnan(loss.compute())
    assert grad.compute().shape == (0, 10)
    assert bridge.token_logprobs(x, y, top_k=2).top_tokens.compute().shape == (0, 2)


@pytest.mark.parametrize("chunks", WAYS.values(), ids=WAYS)
def test_chunks_of_unknown_size(rng, chunks):
    x, y = da.from_array(rng.normal(size=(12, 10)), chunks=chunks), da.from_array(np.arange(12), chunks=4)
    z, labels = x[x[:, 0] < np.inf], y[y >= 0]
    with pytest.raises(IndexError, match=r"target\[2\] of a chunk is 10; expected a class in \[0, 10\)"):
        bridge.cross_entropy(z, labels).compute()
    with pytest.raises(ValueError, match=r"target has shape \(1,\)"):
        bridge.cross_entropy(z, y[y % 4 == 0], reduction="sum").compute()


@pytest.mark.parametrize("chunks", WAYS.values(), ids=WAYS)
def test_masks_are_not_lost(rng, chunks):
    x, y, s = (
        da.from_array(rng.normal(size=(12, 10)), chunks=chunks),
        da.arange(12, chunks=4) % 9,
        da.ones(12),
    )
    masked = da.ma.masked_greater
    for name, arguments in {
        "logits": (masked(x, 1), y, s),
        "target": (x, masked(y, 5), s),
        "sample_weight": (x, y, masked(s, 0)),
    }.items():
        loss = bridge.cross_entropy(*arguments[:2], sample_weight=arguments[2])
        with pytest.raises(TypeError, match=f"{name} is or holds a masked array, whose mask would be lost"):
            loss.compute()
