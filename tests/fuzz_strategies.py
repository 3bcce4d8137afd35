"""Calls of public functions that hypothesis draws: shapes, dtypes, layouts, options, nasty values.

Hypothesis draws what kind of everything there is, which shrinks to the simplest; a generator, seeded by it,
fills in numbers.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from conftest import DTYPES, KINDS, largest, nasty
from fuzz_memory import Memory, in_memory
from hypothesis import strategies as st

# Batches of 0 to 4 axes, many of them small; some longer than tiles and blocks, some without rows.
BATCHES = (
    *((), (1,), (2,), (3,), (4,), (5,), (7,), (9,), (17,), (2, 3), (3, 1), (4, 5), (1, 1)),
    *((2, 3, 2), (3, 1, 2), (2, 1, 2, 3), (1, 2, 2, 1), (33,), (65,), (5, 17), (0,), (2, 0), (0, 3, 1)),
    *((1, 0, 2, 2), (300,), (1030,), (40, 30), (3, 700)),
)
# Around every vector width and group of vectors; then those that reach tiles, chunks and pieces.
FEW = (1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33)
CLASS_COUNTS = (*FEW, *FEW, *FEW, 0, 57, 64, 65, 113, 128, 129, 130, 257, 1000, 1003, 4097, 8192, 8193)
LONG = (16384, 16385, 40_000)
MOST = 12_000  # elements, but for a long row

INTEGERS = tuple(np.dtype(t) for t in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"))
WEIGHT_DTYPES = (*DTYPES[:2], *DTYPES, np.dtype("i4"), np.dtype("?"))
LOGIT_DTYPES = (*DTYPES, *DTYPES, *DTYPES, np.dtype("i1"), np.dtype("u8"), np.dtype("?"))


def described(a):
    text = f"{a.dtype} {a.shape}, strides {a.strides}"
    if a.size <= 60:
        text += f" {a.astype(float).tolist() if a.dtype.kind not in 'biu' else a.tolist()}"
    return text


class Case(NamedTuple):
    """Functions that take the same arguments; arrays by name, in the order of the signature."""

    names: tuple[str, ...]
    arrays: dict[str, Memory]
    options: dict[str, Any]
    rng: np.random.Generator

    def __repr__(self):
        arrays = (f"{k}: {described(m.a)}" for k, m in self.arrays.items())
        return f"<{self.names[0]}; {'; '.join(arrays)}; {self.options}>"

    def values(self):
        return {name: memory.a for name, memory in self.arrays.items()}


LAYOUTS = st.sampled_from([0, 0, 0, *(1 << k for k in range(7)), 3, 6, 9, 18, 24, 33, 96]) | st.integers(
    0, 127
)
REDUCTIONS = st.sampled_from(
    [{}, {"reduction": "mean"}, {"normalizer": 7.5}, {"reduction": "sum"}, *[{"reduction": "none"}] * 3]
)
SEEDS = st.integers(0, 2**32)


def maybe(draw, *values):
    """One of the values, or, half of the time, nothing."""
    return draw(st.sampled_from([None] * len(values) + list(values)))


def shape_of_rows(draw):
    """A batch, its number of classes, and where their axis goes, from the front and from the back."""
    n_classes = draw(st.sampled_from(CLASS_COUNTS * 20 + LONG))
    batch = draw(
        st.sampled_from([b for b in BATCHES if np.prod(b) * n_classes <= MOST] or [(1,), (2,), (5,)])
    )
    if n_classes == 0:
        batch = draw(st.sampled_from([(0,), (0, 2), (3, 0, 1)]))
    axis = draw(st.integers(0, len(batch)))
    return batch, n_classes, axis


def weights(rng, shape, kind, dtype):
    w = rng.uniform(0.5, 2, shape)
    if kind == "some zero":
        w = w * (rng.random(shape) < 0.7)
    elif kind == "signed":
        w = w * rng.choice([-1, 1], shape)
    elif kind in ("small", "large") and dtype.kind not in "biu":
        w = w * 2.0 ** {"small": -20, "large": 12 if dtype == np.float16 else 20}[kind]
    elif kind in ("tiny", "huge") and dtype.kind not in "biu":
        info = ml_dtypes.finfo(dtype)
        w = w * (float(info.smallest_normal if kind == "tiny" else info.max) * rng.choice([0.25, 0.5], shape))
    return w.astype(dtype)


SIGNED = {"weight", "sample_weight"}
WEIGHT_KINDS = ("plain", "plain", "some zero", "small", "large", "signed")


def logits(draw, rng, n_rows, n_classes, kinds=tuple(KINDS), dtypes=LOGIT_DTYPES):
    """Rows of kinds that `nasty` has, some with a NaN or an infinity somewhere, and labels."""
    dtype = draw(st.sampled_from(dtypes))
    some = tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5)))
    if dtype.kind in "biu":
        low, high = (0, 2) if dtype.kind == "b" else (-128, 128) if dtype.kind == "i" else (0, 2**20)
        return rng.integers(low, high, (n_rows, n_classes)).astype(dtype), rng.integers(
            0, max(n_classes, 1), n_rows
        )
    if n_classes == 0:
        return np.empty((n_rows, 0), dtype), np.zeros(n_rows, int)
    x, y = nasty(dtype, n_rows, n_classes, some, int(rng.integers(2**31)))
    poison = draw(st.sampled_from([None] * 9 + [np.nan, np.inf, -np.inf]))
    if poison is not None and x.size:
        x.flat[rng.integers(x.size, size=1 + x.size // 50)] = poison
    return x, y


def labels(draw, rng, y, batch, n_classes, options):
    """Class indices of any integer dtype, some ignored."""
    dtype = draw(st.sampled_from([d for d in INTEGERS if n_classes <= np.iinfo(d).max]))
    ignored = maybe(draw, "default", 0, n_classes, -1, None)
    if ignored == "default":
        ignored = -100
    elif ignored is not None or draw(st.booleans()):
        options["ignore_index"] = ignored
    y = y.astype(dtype)
    if ignored is not None and np.iinfo(dtype).min <= ignored <= np.iinfo(dtype).max:
        y[rng.random(y.size) < 0.3] = ignored
    return y.reshape(batch)


def distributions(draw, rng, x, y):
    """Target probabilities around labels y: any, one-hot, with zeros, far from a sum of 1."""
    kind = draw(st.sampled_from(["any", "one-hot", "some zero", "one class", "unnormalised"]))
    hot = np.arange(x.shape[1]) == y[:, None]
    q = rng.gamma(0.3, size=x.shape) + 1e-30
    if kind == "one-hot":
        q = hot.astype(float)
    elif kind == "one class":
        q = hot * rng.uniform(0.1, 3, x.shape)
    elif kind == "some zero":
        q = q * (rng.random(x.shape) < 0.5) + 0.1 * hot
    if kind not in ("unnormalised", "one class", "one-hot"):
        q /= np.maximum(q.sum(axis=1, keepdims=True), 1e-3)
    return q.astype(draw(st.sampled_from(DTYPES)))


def row_weights(draw, rng, batch, n_classes, may_be_signed):
    """What a row, and a class, counts: as arrays of an argument's name."""
    for name, shape in (("weight", (n_classes,)), ("sample_weight", batch)):
        dtype = maybe(draw, *WEIGHT_DTYPES)
        if dtype is not None:
            kinds = st.sampled_from(WEIGHT_KINDS if name in may_be_signed else WEIGHT_KINDS[:-1])
            yield name, in_memory(rng, weights(rng, shape, draw(kinds), dtype), draw(LAYOUTS))


