"""`sample`: the distributions that are drawn from, and what no token may depend on."""

import numpy as np
import pytest
from conftest import DTYPES, bits, nasty
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import chi2

from fastce.inference import sample, token_logprobs
from fastce.reference.inference import sampled_distribution

MILLION = 1_000_000
FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"temperature": 1.7, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.5, "top_p": 0.5, "min_p": 0.3},
]


def assert_drawn_from(p, tokens):
    """Nothing of probability 0 is drawn, and the rest is as often as a chi-square test lets it be: one of a
    million right samplers would fail."""
    p = p.astype(np.float64)
    counts = np.bincount(tokens.reshape(-1), minlength=p.size)
    assert not counts[p == 0].any()
    expected = p[p > 0] * tokens.size
    order = np.argsort(expected)  # rare tokens are counted together, five at least
    groups = np.cumsum(expected[order]) // 5
    _, start = np.unique(groups, return_index=True)
    expected = np.add.reduceat(expected[order], start)
    observed = np.add.reduceat(counts[p > 0][order], start)
    if expected.size > 1:
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert chi2.sf(statistic, expected.size - 1) > 1e-6


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_million_draws(filters):
    x = np.random.default_rng(3).normal(size=60) * 2
    x[5:10] = x[4]  # ties
    drawn = sample(x, **filters, size=MILLION, rng=1)
    p = sampled_distribution(x, **filters)
    assert_drawn_from(p, drawn.tokens)
    exact = np.log(p[drawn.tokens[:1000]]).astype(np.float64)
    np.testing.assert_allclose(drawn.logprobs[:1000], exact, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_many_rows(filters):
    """One draw of each of many rows, of several blocks, is from the same distribution."""
    x = np.random.default_rng(4).normal(size=3000).astype(np.float32) * 2
    drawn = sample(np.broadcast_to(x, (20_000, 3000)), **filters, rng=2)
    assert_drawn_from(sampled_distribution(x, **filters), drawn.tokens)


@example(x=[0.0, 1.0, 1.5, -2.0], top_k=None, top_p=0.9, min_p=0.5, temperature=1)
@given(
    x=st.lists(st.sampled_from([0.0, 1.0, 1.5, -2.0, 9.0, -np.inf]), min_size=1, max_size=60),
    top_k=st.none() | st.integers(1, 70),
    top_p=st.none() | st.floats(0, 1),
    min_p=st.none() | st.floats(0, 1),
    temperature=st.sampled_from([0, 0.5, 1, 3]),
)
def test_filters_leave_what_the_twin_leaves(level, x, top_k, top_p, min_p, temperature):
    x = np.array(x)
    if np.isneginf(x).all():
        return
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    drawn = sample(x, **filters, size=50, rng=0)
    p = sampled_distribution(x, **filters).astype(np.float64)
    # A threshold that a sum of probabilities meets but for rounding may be on either side of one token.
    near = [sampled_distribution(x, **(filters | {"top_p": q})) for q in _around(top_p)]
    near += [sampled_distribution(x, **(filters | {"min_p": q})) for q in _around(min_p)]
    candidates = [p, *(a.astype(np.float64) for a in near)]
    fits = [
        (q[drawn.tokens] > 0).all()
        and np.allclose(drawn.logprobs, np.log(q, where=q > 0, out=0 * q)[drawn.tokens])
        for q in candidates
    ]
    assert any(fits)


def _around(threshold):
    if threshold is None:
        return ()
    return np.clip([threshold - 1e-12, threshold + 1e-12], 0, 1)


@pytest.mark.parametrize("shape", [(1, 50_000), (3, 20_000), (200, 1500)])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_threads_splits_and_layouts(filters, shape):
    """The same tokens for any number of threads, any split of the batch, any layout, any number of draws."""
    x, _ = nasty(np.float32, *shape, ("normal", "wide", "ties", "masked -inf"))
    whole = sample(x, **filters, rng=7, n_threads=1)
    for n_threads in (2, 3):
        for given_x in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
            for a, b in zip(sample(given_x, **filters, rng=7, n_threads=n_threads), whole, strict=True):
                assert bits(a) == bits(b)
    rng = np.random.default_rng(7)
    parts = [sample(x[part], **filters, rng=rng).tokens for part in (slice(0, 1), slice(1, None))]
    np.testing.assert_array_equal(np.concatenate(parts), whole.tokens)
    more = sample(x, **filters, rng=7, size=(2, 3))
    assert more.tokens.shape == (shape[0], 2, 3)
    np.testing.assert_array_equal(more.tokens[:, 0, 0], whole.tokens)
    turned = sample(x.T, **filters, rng=7, axis=0)
    np.testing.assert_array_equal(turned.tokens, whole.tokens)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logprobs_are_those_of_token_logprobs(dtype):
    """Without filters, also of sure rows and in halves."""
    x, _ = nasty(dtype, 200, 2000, ("normal", "confident 25", "offset 1e4", "wide"))
    drawn = sample(x, temperature=0.7, rng=0)
    scores = token_logprobs(x, drawn.tokens, temperature=0.7)
    ulp = np.spacing(np.abs(scores.logprob))
    assert (np.abs(drawn.logprobs - scores.logprob) <= 4 * ulp).all()  # each within 2, or 4 in float64
    assert (drawn.logprobs < 0).any()


def test_greedy():
    x = np.array([[0, 3, 3, 1], [np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [-np.inf, -5, -np.inf, -6]])
    drawn = sample(x, temperature=0, top_k=2, size=2)
    assert drawn.tokens.tolist() == [[1, 1], [-1, -1], [-1, -1], [1, 1]]
    np.testing.assert_array_equal(drawn.logprobs[:, 0], [0, np.nan, np.nan, 0])


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_invalid_rows(filters):
    x = np.zeros((4, 3000))
    x[1, 2999], x[2, 0], x[3] = np.nan, np.inf, -np.inf
    drawn = sample(x, **filters, rng=0)
    assert drawn.tokens[1:].tolist() == [-1, -1, -1]
    assert np.isnan(drawn.logprobs[1:]).all()
    assert drawn.tokens[0] >= 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_uniform_rows(dtype):
    """All in one bucket: the nucleus is the first ones, up to that with which it has top_p."""
    for n, top_p in ((2, 0.5), (4, 0.25), (4, 0.75), (10, 0.5)):
        drawn = sample(np.full(n, 0.1, dtype), top_p=top_p, temperature=2.5, size=500, rng=0).tokens
        assert np.unique(drawn).size == n * top_p
    drawn = sample(np.zeros(1000, dtype), top_p=0.25, size=100_000, rng=0).tokens
    assert drawn.max() == 249
    assert np.unique(drawn).size == 250


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("low", [-20, 3])
def test_nucleus_of_a_row_unlike_some_of_it(low, dtype):
    """What is guessed of a long row from vectors of it far apart is wrong here, in either direction."""
    x = np.random.default_rng(5).uniform(-3, 0, 20_000).astype(dtype)
    x[np.arange(x.size) % 40 < 16] = low
    x[19_999] = 3.5
    for filters in ({"top_p": 0.9}, {"top_p": 0.99, "temperature": 0.5, "min_p": 1e-9}):
        drawn = sample(x, **filters, size=20_000, rng=0)
        p = sampled_distribution(x, **filters).astype(np.float64)
        assert (p[drawn.tokens] > 0).all()
        np.testing.assert_allclose(drawn.logprobs, np.log(p[drawn.tokens]), rtol=2e-6)


@pytest.mark.parametrize("first", [-np.inf, -80, 80])
def test_blocks_far_from_the_first(first):
    """Blocks of a row whose first one is masked, or far from the others, in float32 and on both sides."""
    x = np.random.default_rng(6).normal(size=5000).astype(np.float32)
    x[:1024] = first
    p = sampled_distribution(x)
    drawn = sample(x, size=50_000, rng=1)
    assert_drawn_from(p, drawn.tokens)
    np.testing.assert_allclose(drawn.logprobs, np.log(p[drawn.tokens]).astype(np.float64), rtol=2e-7)


@pytest.mark.once
def test_shapes_and_generators():
    assert sample(np.zeros((2, 0, 5))).tokens.shape == (2, 0)
    assert sample(np.zeros(5)).tokens.shape == ()
    assert sample(np.zeros((2, 5)), size=0).tokens.shape == (2, 0)
    same = [sample(np.zeros(1000), rng=rng).tokens for rng in (5, np.random.default_rng(5))]
    assert same[0] == same[1]


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1}, ValueError, "temperature is -1"),
        ({"temperature": 1e-19}, ValueError, "temperature is 1e-19; expected 0 or"),
        ({"top_k": 0}, ValueError, "top_k is 0; expected an int of at least 1, or None"),
        ({"top_k": 1.5}, TypeError, "top_k is 1.5"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5"),
        ({"min_p": -0.1}, ValueError, "min_p is -0.1"),
        ({"size": -1}, ValueError, "size is -1"),
        ({"size": True}, TypeError, "size is True; expected an int or a tuple of ints"),
        ({"size": (2, 1.5)}, TypeError, "size is 1.5; expected an int or a tuple of ints"),
        ({"size": np.array([2, 3])}, TypeError, r"size is array\(\[2, 3\]\); expected an int or"),
        ({"rng": "abc"}, TypeError, "rng is 'abc'; expected a numpy.random.Generator, an int"),
        ({"rng": -1}, ValueError, "rng is -1; expected a numpy.random.Generator, an int of at least 0"),
        ({"axis": 2}, np.exceptions.AxisError, "out of bounds"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        sample(np.zeros((2, 5)), **options)
