"""Where each loss may be off, and by how many ULP: the documented bounds, and the factors of its options."""

from typing import NamedTuple

import ml_dtypes
import numpy as np
from conftest import DTYPES, FLOATS, GRAD_ULP, HALVES, LOSS_ULP, compute_dtype

from fastce import reference
from fastce.reference._arithmetic import FORMATS
from fastce.reference.softmax import largest_terms

# Twice the gradient's: an element is a product of two quotients of sums, p_j and 1 - p_j.
HESS_ULP = {dtype: 2 * GRAD_ULP[dtype] for dtype in FLOATS}
for _half in HALVES:
    HESS_ULP[_half] = 0.5 + 2 * (GRAD_ULP[_half] - 0.5)

# Of softmax and its relatives: the bound of the documentation; a half is rounded once from float32.
SOFTMAXES = ("softmax", "log_softmax")
SOFTMAX_ULP = {dtype: 4 if dtype in FLOATS else GRAD_ULP[dtype] for dtype in DTYPES}


def tiny(dtype):
    """The smallest normal number."""
    return float(ml_dtypes.finfo(dtype).smallest_normal)


def native(a):
    return a.dtype.newbyteorder("=")


def bound_of(bounds, dtype, factor):
    """A bound of a dtype, times a factor but for the rounding to a half."""
    rounding = 0.5 if dtype in HALVES else 0
    return rounding + factor * (bounds[dtype] - rounding)


def in_order(values, x):
    """Whether along the last axis equal x have equal values, a larger x not the smaller; NaN rows pass."""
    order = np.argsort(x, axis=-1, kind="stable")
    x, values = np.take_along_axis(x, order, -1), np.take_along_axis(values, order, -1)
    ties, falls = x[..., 1:] == x[..., :-1], values[..., 1:] < values[..., :-1]
    good = ~falls & (~ties | (values[..., 1:] == values[..., :-1]))
    return bool((good | np.isnan(values).any(axis=-1, keepdims=True)).all())


# ---- Intervals -----------------------------------------------------------------------------------


class Interval(NamedTuple):
    """Between which wide numbers each element of a result must lie; NaN where it must be NaN.

    From NaN to infinity: anything.
    """

    low: np.ndarray
    high: np.ndarray

    def but_where(self, unknown):
        """Anything where that is so."""
        return Interval(np.where(unknown, np.nan, self.low), np.where(unknown, np.inf, self.high))

    def wrong(self, a):
        a = np.asarray(a).astype(np.longdouble)
        inside = (self.low <= a) & (a <= self.high)
        return ~(inside | (np.isnan(self.low) & (np.isnan(a) | np.isinf(self.high))))


def anything(shape):
    return Interval(*(np.full(shape, value, np.longdouble) for value in (np.nan, np.inf)))


@np.errstate(all="ignore")
def within(dtype, exact, allowed):
    """Results of a dtype off by at most `allowed`, infinite from where numbers round to infinity."""
    exact = np.asarray(exact, np.longdouble)
    bits, _, highest = FORMATS[dtype.name]
    overflow = np.ldexp(np.longdouble(2) - np.longdouble(2) ** -(bits + 1), highest)
    allowed = np.where(np.isfinite(exact), allowed, 0)
    low, high = exact - allowed, exact + allowed
    infinity = np.longdouble(np.inf)
    high, low = np.where(high >= overflow, infinity, high), np.where(low <= -overflow, -infinity, low)
    return Interval(np.where(low >= overflow, infinity, low), np.where(high <= -overflow, -infinity, high))


@np.errstate(all="ignore")
def within_ulp(dtype, exact, bound, scale=None, subnormal=None):
    """Results of a dtype within `bound` ULP of the exact ones, or of `scale`: as `assert_ulp`.

    Of what is below the smallest normal number of `subnormal`, a dtype, it is only asked to be so small.
    """
    exact = np.asarray(exact, np.longdouble)
    size = abs(exact if scale is None else np.where(np.isfinite(scale), scale, exact))
    if dtype in HALVES:  # computed in float32, whose terms may be larger than any number of the half
        bits = FORMATS[dtype.name][0]
        computed = off_by(np.dtype(np.float32), size, (bound - 0.5) * 2.0 ** (23 - bits))
        allowed = 0.5 * unit_of(dtype, abs(exact) + computed) + computed
    else:
        allowed = off_by(dtype, size, bound)
    if subnormal is not None:
        allowed = np.where(size < tiny(subnormal), 2 * np.longdouble(tiny(subnormal)), allowed)
    return within(dtype, exact, allowed)


def unit_of(dtype, size):
    bits, lowest, highest = FORMATS[dtype.name]
    return np.ldexp(np.longdouble(1), np.clip(np.frexp(size)[1] - 1, lowest, highest) - bits)


def off_by(dtype, size, bound):
    relative = np.minimum(size / tiny(dtype), 1)
    return unit_of(dtype, size) * np.where(relative < 1, 0.5 + bound * relative, bound)


# ---- Cross-entropy -------------------------------------------------------------------------------


def is_hard(target, options):
    """Whether no term of a row's loss and gradient cancels."""
    if options.keys() & {"label_smoothing", "z_loss", "softcap"}:
        return False
    if target.dtype.kind in "iu":
        return True
    return bool((np.count_nonzero(target.astype(float), axis=options["axis"]) == 1).all())