def rows_case(draw, names, first, options, kinds=tuple(KINDS), soft=False, values=None):
    """A call on rows of classes; `values` makes other rows than logits."""
    rng = np.random.default_rng(draw(SEEDS))
    batch, n_classes, axis = shape_of_rows(draw)
    n_rows = int(np.prod(batch))
    options |= draw(REDUCTIONS)
    x, y = (values or logits)(draw, rng, n_rows, n_classes, **({} if values else {"kinds": kinds}))
    options["axis"] = axis - draw(st.sampled_from([0, len(batch) + 1]))
    is_soft = soft and draw(st.booleans())

    def classes_at_axis(a):
        return np.moveaxis(a.reshape(*batch, n_classes), -1, axis)

    arrays = {first: in_memory(rng, classes_at_axis(x), draw(LAYOUTS))}
    if is_soft:
        target = classes_at_axis(distributions(draw, rng, x, y))
    else:
        target = labels(draw, rng, y, batch, n_classes, options)
    arrays["target"] = in_memory(rng, target, draw(LAYOUTS))
    mean = options.get("reduction", "mean") == "mean" and "normalizer" not in options
    signed = set() if mean else {"sample_weight"} if is_soft or "label_smoothing" in options else SIGNED
    arrays |= dict(row_weights(draw, rng, batch, n_classes, signed))
    return Case(names, arrays, options, rng)


