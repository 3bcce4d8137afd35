"""What the twin says of a drawn case: for each function intervals in which its results must lie."""

import ml_dtypes
import numpy as np
from bounds import (
    HESS_ULP,
    SOFTMAX_ULP,
    Interval,
    anything,
    binary_focal_factor,
    binary_scale,
    bound_of,
    derivative_factor,
    factors_scale,
    focal_grad_bound,
    focal_loss_bound,
    hessian_scale,
    is_hard,
    log_sum_scale,
    loss_factor,
    margin_scales,
    mean_weight,
    native,
    scales,
    tiny,
    within,
    within_ulp,
)
from conftest import GRAD_ULP, LOSS_ULP, compute_dtype

from fastce import reference

# Nothing is promised of subnormal sums of terms, nor of what a weight makes of exps that count as 0.
WEIGHTS = {"weight", "sample_weight", "pos_weight"}
# A sum, or its terms on the way, that leave the numbers of float64 don't come back.
MOST_OF_A_SUM = 2.0**1022


def logits_dtype(a):
    """Of gradients: integers and bools become float64."""
    return np.dtype(np.float64) if a.dtype.kind in "biu" else native(a)


def reduced(options, dtype, bound, rows, scale, total, divisor, exempt=None):
    """Of the loss: of rows, of their sum, of their mean."""
    if options.get("reduction") == "none":
        return within_ulp(dtype, rows, bound, scale, exempt)
    # The rows' errors, in one float64 sum, and of rows that are subnormal.
    with np.errstate(all="ignore"):
        size = np.sum(abs(rows) if scale is None else scale) / abs(divisor)
        size += np.longdouble(tiny(dtype)) * max(1, rows.size) / min(1, abs(divisor) or 1)
        eps = bound * float(np.finfo(dtype).eps) + (rows.size + 2) * 2.0**-52
        finite = np.sum(np.where(np.isfinite(rows), abs(rows) if scale is None else scale, 0))
        if not np.isnan(total) and finite >= MOST_OF_A_SUM:
            return anything(())
    return within(np.dtype(np.float64), total, eps * size)


def divisor_of(options, of_mean):
    if options.get("reduction", "mean") != "mean":
        return 1.0
    return options.get("normalizer", of_mean)


def none(options):
    return {k: v for k, v in options.items() if k != "normalizer"} | {"reduction": "none"}


def cross_entropy(arrays, options):
    x, target = arrays["logits"], arrays["target"]
    dtype = logits_dtype(x)
    row = compute_dtype(dtype)
    given = options | {k: a for k, a in arrays.items() if k not in ("logits", "target")}
    how = {k: given.pop(k) for k in ("reduction", "normalizer") if k in given}
    rows = reference.cross_entropy(x, target, **given, reduction="none")
    total, grad, hess = reference.cross_entropy_and_hess(x, target, **given, **how)
    loss_scale, grad_scale = scales(x, target, given, rows, grad, **how)
    factor, divisor = derivative_factor(target, given), divisor_of(how, mean_weight(target, given))
    exempt = row if arrays.keys() & WEIGHTS or not is_hard(target, given) else None
    loss = reduced(
        how, row, LOSS_ULP[row] * loss_factor(target, given), rows, loss_scale, total, divisor, exempt
    )
    size = hessian_scale(hess, grad_scale, given)
    gradient = within_ulp(dtype, grad, bound_of(GRAD_ULP, dtype, factor), grad_scale, exempt)
    hessian = within_ulp(dtype, hess, bound_of(HESS_ULP, dtype, factor), size, row)
    # A p_j, or 1 - p_j, that is subnormal has few digits, whatever multiplies it.
    with np.errstate(all="ignore"):
        least = tiny(row) * largest_factor(given) / min(abs(divisor) or 1, 1)
    few, loose = size < least, within(dtype, hess, 2 * least)
    hessian = Interval(np.where(few, loose.low, hessian.low), np.where(few, loose.high, hessian.high))
    if divisor == 0 and not is_hard(target, given):  # terms that the label's weight of 0 does not take out
        loss, gradient, hessian = (anything(e.low.shape) for e in (loss, gradient, hessian))
    elif not is_hard(target, given) and (dtype == np.float64 or "weight" in given):
        # Terms beyond the largest number: their sum may be infinite or NaN, or not.
        with np.errstate(invalid="ignore"):
            most = 2.0**980 if dtype == np.float64 else 2.0**90
            huge = (np.isfinite(x) & (abs(x.astype(float)) > most)).any(axis=given["axis"])
        loss = loss.but_where(huge if how.get("reduction") == "none" else huge.any())
        gradient, hessian = (e.but_where(np.expand_dims(huge, given["axis"])) for e in (gradient, hessian))
    return {
        "cross_entropy": (loss,),
        "cross_entropy_and_grad": (loss, gradient),
        "cross_entropy_and_hess": (loss, gradient, hessian),
    }