def scales(x, target, options, loss, grad, **how):
    """Where the ULP of losses and gradients are taken: at the results, or at the largest of their terms."""
    if is_hard(target, options):
        return None, None
    by_row, by_class = largest_terms(x, target, **options, **how)
    return np.maximum(by_row, abs(loss)), np.maximum(by_class, abs(grad))  # a sum may exceed its terms


# Besides what a loss of one term has, d_j is a product of up to three numbers and terms are added up: half
# the bound more. A capped logit's own error is within that. z_loss squares a sum of them, and a derivative
# has the slope's error as well: twice the bound.
def loss_factor(target, options):
    if {"softcap", "z_loss"} <= options.keys():
        return 2
    return 1 if is_hard(target, options) else 1.5


def derivative_factor(target, options):
    return 2 if "softcap" in options else 1 if is_hard(target, options) else 1.5


def hessian_scale(exact, grad_scale, options):
    """All terms are positive but lse's and the curve of a softcap, at most 2 / c times the gradient."""
    terms = 0 if grad_scale is None else grad_scale
    if "softcap" in options:
        return np.maximum(abs(exact), terms * max(1 / options.get("temperature", 1), 2 / options["softcap"]))
    if "z_loss" in options:
        return np.maximum(abs(exact), terms / options.get("temperature", 1))
    return abs(exact)


def mean_weight(target, options):
    """The denominator of the mean."""
    if target.dtype.kind not in "iu":
        rows = np.delete(target.shape, options["axis"])
        return float(np.sum(options.get("sample_weight", np.ones(rows)), dtype=float))
    kept = target != options.get("ignore_index", -100)
    weight = np.ones(target.shape) * np.asarray(options.get("sample_weight", 1), float)
    if "weight" in options:
        weight = weight * options["weight"].astype(float)[np.where(kept, target, 0).astype(int)]
    return float(np.sum(weight[kept]))


# ---- Relatives -----------------------------------------------------------------------------------


# The relative error of 1 - p_y is below one of 2 ULP, in float64 of 4, and counts gamma times in its power.
def focal_loss_bound(dtype, gamma):
    return LOSS_ULP[compute_dtype(dtype)] * (1 + gamma)


def focal_grad_bound(dtype, gamma):
    return bound_of(GRAD_ULP, dtype, 1 + gamma / 2)


# All but the logit of a float32 is in float64. With soft targets a sum of two terms, and one more in 1 - p_t.
def binary_focal_factor(dtype, gamma, target):
    factor = 1 + gamma if dtype == np.float64 else 1
    return np.where((target == 0) | (target == 1), factor, 1.5 * factor)


def margin_scales(x, y, exact, exact_grad, scale, margin1=1.0, margin2=0.5, margin3=0.0):
    """Where the ULP of losses and gradients of rows of cosines are taken.

    The target's logit is a difference of cosines and sines, or of an angle of several half turns, and so
    is its slope, whose divisor may be small. Both are in float64: for other dtypes that error is 2**-29
    times as large.
    """
    dtype = native(x)
    unit = 1.0 if dtype == np.float64 else 2.0**-29
    row = np.arange(len(y))
    c = np.clip(x[row, y].astype(float), -1, 1)
    eps = float(ml_dtypes.finfo(dtype).eps)
    sine = np.maximum(np.sqrt((1 - c) * (1 + c)), np.sqrt(eps))
    turn = margin1 * np.pi + abs(margin2)
    one = margin1 == 1
    size = unit * scale * ((1 + abs(margin2) if one else turn) + abs(margin3))
    slope = abs(np.cos(margin2)) + abs(c * np.sin(margin2)) / sine if one else margin1 * turn / sine
    rest = -np.expm1(-exact)  # 1 - p_y
    sizes = abs(exact_grad) * max(1, size)
    inside = abs(x[row, y].astype(float)) <= 1
    sizes[row, y] = np.maximum(sizes[row, y], unit * scale * rest * slope * max(1, size) * inside)
    return np.maximum(exact, rest * size), sizes


def binary_scale(x, y, weight=1.0, pos_weight=1.0):
    """The larger of the two terms of which the gradient of the binary loss is the difference."""
    wide, y = np.clip(x.astype(np.longdouble), -2000, 2000), y.astype(np.longdouble)
    positive = weight * pos_weight * y / (1 + np.exp(wide))
    return np.maximum(abs(positive), abs(weight * (1 - y) / (1 + np.exp(-wide))))


def log_sum_scale(x, exact):
    """The larger term of m + log s, which may be near 0; `x` with its classes last."""
    m = x.astype(np.longdouble).max(axis=-1, initial=-np.inf)
    terms = np.maximum(abs(m), abs(exact - np.where(np.isfinite(m), m, 0)))
    return np.maximum(terms, abs(exact))


def factors_scale(x, b, exact):
    """The same with factors: also what the sum of all terms without their signs means for the result."""
    whole = np.exp(reference.logsumexp(x, axis=-1, b=abs(b)) - exact)
    used = np.where((b == 0) | ~np.isfinite(x), 0, abs(x.astype(np.longdouble)))
    return np.maximum(np.maximum(abs(exact), used.max(axis=-1, initial=0)), whole), whole