@st.composite
def cross_entropies(draw):
    options = {}
    for name, values in (
        ("label_smoothing", (0.1, 0.75, 1.0)),
        ("z_loss", (1e-4, 0.3)),
        ("temperature", (0.07, 1.3, 8.0)),
        ("softcap", (1.5, 30.0)),
    ):
        value = maybe(draw, *values)
        if value is not None:
            options[name] = value
    names = ("cross_entropy", "cross_entropy_and_grad", "cross_entropy_and_hess")
    return rows_case(draw, names, "logits", options, soft=True)


@st.composite
def focal_losses(draw):
    options = {"gamma": draw(st.sampled_from([0, 0.5, 1, 2, 5]) | st.floats(0, 8))}
    return rows_case(draw, ("focal_loss", "focal_loss_and_grad"), "logits", options)


@st.composite
def hinge_losses(draw):
    options = {
        "kind": draw(st.sampled_from(["one_vs_rest", "multi_margin", "crammer_singer"])),
        "p": draw(st.sampled_from([1, 2])),
        "margin": draw(st.sampled_from([1.0, 0.25, 0, -2, 1e18]) | st.floats(-30, 30)),
    }
    return rows_case(draw, ("hinge_loss", "hinge_loss_and_grad"), "logits", options)


MARGINS = (
    *((1, 0, 0), (1, 0.5, 0), (1, 0, 0.35), (4, 0, 0), (1, 0.3, 0.2), (1.5, 0.25, 0.125), (3, 0.5, 0.1)),
    *((1, 3.125, 0), (1, 4, 0), (1, 7.5, 0.25), (1, 1e-8, 0), (1, -0.5, 0), (1, -4, 0)),
    *((2, 4, 0), (1.5, -2, 0)),
)


def cosines(draw, rng, n_rows, n_classes):
    x = rng.uniform(-1, 1, (n_rows, n_classes))
    y = rng.integers(0, max(n_classes, 1), n_rows)
    kind = draw(st.sampled_from(["uniform", "near the ends", "confident", "wrong", "ends", "NaN"]))
    near_1 = 1 - 10.0 ** rng.uniform(-17, -1, x.shape)
    hot = np.arange(n_classes) == y[:, None]
    if kind == "near the ends":
        x = near_1 * rng.choice([-1, 1], x.shape)
    elif kind in ("confident", "wrong"):
        x = np.where(hot == (kind == "confident"), near_1, -near_1)
    elif kind == "ends":
        x = rng.choice([-np.inf, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, np.inf], x.shape)
    elif kind == "NaN":
        x[rng.random(x.shape) < 0.05] = np.nan
    return x.astype(draw(st.sampled_from(DTYPES))), y


@st.composite
def margins(draw):
    options = dict(zip(("margin1", "margin2", "margin3"), draw(st.sampled_from(MARGINS)), strict=True))
    options["scale"] = draw(st.sampled_from([1, 16, 64.0, 1000]))
    names = ("margin_cross_entropy", "margin_cross_entropy_and_grad")
    return rows_case(draw, names, "cosine", options, values=cosines)


