"""A softmax is a distribution: for every level, dtype, layout and number of classes."""

import numpy as np
import pytest
from bounds import in_order
from conftest import DTYPES, KINDS, bits, compute_dtype, nasty
from hypothesis import given, settings
from hypothesis import strategies as st

import fastce

COUNTS = (1, 2, 3, 5, 16, 17, 33, 57, 100, 113, 129, 1000, 4097, 8193, 40_000)
LAYOUTS = {
    "contiguous": lambda a: a,
    "columns": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "swapped": lambda a: a.astype(a.dtype.newbyteorder("S")) if a.dtype.kind == "f" else a,
}


def rows(dtype, n_classes, seed=0):
    """Nasty rows, none with a NaN and each with a finite logit; some classes tie."""
    x = nasty(dtype, len(KINDS) if n_classes < 5000 else 4, n_classes, seed=seed)[0]
    rng = np.random.default_rng(seed)
    places = rng.integers(0, n_classes, (2, 5))
    x[:, places[0]] = x[:, places[1]]
    x[~np.isfinite(x.astype(float)).any(axis=1), 0] = 1
    return x


def assert_distribution(p, x):
    """Each row of p, in order of its logits."""
    p, x = p.astype(float), x.astype(float)
    assert (p >= 0).all()
    assert (p <= 1).all()
    assert not np.signbit(p).any()
    assert in_order(p, x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_is_a_distribution(level, dtype, layout):
    for n_classes in COUNTS:
        if n_classes > 10_000 and layout != "contiguous":
            continue
        x = rows(dtype, n_classes)
        given_x = LAYOUTS[layout](x)
        assert_distribution(fastce.softmax(given_x, axis=1), x)
        log_p = fastce.log_softmax(given_x, axis=1)
        assert (log_p.astype(float) <= 0).all()
        assert in_order(log_p.astype(float), x.astype(float))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neighbouring_logits_keep_their_order(level, dtype):
    """Runs of neighbours, at many sizes, below a maximum near and far."""
    rng = np.random.default_rng(3)
    wide = compute_dtype(dtype)
    for top in (0.0, 0.7, 20.0, 90.0):
        starts = np.concatenate([-rng.exponential(10, 40), rng.uniform(-0.4, 0, 20), [-1e-3, -1e-5]])
        runs = top + starts[:, None].astype(wide)
        step = np.abs(np.spacing(runs.astype(dtype))).astype(wide)
        x = np.minimum(runs + step * np.arange(200, dtype=wide), top).astype(dtype).reshape(2, -1)
        x[:, 0] = top
        assert_distribution(fastce.softmax(x, axis=1), x)
        few = x[:, :5000].reshape(-1, 100)
        assert_distribution(fastce.softmax(few, axis=1), few)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_only_class_has_all(level, dtype):
    """Wherever it stands, and whatever its logit."""
    for n_classes in COUNTS:
        for place in {0, n_classes // 2, n_classes - 1}:
            for logit in (-3.3, 88.7, -3e4):
                x = np.full((2, n_classes), -np.inf, dtype)
                x[:, place] = logit
                p = fastce.softmax(x, axis=1)
                assert p[0, place] == p[1, place] == 1
                assert np.count_nonzero(p) == 2
                assert (fastce.log_softmax(x, axis=1)[:, place] == 0).all()
                if n_classes == 1:
                    continue
                y = np.array([place, (place + 1) % n_classes])
                loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
                assert loss[0] == 0
                assert loss[1] == np.inf
                assert not grad[0].any()
                assert grad[1, place] == 1
                assert grad[1, y[1]] == -1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_gradient_beyond_the_factor_of_its_row(level, dtype):
    for n_classes in (2, 5, 100, 130, 1000, 9000, 40_000):
        x, y = nasty(dtype, 2 * len(KINDS) if n_classes < 5000 else 6, n_classes)
        weight = np.random.default_rng(2).uniform(0.1, 3, len(x)) * np.resize([1, -1, 1e-3], len(x))
        options = {"sample_weight": weight, "reduction": "none"}
        limit = np.abs(weight).astype(compute_dtype(dtype)).astype(dtype).astype(float)
        one_hot = (np.arange(n_classes) == y[:, None]).astype(compute_dtype(dtype))
        for target in (y, one_hot) if n_classes < 5000 else (y,):
            grad = fastce.cross_entropy_and_grad(x, target, **options)[1]
            size = np.abs(grad.astype(float))
            known = ~np.isnan(size)
            assert (size <= limit[:, None])[known].all()
            others = np.arange(n_classes) != y[:, None]
            signed = grad.astype(float) * np.sign(weight)[:, None]
            assert (signed[others & known] >= 0).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), n_classes=st.integers(1, 300), scale=st.sampled_from([0.01, 1, 30]))
def test_probabilities_are_never_refused(level, seed, n_classes, scale):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(3, n_classes)) * scale).astype(rng.choice(["f4", "f8"]))
    p = fastce.softmax(x, axis=1)
    fastce.binary_cross_entropy(p, np.zeros_like(p))
    rng.choice(n_classes, p=p[1])
    x[0, 1:][-1:] = -np.inf  # where the last class has none, multinomial refuses a sum that is rounded up
    wide = fastce.softmax(x[0]).astype(float)
    rng.multinomial(5, wide / wide.sum())
    if n_classes > 1:
        fastce.log_loss(rng.integers(0, n_classes, 3), p, labels=np.arange(n_classes))


def test_long_rows_are_never_refused(level):
    for n_classes in (8193, 100_000):
        p = fastce.softmax(np.full((1, n_classes), -3.3, np.float32), axis=1)
        assert len(np.unique(p)) == 1
        x = np.zeros((1, n_classes), np.float32)
        x[0, n_classes // 2] = 200
        fastce.binary_cross_entropy(fastce.softmax(x, axis=1), np.zeros_like(x))


def test_equal_logits_have_equal_probabilities(level):
    for dtype in DTYPES:
        for n_classes in range(1, 130):
            p = fastce.softmax(np.full(n_classes, -3.3, dtype))
            assert bits(p) == bits(np.full(n_classes, p[0]))
