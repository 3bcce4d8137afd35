"""`score` of hidden states, and the means `perplexity` and `bits_per_token`."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import fastce
from fastce.inference import bits_per_token, perplexity, score, token_logprobs


def problem(n=(5, 7), n_features=16, n_classes=300, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    hidden, head = (
        rng.normal(size=(*n, n_features)).astype(dtype),
        rng.normal(size=(n_classes, n_features)).astype(dtype),
    )
    return hidden, head, rng.normal(size=n_classes), rng.integers(n_classes, size=n)


@pytest.mark.parametrize("memory", [300 * 8, 10_000, 2**20])
def test_equals_the_logits(memory):
    hidden, head, bias, tokens = problem()
    tokens[1, 2] = -100
    options = {"top_k": 4, "temperature": 0.8, "softcap": 20.0}
    found = score(hidden, head, tokens, linear_bias=bias, memory=memory, **options)
    exact = token_logprobs(hidden @ head.T + bias, tokens, **options)
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-12)  # products of 16 terms, in another order


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_widened(dtype):
    hidden, head, _, tokens = problem(dtype=dtype)
    found = score(hidden, head, tokens, memory=20_000)
    exact = token_logprobs(hidden.astype(np.float32) @ head.astype(np.float32).T, tokens)
    assert found.logprob.dtype == np.float32
    np.testing.assert_allclose(found.logprob, exact.logprob, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_memory_is_bounded(dtype):
    hidden, head, _, tokens = problem((2000,), 32, 4000, dtype)
    memory = 2**20
    score(hidden[:2], head, tokens[:2], memory=memory)
    tracemalloc.start()
    score(hidden, head, tokens, top_k=100, memory=memory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    results = 2000 * (4 + 8 + 4 + 100 * (8 + 4))
    assert peak < memory + results + 2**18


def test_empty():
    hidden, head, _, tokens = problem((0,))
    assert score(hidden, head, tokens, top_k=3).top_tokens.shape == (0, 3)
    hidden, head, bias, tokens = problem(n_features=0)
    expected = token_logprobs(np.broadcast_to(bias, (*tokens.shape, 300)), tokens).logprob
    np.testing.assert_array_equal(score(hidden, head, tokens, linear_bias=bias).logprob, expected)


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"memory": 100}, ValueError, "memory is 100; expected at least 2400"),
        ({"tokens": np.full((5, 7), 300)}, IndexError, r"tokens\[0, 0\] is 300"),
        ({"tokens": np.zeros(35, int)}, ValueError, r"tokens has shape \(35,\)"),
        ({"linear_bias": np.zeros(4)}, ValueError, "linear_bias has shape"),
        ({"linear_weight": np.zeros((300, 15))}, ValueError, r"linear_weight has shape \(300, 15\)"),
    ],
)
def test_refusals(change, error, message):
    hidden, head, _, tokens = problem()
    arguments = {"linear_weight": head, "tokens": tokens} | change
    with pytest.raises(error, match=message):
        score(hidden, arguments.pop("linear_weight"), arguments.pop("tokens"), **arguments)


def test_means():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(40, 30)), rng.integers(30, size=40), rng.uniform(size=40)
    y[3] = -100
    loss = fastce.cross_entropy(x, y, sample_weight=w, temperature=0.5)
    options = {"sample_weight": w, "temperature": 0.5}
    assert perplexity(x, y, **options) == np.exp(loss)
    assert bits_per_token(x, y, **options) == loss / np.log(2)
    assert np.isnan(perplexity(x[:0], y[:0]))
    assert perplexity(np.array([[0.0, 1e4]]), [0]) == np.inf
    assert 1e308 < perplexity(np.array([[0.0, 709.5]]), [0]) < np.inf
    for function in (perplexity, bits_per_token):
        with pytest.raises(TypeError, match=f"{function.__name__} has no option 'top_k'; expected axis, "):
            function(x, y, top_k=1)
        with pytest.raises(IndexError, match=r"^tokens\[2\] is 30; expected a class index in \[0, 30\)"):
            function(x[:3], [0, 1, 30])
        with pytest.raises(ValueError, match=r"^tokens has shape \(39,\); expected \(40,\), the shape"):
            function(x, y[1:])
        with pytest.raises(TypeError, match=r"^tokens has dtype <U1; .*numpy.unique\(names, return_inverse"):
            function(x[:2], ["a", "b"])
        with pytest.raises(ValueError, match=r"^tokens has .* float64, target probabilities; expected"):
            function(x, y.astype(float))
