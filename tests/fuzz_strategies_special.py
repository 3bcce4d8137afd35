"""Calls that hypothesis draws: SciPy's functions, scores, information measures, log_loss, linear layers."""

import numpy as np
from conftest import DTYPES
from fuzz_memory import in_memory
from fuzz_strategies import (
    LAYOUTS,
    LOGIT_DTYPES,
    REDUCTIONS,
    SEEDS,
    Case,
    broadcastable,
    labels,
    logits,
    maybe,
    probabilities,
    shape_of_rows,
    weights,
)
from hypothesis import strategies as st


def some_axes(draw, n_dims):
    """An axis, several, all of them."""
    if n_dims == 0 or draw(st.booleans()):
        return None
    axes = tuple(draw(st.permutations(range(n_dims))))[: draw(st.integers(1, n_dims))]
    axes = tuple(k - n_dims if draw(st.booleans()) else k for k in axes)
    return axes[0] if len(axes) == 1 and draw(st.booleans()) else axes


def rows(draw, rng, dtypes=LOGIT_DTYPES):
    batch, n_classes, axis = shape_of_rows(draw)
    x = logits(draw, rng, int(np.prod(batch)), n_classes, dtypes=dtypes)[0]
    return np.moveaxis(x.reshape(*batch, n_classes), -1, axis), axis


@st.composite
def softmaxes(draw):
    rng = np.random.default_rng(draw(SEEDS))
    x, axis = rows(draw, rng)
    options = {"axis": axis if draw(st.booleans()) else some_axes(draw, x.ndim)}
    return Case(("softmax", "log_softmax"), {"x": in_memory(rng, x, draw(LAYOUTS))}, options, rng)


@st.composite
def logsumexps(draw):
    rng = np.random.default_rng(draw(SEEDS))
    a, axis = rows(draw, rng)
    options = {"axis": axis if draw(st.booleans()) else some_axes(draw, a.ndim)}
    options |= draw(st.sampled_from([{}, {"keepdims": True}])) | draw(
        st.sampled_from([{}, {"return_sign": True}])
    )
    arrays = {"a": in_memory(rng, a, draw(LAYOUTS))}
    dtype = maybe(draw, *LOGIT_DTYPES)
    if dtype is not None:
        kind = draw(st.sampled_from(["plain", "some zero", "signed", "small", "large", "tiny", "huge"]))
        b = weights(rng, broadcastable(draw, rng, a.shape), kind, dtype)
        arrays["b"] = in_memory(rng, b, draw(LAYOUTS))
    return Case(("logsumexp",), arrays, options, rng)


def at_axis(draw, batch, x, axis, options):
    options["axis"] = axis - draw(st.sampled_from([0, len(batch) + 1]))
    return np.moveaxis(x.reshape(*batch, x.shape[1]), -1, axis)


@st.composite
def scores(draw):
    rng, options = np.random.default_rng(draw(SEEDS)), {}
    batch, n_classes, axis = shape_of_rows(draw)
    x, y = logits(draw, rng, int(np.prod(batch)), n_classes)
    tokens = labels(draw, rng, y, batch, n_classes, options)
    arrays = {"x": in_memory(rng, at_axis(draw, batch, x, axis, options), draw(LAYOUTS))}
    arrays["tokens"] = in_memory(rng, tokens, draw(LAYOUTS))
    options["top_k"] = draw(st.integers(0, min(n_classes, 40)))
    for name, values in (("temperature", (0.07, 1.3, 8.0)), ("softcap", (1.5, 30.0))):
        value = maybe(draw, *values)
        if value is not None:
            options[name] = value
    return Case(("token_logprobs",), arrays, options, rng)


@st.composite
def best_classes(draw):
    rng, options = np.random.default_rng(draw(SEEDS)), {}
    batch, n_classes, axis = shape_of_rows(draw)
    x = at_axis(draw, batch, logits(draw, rng, int(np.prod(batch)), n_classes)[0], axis, options)
    options["k"] = draw(st.integers(0, n_classes) | st.integers(0, min(n_classes, 70)))
    return Case(("top_k",), {"x": in_memory(rng, x, draw(LAYOUTS))}, options, rng)


@st.composite
def greedy_samples(draw):
    """Whatever the filters: what is random of the others, test_sample.py compares with the twin."""
    rng, options = np.random.default_rng(draw(SEEDS)), {"temperature": 0}
    batch, n_classes, axis = shape_of_rows(draw)
    x = at_axis(draw, batch, logits(draw, rng, int(np.prod(batch)), n_classes)[0], axis, options)
    for name, values in (("top_k", (1, 3)), ("top_p", (0.0, 0.5)), ("min_p", (0.1, 1.0))):
        value = maybe(draw, *values)
        if value is not None:
            options[name] = value
    return Case(("sample",), {"x": in_memory(rng, x, draw(LAYOUTS))}, options, rng)