def largest_factor(options):
    """Of p_j (1 - p_j) in a Hessian: weights, 1 / T^2; at least 1."""
    factor = max(1, options.get("temperature", 1) ** -2) * (1 + 2 * options.get("z_loss", 0))
    for name in ("weight", "sample_weight"):
        factor *= np.max(abs(np.asarray(options.get(name, 1), float)), initial=1)
    return factor


def focal_loss(arrays, options):
    x, target = arrays["logits"], arrays["target"]
    dtype, gamma = logits_dtype(x), options["gamma"]
    given = options | {k: a for k, a in arrays.items() if k not in ("logits", "target")}
    rows = reference.focal_loss(x, target, **none(given))
    total, grad = reference.focal_loss_and_grad(x, target, **given)
    row = compute_dtype(dtype)
    divisor = divisor_of(options, mean_weight(target, given))
    bound = focal_loss_bound(dtype, gamma)
    if options.get("reduction") == "none":
        loss = within_ulp(row, rows, bound, subnormal=row)
    else:
        loss = reduced(options, row, bound, rows, None, total, divisor)
    if dtype == np.float64:  # a loss beyond the largest number does not come back by a weight
        huge = (
            np.nanmax(abs(x.astype(float)), axis=options["axis"], initial=0, where=np.isfinite(x))
            >= MOST_OF_A_SUM
        )
        loss = loss.but_where(huge if options.get("reduction") == "none" else huge.any())
    gradient = within_ulp(dtype, grad, focal_grad_bound(dtype, gamma), subnormal=row)
    return {"focal_loss": (loss,), "focal_loss_and_grad": (loss, gradient)}


def hinge_loss(arrays, options):
    x, target, axis = arrays["logits"], arrays["target"], options["axis"]
    dtype = logits_dtype(x)
    given = options | {k: a for k, a in arrays.items() if k not in ("logits", "target")}
    rows = reference.hinge_loss(x, target, **none(given))
    total, grad = reference.hinge_loss_and_grad(x, target, **given)
    row = compute_dtype(dtype)
    divisor = divisor_of(options, mean_weight(target, given))
    loss = reduced(options, row, LOSS_ULP[row], rows, None, total, divisor, row)
    gradient = within_ulp(dtype, grad, GRAD_ULP[dtype], subnormal=row)
    if dtype == np.float64:  # a term beyond the largest number does not come back by a weight
        most = MOST_OF_A_SUM if options["p"] == 1 else 2.0**500
        huge = (np.isfinite(x) & (abs(x.astype(float)) >= most)).any(axis=axis)
        loss = loss.but_where(huge if options.get("reduction") == "none" else huge.any())
        gradient = gradient.but_where(np.expand_dims(huge, axis))
    return {"hinge_loss": (loss,), "hinge_loss_and_grad": (loss, gradient)}