@st.composite
def log_probabilities(draw):
    return rows_case(draw, ("nll_loss",), "log_probs", {})


# ---- Elements ------------------------------------------------------------------------------------


def elements(draw):
    n = draw(st.sampled_from([*FEW, *FEW, 0, 64, 65, 1023, 1025, 4096, 9001]))
    batch = draw(st.sampled_from([b for b in BATCHES if np.prod(b) * n <= MOST] or [()]))
    return draw(st.sampled_from([(*batch, n), (n, *batch), batch]))


def broadcastable(draw, rng, shape):
    """A shape that broadcasts to the given one."""
    if draw(st.booleans()):
        return shape
    kept = shape[int(rng.integers(len(shape) + 1)) :]
    return tuple(n if rng.random() < 0.6 else 1 for n in kept)


def element_logits(rng, shape, dtype):
    if dtype.kind in "biu":
        return rng.integers(0, 2, shape).astype(dtype)
    end = 750 if dtype == np.float64 else 106
    x = rng.choice([0.1, 3, 20, end], shape) * rng.normal(size=shape)
    special = [0, -0.0, np.inf, -np.inf, np.nan, largest(dtype), -largest(dtype), end, -end]
    special += [float(ml_dtypes.finfo(dtype).smallest_subnormal)]
    with np.errstate(over="ignore"):
        return np.where(rng.random(shape) < 0.1, rng.choice(special, shape), x).astype(dtype)


def element_targets(draw, rng, shape):
    dtype = draw(st.sampled_from((*DTYPES, *DTYPES, *INTEGERS, np.dtype("?"))))
    if dtype.kind in "biu" or draw(st.booleans()):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.choice([0, 1e-30, 1e-5, 0.3, 0.5, 0.9, 1 - 2.0**-20, 1], shape).astype(dtype)


def elements_case(draw, names, first, options, x=None):
    rng = np.random.default_rng(draw(SEEDS))
    shape = elements(draw)
    options |= draw(REDUCTIONS)
    dtype = draw(st.sampled_from(LOGIT_DTYPES))
    arrays = {first: in_memory(rng, (x or element_logits)(rng, shape, dtype), draw(LAYOUTS))}
    target = element_targets(draw, rng, broadcastable(draw, rng, shape))
    arrays["target"] = in_memory(rng, target, draw(LAYOUTS))
    for name in ("weight", "pos_weight") if "hess" in names[-1] else ("weight",):
        dtype = maybe(draw, *WEIGHT_DTYPES)
        if dtype is not None:
            kind = draw(st.sampled_from(WEIGHT_KINDS[: 5 if name == "pos_weight" else 6]))
            some = weights(rng, broadcastable(draw, rng, shape), kind, dtype)
            arrays[name] = in_memory(rng, some, draw(LAYOUTS))
    return Case(names, arrays, options, rng)


@st.composite
def binary_losses(draw):
    name = "binary_cross_entropy_with_logits"
    return elements_case(draw, (name, f"{name}_and_grad", f"{name}_and_hess"), "logits", {})


@st.composite
def binary_focal_losses(draw):
    options = {"gamma": draw(st.sampled_from([0, 0.5, 1, 2, 2.7, 3, 4, 5]))}
    alpha = maybe(draw, 0, 0.25, 1)
    if alpha is not None:
        options["alpha"] = alpha
    return elements_case(draw, ("binary_focal_loss", "binary_focal_loss_and_grad"), "logits", options)


def probabilities(rng, shape, dtype):
    if dtype.kind in "biu":
        return rng.integers(0, 2, shape).astype(dtype)
    p = rng.choice([0, 1, 0.5, 1e-3, 1e-30], shape) * rng.random(shape)
    p = np.where(rng.random(shape) < 0.3, 1 - np.exp(rng.uniform(-36, 0, shape)), p)
    return np.where(rng.random(shape) < 0.1, rng.integers(0, 2, shape), p).astype(dtype)


@st.composite
def binary_probabilities(draw):
    return elements_case(draw, ("binary_cross_entropy",), "probs", {}, x=probabilities)
