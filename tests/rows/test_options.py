"""All options of cross-entropy against the reference, in combinations and layouts that hypothesis draws."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from bounds import (
    HESS_ULP,
    bound_of,
    derivative_factor,
    hessian_scale,
    loss_factor,
    mean_weight,
    native,
    scales,
)
from conftest import DTYPES, GRAD_ULP, KINDS, LOSS_ULP, assert_ulp, bits, compute_dtype, nasty
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastce
from fastce import reference
from fastce.reference import ulp_distance

CLASS_COUNTS = (1, 2, 3, 10, 33, 64, 65, 113, 128, 129, 1000, 8192, 8193, 16400)
# The values of each option; {} where it is not given.
SMOOTHING = [{}, {}, *({"label_smoothing": value} for value in (0.1, 0.5, 0.75, 1.0))]
Z_LOSS = [{}, {}, *({"z_loss": value} for value in (1e-4, 0.3))]
TEMPERATURE = [{}, {}, *({"temperature": value} for value in (0.07, 1.3, 8.0))]
SOFTCAP = [{}, {}, {}, *({"softcap": value} for value in (1.5, 30.0))]
REDUCTIONS = [{}, {"normalizer": 7.5}, {"reduction": "sum"}, {"reduction": "none"}]
TARGET_DTYPES = (*DTYPES, np.dtype(">f4"), np.dtype(">f8"))
LABEL_DTYPES = ("i8", "i4", "i2", "u2", "u8", ">i4", ">u8")
# Sums and quotients of the largest numbers overflow; they are for losses of one term.
OF_TERMS = tuple(kind for kind in KINDS if "lowest" not in kind and kind != "extreme")


def probabilities(draw, rng, x, y, kind):
    """Targets of the shape of `x`, its classes last, around the labels `y`."""
    hot = np.arange(x.shape[1]) == y[:, None]
    if kind == "one-hot":
        return hot.astype(float)
    q = rng.gamma(0.3, size=x.shape) + draw(st.sampled_from([0, 3])) * hot
    if kind == "some zero":
        q[rng.random(x.shape) < 0.5] = 0
        q[np.isneginf(x.astype(float))] = 0
        q[hot] += 0.1
    return q / np.maximum(q.sum(axis=1, keepdims=True), 1e-3) if draw(st.booleans()) else q


def in_memory(draw, x, axis):
    """The same array, its last axis moved to `axis`, somehow in memory."""
    x = np.moveaxis(x, -1, axis)
    order = draw(st.permutations(range(x.ndim)))
    x = x.transpose(order).copy().transpose(np.argsort(order))
    some, how = draw(st.integers(0, x.ndim - 1)), draw(st.sampled_from(["", "reversed", "strided", "padded"]))
    if how == "reversed":
        x = np.flip(np.flip(x, some).copy(), some)
    elif how == "strided":
        x = np.repeat(x, 2, axis=some)[(slice(None),) * some + (slice(None, None, 2),)]
    elif how == "padded":
        x = np.pad(x, [(1, 2)] * x.ndim)[(slice(1, -2),) * x.ndim]
    swapped = x.dtype.name != "bfloat16" and draw(st.sampled_from([False, False, True]))
    return x.astype(x.dtype.newbyteorder()) if swapped else x


class Problem(NamedTuple):
    logits: Any
    target: Any
    options: dict

    def __repr__(self):
        arrays = (f"{a.dtype} {a.shape}, strides {a.strides}" for a in self[:2])
        return f"<{'; '.join(arrays)}; {self.options}>"


@st.composite
def problems(draw):
    """Logits, target and options of a call: 1 to 4 dimensions."""
    dtype, n_classes = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(CLASS_COUNTS))
    rows = tuple(draw(st.lists(st.integers(1, 5) | st.just(33 if n_classes < 130 else 2), max_size=3)))
    n_rows, axis = int(np.prod(rows)), draw(st.integers(0, len(rows)))
    assume(n_rows * n_classes < 40_000)
    options = {"axis": axis - draw(st.sampled_from([0, len(rows) + 1]))}
    for values in (SMOOTHING, Z_LOSS, TEMPERATURE, SOFTCAP):
        options |= draw(st.sampled_from(values))
    kind = draw(st.sampled_from(["labels", "labels", "labels", "soft", "one-hot", "some zero"]))

    of_one_term = kind == "labels" and not options.keys() & {"label_smoothing", "z_loss", "softcap"}
    rows_of = st.lists(st.sampled_from(tuple(KINDS) if of_one_term else OF_TERMS), min_size=1, max_size=6)
    seed = draw(st.integers(0, 2**16))
    x, y = nasty(dtype, n_rows, n_classes, tuple(draw(rows_of)), seed)
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        options["weight"] = rng.uniform(0.5, 2, n_classes).astype(draw(st.sampled_from(["f4", "f8", ">f8"])))
        if of_one_term and draw(st.booleans()):
            options["weight"][~np.isin(np.arange(n_classes), y)] = np.nan  # of classes that no row has
        elif draw(st.booleans()):
            options["weight"][rng.random(n_classes) < 0.2] = 0
    if draw(st.booleans()):
        options["sample_weight"] = rng.uniform(0.5, 2, rows) * (rng.random(rows) < 0.9)
    if kind == "labels":
        y = y.astype(draw(st.sampled_from(LABEL_DTYPES)))
        if draw(st.booleans()):
            choices = [0, n_classes] if y.dtype.kind == "u" else [-100, -1, 0, n_classes]
            options["ignore_index"] = draw(st.sampled_from(choices))
            y[rng.random(n_rows) < 0.3] = options["ignore_index"]
        target = y.reshape(rows)
    else:
        q = probabilities(draw, rng, x, y, kind).astype(draw(st.sampled_from(TARGET_DTYPES)))
        target = in_memory(draw, q.reshape(*rows, n_classes), axis)
    return Problem(in_memory(draw, x.reshape(*rows, n_classes), axis), target, options)


def assert_elements(actual, exact, bound, scale, label):
    """assert_ulp; a subnormal element, for which nothing is promised, is subnormal or nearly so."""
    assert actual.shape == exact.shape
    size = abs(exact) if scale is None else scale
    normal = np.asarray(size >= float(ml_dtypes.finfo(actual.dtype).smallest_normal))
    normal |= np.isnan(actual.astype(float))
    assert_ulp(actual[normal], exact[normal], bound, None if scale is None else scale[normal], label)
    assert (ulp_distance(actual, exact, scale)[~normal] <= 64).all(), f"subnormal {label}"


@settings(max_examples=60)
@given(problem=problems(), how=st.sampled_from(REDUCTIONS), n_threads=st.sampled_from([None, 1, 3]))
def test_loss_and_gradient(problem, how, n_threads):
    x, target, options = problem
    none = {**options, "reduction": "none"}
    exact, by_row = reference.cross_entropy_and_grad(x, target, **none)
    loss, grad = fastce.cross_entropy_and_grad(x, target, **none, n_threads=n_threads)
    loss_scale, grad_scale = scales(x, target, none, exact, by_row)
    assert loss.dtype == compute_dtype(x.dtype.newbyteorder("="))
    assert grad.dtype == x.dtype
    assert_ulp(loss, exact, LOSS_ULP[loss.dtype] * loss_factor(target, options), loss_scale, "loss")
    bound = bound_of(GRAD_ULP, native(grad), derivative_factor(target, options))
    assert_elements(grad, by_row, bound, grad_scale, "gradient")
    assert bits(fastce.cross_entropy(x, target, **none)) == bits(loss)

    total, reduced = reference.cross_entropy_and_grad(x, target, **options, **how)
    assume(how.get("reduction", "mean") != "mean" or "normalizer" in how or mean_weight(target, options) > 0)
    got, grad = fastce.cross_entropy_and_grad(x, target, **options, **how, n_threads=n_threads)
    scale = scales(x, target, options, exact, reduced, **how)[1]
    assert_elements(grad, reduced, bound, scale, "reduced gradient")
    assert bits(fastce.cross_entropy(x, target, **options, **how)) == bits(got)
    if how != {"reduction": "none"} and np.isfinite(float(total)):
        divisor = {"sum": 1}.get(how.get("reduction"), how.get("normalizer", mean_weight(target, options)))
        # The rows' errors as above, in one float64 sum, and what is nothing beside the smallest number.
        row = np.finfo(loss.dtype)
        size = float(np.sum(abs(exact) if loss_scale is None else loss_scale)) / divisor + float(row.tiny)
        eps = LOSS_ULP[loss.dtype] * loss_factor(target, options) * float(row.eps) + exact.size * 2.0**-52
        assert abs(got - total) <= eps * size
    elif how != {"reduction": "none"}:
        assert bits(got) == bits(float(total))


@settings(max_examples=60)
@given(problem=problems(), how=st.sampled_from(REDUCTIONS))
def test_hessian(problem, how):
    x, target, options = problem
    assume("reduction" in how or "normalizer" in how or mean_weight(target, options) > 0)
    loss, grad, hess = fastce.cross_entropy_and_hess(x, target, **options, **how)
    exact_loss, exact_grad, exact = reference.cross_entropy_and_hess(x, target, **options, **how)
    grad_scale = scales(x, target, options, 0, exact_grad, **how)[1]
    factor = derivative_factor(target, options)
    assert hess.dtype == grad.dtype == x.dtype
    assert_elements(grad, exact_grad, bound_of(GRAD_ULP, native(grad), factor), grad_scale, "gradient")

    size = hessian_scale(exact, grad_scale, options)
    # Where p_j is subnormal in the precision that is computed in, it has few digits.
    least = float(np.finfo(compute_dtype(x.dtype.newbyteorder("="))).tiny)
    kept = np.asarray(size >= least) | np.isnan(exact.astype(float))
    assert_elements(hess[kept], exact[kept], bound_of(HESS_ULP, native(hess), factor), size[kept], "Hessian")
    assert (abs(hess[~kept].astype(float)) <= 2 * least).all()

    if "reduction" in how and how["reduction"] == "none":
        scale = scales(x, target, options, exact_loss, exact_grad, **how)[0]
        assert_ulp(loss, exact_loss, LOSS_ULP[loss.dtype] * loss_factor(target, options), scale, "loss")
    elif np.isfinite(loss):
        assert loss == pytest.approx(fastce.cross_entropy(x, target, **options, **how), rel=1e-5, abs=1e-30)


def test_terms_of_many_classes_apart_in_memory():
    """Their sums go through many chunks of classes, and keep in each what they have lost so far."""
    rng = np.random.default_rng(8)
    x, q = rng.normal(size=(30_000, 9)), rng.uniform(size=(30_000, 9))
    x[:, ::2] -= 40
    x[rng.integers(30_000, size=9), np.arange(9)] = 5
    options = {"axis": 0, "label_smoothing": 0.1, "weight": rng.uniform(0.5, 2, 30_000), "reduction": "none"}
    loss, grad = fastce.cross_entropy_and_grad(x, q, **options)
    exact, exact_grad = reference.cross_entropy_and_grad(x, q, **options)
    loss_scale, grad_scale = scales(x, q, options, exact, exact_grad)
    assert_ulp(loss, exact, LOSS_ULP[loss.dtype], loss_scale, "loss")
    assert_elements(grad, exact_grad, GRAD_ULP[grad.dtype], grad_scale, "gradient")