def margin_cross_entropy(arrays, options):
    x, target = arrays["cosine"], arrays["target"]
    dtype, axis = logits_dtype(x), options["axis"]
    row = compute_dtype(dtype)
    given = options | {k: a for k, a in arrays.items() if k not in ("cosine", "target")}
    margins = {k: options[k] for k in ("scale", "margin1", "margin2", "margin3")}
    rows = reference.margin_cross_entropy(x, target, **none(given))
    total, grad = reference.margin_cross_entropy_and_grad(x, target, **given)
    divisor = divisor_of(options, mean_weight(target, given))
    grad = np.where(abs(x.astype(np.longdouble)) > 1, 0, grad)  # also where it is divided by 0

    # The scales are those of rows that count once.
    kept = (
        np.ones(target.shape, bool)
        if given.get("ignore_index", -100) is None
        else (target != given.get("ignore_index", -100))
    )
    y = np.where(kept, target, 0).astype(np.intp)
    flat = np.moveaxis(x, axis, -1).reshape(y.size, x.shape[axis])
    one, one_grad = reference.margin_cross_entropy_and_grad(flat, y.ravel(), **margins, reduction="none")
    with np.errstate(all="ignore"):
        loss_scale, sizes = margin_scales(flat, y.ravel(), one, one_grad, **margins)
        w = np.asarray(given.get("sample_weight", 1.0), np.longdouble) * np.ones(y.shape)
        if "weight" in given:
            w = w * np.asarray(given["weight"], np.longdouble)[y]
        w = abs(np.where(kept, w, 0))
        loss_scale = np.maximum(abs(rows), np.where(w == 0, 0, loss_scale.reshape(y.shape) * w))
        loss_scale = np.where(w == 0, 0, np.maximum(loss_scale, tiny(row)))  # exps that are subnormal
        sizes = np.where(w.reshape(-1, 1) == 0, 0, sizes * (w / abs(divisor)).reshape(-1, 1))
    sizes = np.moveaxis(sizes.reshape(*y.shape, -1), -1, axis) if x.size else np.zeros(x.shape)
    loss = reduced(options, row, LOSS_ULP[row], rows, loss_scale, total, divisor)
    gradient = within_ulp(dtype, grad, GRAD_ULP[dtype], np.maximum(abs(grad), sizes), subnormal=row)
    # A probability that is subnormal has few digits, and a factor before it.
    with np.errstate(invalid="ignore"):
        factor = tiny(row) * max(1, options["scale"]) * np.max(w, initial=1) / min(abs(divisor) or 1, 1)
        gradient = gradient.but_where((grad != 0) & (abs(grad) < factor))
    return {"margin_cross_entropy": (loss,), "margin_cross_entropy_and_grad": (loss, gradient)}


def nll_loss(arrays, options):
    x, target = arrays["log_probs"], arrays["target"]
    given = options | {k: a for k, a in arrays.items() if k not in ("log_probs", "target")}
    row = compute_dtype(logits_dtype(x))
    rows, total = reference.nll_loss(x, target, **none(given)), reference.nll_loss(x, target, **given)
    divisor = divisor_of(options, mean_weight(target, given))
    return {"nll_loss": (reduced(options, row, LOSS_ULP[row], rows, None, total, divisor),)}


# ---- Elements ------------------------------------------------------------------------------------


def binary_cross_entropy_with_logits(arrays, options):
    x, y = arrays["logits"], arrays["target"]
    dtype = logits_dtype(x)
    row = compute_dtype(dtype)
    given = options | {k: a for k, a in arrays.items() if k not in ("logits", "target")}
    name = "binary_cross_entropy_with_logits"
    rows = reference.binary_cross_entropy_with_logits(x, y, **none(given))
    total, grad, hess = reference.binary_cross_entropy_with_logits_and_hess(x, y, **given)
    divisor = divisor_of(options, x.size)
    exempt = row if arrays.keys() & WEIGHTS else None
    loss = reduced(options, row, LOSS_ULP[row], rows, None, total, divisor, exempt)
    weight, pos_weight = (np.asarray(given.get(k, 1.0), np.longdouble) for k in ("weight", "pos_weight"))
    with np.errstate(all="ignore"):
        scale = np.maximum(abs(grad), binary_scale(x, y, weight, pos_weight) / (abs(divisor) or np.nan))
    gradient = within_ulp(dtype, grad, GRAD_ULP[dtype], scale, exempt)
    hessian = within_ulp(dtype, hess, GRAD_ULP[dtype], subnormal=exempt)
    return {
        name: (loss,),
        f"{name}_and_grad": (loss, gradient),
        f"{name}_and_hess": (loss, gradient, hessian),
    }