@st.composite
def measures(draw):
    """Of one array of probabilities, or of two that broadcast."""
    rng = np.random.default_rng(draw(SEEDS))
    batch, n_classes, axis = shape_of_rows(draw)
    shape = (*batch[:axis], n_classes, *batch[axis:])
    base = maybe(draw, 2, 10, 0.5, 3, 256)
    options = {"axis": axis - draw(st.sampled_from([0, len(shape)]))} | (
        {} if base is None else {"base": base}
    )
    dtype = draw(st.sampled_from(LOGIT_DTYPES))
    arrays = {"p": in_memory(rng, probabilities(rng, shape, dtype), draw(LAYOUTS))}
    if draw(st.booleans()):
        return Case(("self_information", "entropy"), arrays, options, rng)
    other, q = draw(st.sampled_from(LOGIT_DTYPES)), arrays["p"].a.astype(float)
    how = draw(st.sampled_from([None, 1e-1, 1e-8, 1e-16, 0]))
    if how is None:
        q = probabilities(rng, (1,) * len(shape) if draw(st.booleans()) else shape, other)
    else:
        q = np.abs(q * (1 + how * rng.normal(size=shape)))
    arrays["q"] = in_memory(rng, q.astype(other), draw(LAYOUTS))
    return Case(("cross_entropy", "kl_divergence"), arrays, options, rng)


@st.composite
def log_losses(draw):
    """Labels are integers or strings, from 2 classes on; scikit-learn wants at least one row."""
    rng = np.random.default_rng(draw(SEEDS))
    n, n_classes = draw(st.sampled_from([1, 2, 3, 7, 20])), draw(st.sampled_from([2, 2, 3, 5]))
    p = rng.dirichlet(np.full(n_classes, draw(st.sampled_from([0.05, 1]))), n)
    p = p.astype(draw(st.sampled_from(DTYPES[:2])))
    p /= p.sum(axis=1, keepdims=True)
    options = {"normalize": draw(st.booleans()), "labels": np.arange(n_classes)}
    arrays = {"y_true": in_memory(rng, rng.integers(0, n_classes, n), 0)}
    arrays["y_proba"] = in_memory(
        rng, p[:, 1] if n_classes == 2 and draw(st.booleans()) else p, draw(LAYOUTS) & 15
    )
    eps = maybe(draw, "auto", 0, 1e-3)
    if eps is not None:
        options["eps"] = eps
    if draw(st.booleans()):
        arrays["sample_weight"] = in_memory(rng, rng.uniform(0.5, 2, n), draw(LAYOUTS) & 15)
    return Case(("log_loss",), arrays, options, rng)


@st.composite
def linear_losses(draw):
    """Few weights or many rows, by kernels or, where there is little memory, in blocks through BLAS."""
    rng, options = np.random.default_rng(draw(SEEDS)), dict(draw(REDUCTIONS))
    n_rows = draw(st.sampled_from([1, 2, 5, 33, 64, 65, 130, 300, 0]))
    n_features = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33, 65]))
    n_classes = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 33, 100]))
    size = draw(st.sampled_from([0.1, 1, 5])) / np.sqrt(n_features)
    shapes = {"input": (n_rows, n_features), "linear_weight": (n_classes, n_features)}
    arrays = {
        name: in_memory(
            rng,
            (rng.normal(size=shape) * (size if name == "linear_weight" else 1)).astype(
                draw(st.sampled_from(DTYPES))
            ),
            draw(LAYOUTS),
        )
        for name, shape in shapes.items()
    }
    y = labels(draw, rng, rng.integers(0, n_classes, n_rows), (n_rows,), n_classes, options)
    arrays["target"] = in_memory(rng, y, draw(LAYOUTS))
    if draw(st.booleans()):
        b = rng.normal(size=n_classes).astype(draw(st.sampled_from(DTYPES)))
        arrays["linear_bias"] = in_memory(rng, b, draw(LAYOUTS))
    if draw(st.booleans()):
        arrays["sample_weight"] = in_memory(rng, rng.uniform(0.5, 2, n_rows), draw(LAYOUTS))
    if draw(st.booleans()):
        options["memory"] = 1 << 20
    smoothing = maybe(draw, 0.1)
    if smoothing is not None:
        options["label_smoothing"] = smoothing
    return Case(("linear_cross_entropy", "linear_cross_entropy_and_grad"), arrays, options, rng)
