"""Features whose leading axes are no single one in memory: the answer of a copy, and no copy."""

import tracemalloc

import numpy as np
import pytest
from conftest import bits

import fastce
from fastce.inference import score
from fastce.linear import arguments

SLICES = {
    "shifted": lambda a: a[:, :-1],
    "transposed": lambda a: a.swapaxes(0, 1),
    "three axes": lambda a: a.reshape(6, 5, *a.shape[1:])[::2, 1:, ::3],
    "reversed": lambda a: a[::-1, 2:],
}


@pytest.fixture(params=["kernels", "blas", "parts"])
def way(request, monkeypatch):
    if request.param != "kernels":
        monkeypatch.setattr(arguments, "FEW_WEIGHTS", 0)
    return {"memory": 40_000} if request.param == "parts" else {}


def problem(probabilities=False):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(30, 23, 7)), rng.normal(size=(11, 7))
    y = rng.integers(0, 11, (30, 23))
    y[::4, ::5] = -100
    return x, w, rng.dirichlet(np.ones(11), (30, 23)) if probabilities else y, rng.uniform(-1, 2, (30, 23))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("cut", SLICES.values(), ids=SLICES)
def test_answer_of_a_copy(cut, probabilities, accumulate, way, request):
    x, w, y, s = problem(probabilities)
    results = []
    for of in (lambda a: a, np.ascontiguousarray):
        out = (of(cut(np.ones_like(x))), np.ones_like(w), None)
        loss, grad = fastce.linear_cross_entropy_and_grad(
            of(cut(x)), w, of(cut(y)), sample_weight=of(cut(s)), out=out, accumulate=accumulate, **way
        )
        results.append((np.array(loss), *grad[:2]))
    if "kernels" in request.node.callspec.id:
        assert [bits(a) for a in results[0]] == [bits(a) for a in results[1]]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("cut", SLICES.values(), ids=SLICES)
def test_ignored_rows_are_not_used(cut, way):
    x, w, y, _ = problem()
    expected = fastce.linear_cross_entropy_and_grad(cut(x), w, cut(y), **way)
    x[y == -100] = np.nan
    loss, grad = fastce.linear_cross_entropy_and_grad(cut(x), w, cut(y), **way)
    assert loss == expected[0]
    assert [bits(a) for a in grad[:2]] == [bits(a) for a in expected[1][:2]]


def test_place_of_a_label(way):
    x, w, y, _ = problem()
    y[3, 5] = 11
    with pytest.raises(IndexError, match=r"target\[3, 4\] is 11"):
        fastce.linear_cross_entropy(x[:, :-1], w, y[:, 1:], **way)


@pytest.mark.parametrize("cut", SLICES.values(), ids=SLICES)
def test_scores(cut):
    x, w, y, _ = problem()
    found = score(cut(x), w, cut(y), top_k=2, memory=9000)
    expected = score(cut(x).copy(), w, cut(y).copy(), top_k=2, memory=9000)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.once
@pytest.mark.parametrize("n_classes", [32, 3000])
def test_peak_memory(n_classes):
    """Beside arguments and results: `memory`, and 1 MiB that sums of blocks and Python may take."""
    rng, memory = np.random.default_rng(0), 1 << 24
    x, y = np.zeros((500, 400, 64), "f4"), rng.integers(0, n_classes, (500, 400))
    w = rng.normal(size=(n_classes, 64)).astype("f4")
    if n_classes > 32:
        x, y = x[:100], y[:100]
    out = (np.empty_like(x), np.empty_like(w), None)
    calls = {
        "loss": lambda h, y, _: fastce.linear_cross_entropy(h, w, y, memory=memory),
        "gradients": lambda h, y, out: fastce.linear_cross_entropy_and_grad(h, w, y, out=out, memory=memory),
        "scores": lambda h, y, _: score(h, w, y, memory=memory),
    }
    for name, call in calls.items():
        for cut in (SLICES["shifted"], SLICES["transposed"]):
            tracemalloc.start()
            call(cut(x), cut(y), (cut(out[0]), *out[1:]))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            results = y.size * 16 if name == "scores" else 0
            assert peak < memory + results + (1 << 20), name