def binary_focal_loss(arrays, options):
    """Of soft targets relative to the largest that the gradient's terms can be together."""
    x, y = arrays["logits"], arrays["target"].astype(np.longdouble)
    dtype, gamma = logits_dtype(x), options["gamma"]
    row = compute_dtype(dtype)
    given = options | {k: a for k, a in arrays.items() if k not in ("logits", "target")}
    rows = reference.binary_focal_loss(x, y.astype(float), **none(given))
    total, grad = reference.binary_focal_loss_and_grad(x, y.astype(float), **given)
    divisor, factor = divisor_of(options, x.size), binary_focal_factor(dtype, gamma, y)
    by_row = LOSS_ULP[row] * np.broadcast_to(factor, x.shape)
    bound = by_row if options.get("reduction") == "none" else by_row.max(initial=1)
    loss = reduced(options, row, bound, rows, None, total, divisor, row)
    with np.errstate(all="ignore"):
        weight = np.asarray(given.get("weight", 1.0), np.longdouble) / (abs(divisor) or np.nan)
        soft = (1 + gamma) * (1 + abs(x.astype(np.longdouble))) * abs(weight)
        soft = np.where(np.isfinite(soft), soft, abs(weight))
        scale = np.where((y == 0) | (y == 1), abs(grad), np.maximum(abs(grad), soft))
    bound = GRAD_ULP[dtype] + LOSS_ULP[row] * (factor - 1)
    gradient = within_ulp(dtype, grad, bound, scale, row)
    return {"binary_focal_loss": (loss,), "binary_focal_loss_and_grad": (loss, gradient)}


def binary_cross_entropy(arrays, options):
    p, y = arrays["probs"], arrays["target"]
    row = compute_dtype(logits_dtype(p))
    given = options | {k: a for k, a in arrays.items() if k not in ("probs", "target")}
    rows, total = (
        reference.binary_cross_entropy(p, y, **none(given)),
        reference.binary_cross_entropy(p, y, **given),
    )
    divisor = divisor_of(options, p.size)
    return {"binary_cross_entropy": (reduced(options, row, LOSS_ULP[row], rows, None, total, divisor),)}


# ---- SciPy's -------------------------------------------------------------------------------------


def softmaxes(arrays, options):
    x = arrays["x"]
    dtype = logits_dtype(x)
    row = compute_dtype(dtype)
    within = {
        name: within_ulp(dtype, getattr(reference, name)(x, **options), SOFTMAX_ULP[dtype], subnormal=row)
        for name in ("softmax", "log_softmax")
    }
    p, log_p = within.values()  # a distribution
    at_most_1 = np.where(p.high < np.inf, np.minimum(p.high, 1), p.high)
    at_most_0 = np.where(log_p.high < np.inf, np.minimum(log_p.high, 0), log_p.high)
    return {
        "softmax": (Interval(np.maximum(p.low, 0), at_most_1),),
        "log_softmax": (Interval(log_p.low, at_most_0),),
    }


def dtype_with_factors(a, b):
    """SciPy's: integers beside a float are no float64 before they are promoted."""
    if {a.dtype.name, b.dtype.name} == {"float16", "bfloat16"}:
        return np.dtype(np.float32)
    integers = [x.dtype.kind in "biu" for x in (a, b)]
    if all(integers):
        return np.dtype(np.float64)
    try:
        return np.promote_types(a.dtype, b.dtype)
    except TypeError:  # of bfloat16 and integers of two bytes and more
        return np.dtype(np.float64)


def logsumexp(arrays, options):
    a, b = arrays["a"], arrays.get("b")
    dtype = logits_dtype(a)
    axis = options.get("axis")
    exact, sign = reference.logsumexp(a, axis, b, options.get("keepdims", False), return_sign=True)
    exact, sign = np.asarray(exact), np.asarray(sign)
    axes = tuple(range(a.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)

    def rows(x):
        """The axes summed over as one, the last."""
        x = np.moveaxis(x, axes, range(-len(axes), 0))
        return x.reshape(*exact.shape, int(np.prod(x.shape[x.ndim - len(axes) :])))

    with np.errstate(all="ignore"):
        if b is None:
            scale, whole = log_sum_scale(rows(a), exact), np.zeros(exact.shape)
        else:
            dtype = dtype_with_factors(a, b)
            x, factors = np.broadcast_arrays(a, b)
            scale, whole = factors_scale(rows(x), rows(factors).astype(np.float64), exact)
        # NaN: nothing but infinities, or no terms at all.
        known = (whole < 2.0**-4 / np.finfo(compute_dtype(dtype)).eps) | np.isnan(whole)
    result = within_ulp(dtype, exact, SOFTMAX_ULP[dtype], scale, dtype)
    # Where all digits cancel, the sign is that of the rounding error.
    result = result.but_where(~known)
    if not options.get("return_sign"):
        nan = (sign < 0) & known & (exact != -np.inf)
        return {"logsumexp": (Interval(*(np.where(nan, np.nan, e) for e in result)),)}
    signs = Interval(*(np.where(known, sign, s) for s in (-1, 1)))
    return {"logsumexp": (result, signs)}


# ---- Scores and samples --------------------------------------------------------------------------


def exactly(a):
    return Interval(*[np.asarray(a, np.longdouble)] * 2)


def token_logprobs(arrays, options):
    """Bounds are those of docs and `tests/inference`; with a softcap, of the terms that cancel."""
    x, tokens = arrays["x"], arrays["tokens"]
    row = compute_dtype(logits_dtype(x))
    exact = reference.inference.token_logprobs(x, tokens, **options)
    scale, factor = (None, None, None), 1
    if "softcap" in options:
        factor, term = 1.5, options["softcap"] / options.get("temperature", 1)
        largest = np.where(exact.rank == 0, exact.logprob, np.maximum(term, abs(exact.logprob)))
        tops = np.maximum(term, abs(exact.top_logprobs))
        scale = (largest, np.maximum(term * (1 + 2 * exact.entropy), exact.entropy), tops)
    return {
        "token_logprobs": (
            within_ulp(row, exact.logprob, factor * LOSS_ULP[row], scale[0]),
            exactly(exact.rank),
            within_ulp(row, exact.entropy, factor * 2 * LOSS_ULP[row], scale[1]),
            exactly(exact.top_tokens),
            within_ulp(row, exact.top_logprobs, factor * LOSS_ULP[row], scale[2]),
        )
    }


def top_k(arrays, options):
    return {"top_k": tuple(map(exactly, reference.inference.top_k(arrays["x"], **options)))}


def sample(arrays, options):
    """Of temperature 0: the first of the largest, for sure; none where the row has no softmax."""
    x = np.moveaxis(arrays["x"].astype(np.longdouble), options["axis"], -1)
    if x.shape[-1] == 0:
        return {"sample": (exactly(np.zeros(x.shape[:-1])),) * 2}
    bad = ~np.isfinite(x.max(axis=-1)) | np.isnan(x).any(axis=-1)
    return {"sample": (exactly(np.where(bad, -1, x.argmax(axis=-1))), exactly(np.where(bad, np.nan, 0)))}


# ---- Information ---------------------------------------------------------------------------------


def information(arrays, options):
    """Within 4 ULP of the sum of all terms' sizes; the divergence within 12 of the larger of its two sums."""
    p = arrays["p"]
    q = arrays.get("q", p)
    wide = np.result_type(
        *(np.float32 if a.dtype.itemsize <= 4 and a.dtype.kind not in "biu" else np.float64 for a in (p, q))
    )
    dtype, axis = np.dtype(wide), options.get("axis", -1)
    base = abs(np.log(np.longdouble(options.get("base", np.e))))
    P, Q = np.broadcast_arrays(p.astype(np.longdouble), q.astype(np.longdouble))
    expected = {}
    with np.errstate(all="ignore"):

        def between(exact, size, bound=4):
            size = np.maximum(size, tiny(dtype))
            return within_ulp(dtype, exact, bound, np.where(np.isfinite(exact), size, exact))

        if "q" not in arrays:
            exact = reference.information.self_information(p, base=options.get("base"))
            expected["self_information"] = (between(exact, abs(exact)),)
            if p.ndim == 0:
                return expected
            exact = reference.information.entropy(p, **options)
            size = np.where(P == 0, 0, abs(P * np.log(P))).sum(axis=axis) / base
            return expected | {"entropy": (between(exact, size),)}
        exact = reference.information.cross_entropy(p, q, **options)
        size = np.where(P == 0, 0, abs(P * np.log(Q))).sum(axis=axis) / base
        expected["cross_entropy"] = (between(exact, size),)
        exact = reference.information.kl_divergence(p, q, **options)
        excess = abs((P - Q).sum(axis=axis)) / base
        size = np.maximum(excess, abs(exact - (P - Q).sum(axis=axis) / base))
        size = size + P.shape[axis] * float(np.finfo(np.float64).tiny) / base
        return expected | {"kl_divergence": (between(exact, size, 12),)}


def log_loss(arrays, options):
    """Of one column of probabilities, that of the greater label; or of one for each."""
    y, given = arrays["y_true"], arrays["y_proba"]
    eps = options.get("eps", "auto")
    eps = float(np.finfo(given.dtype).eps) if eps == "auto" else eps
    p = np.clip(given.astype(float), eps, 1 - eps).astype(np.longdouble)
    with np.errstate(divide="ignore"):
        rows = -np.log(p[np.arange(y.size), y]) if p.ndim == 2 else -np.where(y == 1, np.log(p), np.log1p(-p))
    weight = np.asarray(arrays.get("sample_weight", np.ones(y.size)), np.longdouble)
    with np.errstate(invalid="ignore"):
        total = (weight * rows).sum() / (weight.sum() if options["normalize"] else 1)
    return {"log_loss": (within(np.dtype(np.float64), total, (4 + y.size) * 2.0**-52 * total),)}


def linear_cross_entropy(arrays, options):
    """Within the rounding of what is added up: products, then gradients times features and weights."""
    x, w, y = (arrays[k] for k in ("input", "linear_weight", "target"))
    b = arrays.get("linear_bias")
    given = {k: v for k, v in options.items() if k != "memory"}
    given |= {k: a for k, a in arrays.items() if k not in ("input", "linear_weight", "target")}
    total, grads = reference.linear_cross_entropy_and_grad(x, w, y, **given)
    rows = reference.linear_cross_entropy(x, w, y, **none(given))
    row = np.dtype(np.float64 if np.float64 in (native(x), native(w)) else np.float32)
    eps, of_x, of_w = float(np.finfo(row).eps), abs(x.astype(float)), abs(w.astype(float))
    # What a logit is off by, in eps: half of its terms, were they added up one after the other and all
    # roundings of one sign; half of that where there are lanes or signs.
    sizes = of_x @ of_w.T + (0 if b is None else abs(b.astype(float)))
    logit = (4 + x.shape[1] / 4) * sizes.max(initial=1)
    by_row = np.abs(given.get("sample_weight", np.ones(len(x)))).astype(float) + abs(rows)
    divisor = divisor_of(options, mean_weight(y, {"axis": -1} | given))
    with np.errstate(all="ignore"):
        size = by_row if options.get("reduction") == "none" else by_row.sum() / abs(divisor)
        z = x.astype(float) @ w.T.astype(float) + (0 if b is None else b.astype(float))
        without_bias = {k: v for k, v in given.items() if k != "linear_bias"}
        g = abs(reference.cross_entropy_and_grad(z, y, **without_bias)[1]).astype(float)
        # A logit's error is one of its probability, however near to its smoothed target that is.
        hard = without_bias | {"label_smoothing": 0.0}
        g = np.maximum(g, abs(reference.cross_entropy_and_grad(z, y, **hard)[1]).astype(float))
        g = np.nan_to_num(g) + eps * g.max(initial=0)
    of_loss = row if options.get("reduction") == "none" else np.dtype(np.float64)
    loss = within(of_loss, total, eps * logit * size)
    intervals = [loss]
    parts = ((x, g @ of_w), (w, g.T @ of_x), (b, g.sum(axis=0)))
    for (a, terms), exact in zip(parts, grads, strict=True):
        if a is None:
            continue
        own = float(ml_dtypes.finfo(native(a)).eps)
        allowed = (eps * (logit + len(w) + 16) + own) * terms + own * tiny(native(a))
        intervals.append(within(native(a), exact, allowed))
    return {"linear_cross_entropy": (loss,), "linear_cross_entropy_and_grad": tuple(intervals)}
