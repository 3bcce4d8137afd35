"""Arguments damaged so that a call has to be refused: which, and with what exception."""

import numpy as np
from fuzz_memory import Memory, in_memory
from hypothesis import strategies as st
from numpy.exceptions import AxisError

WRITERS = ("_and_grad", "_and_hess", "softmax")


def damages(case, name, data):
    """Some of the ways to spoil this call: arrays, options, arrays to write into, exceptions."""
    some = list(possible(case, name))
    for k in data.draw(st.lists(st.integers(0, len(some) - 1), min_size=1, max_size=4)):
        arrays, options, outs, errors = some[k]
        more = {}
        if name.endswith(WRITERS) and "linear" not in name:  # something that may not be written
            a = case.arrays[next(iter(case.arrays))].a
            dtype = a.dtype if a.dtype.kind not in "biu" else np.dtype(np.float64)
            more["out"] = in_memory(case.rng, np.zeros(a.shape, dtype), int(case.rng.integers(16)))
        yield case.arrays | arrays, case.options | options, more | outs, errors


def possible(case, name):
    rng, first = case.rng, next(iter(case.arrays))
    a = case.arrays[first].a
    by_rows, scipys = "axis" in case.options and "target" in case.arrays, first in ("x", "a")

    def with_array(parameter, value, errors):
        return {parameter: in_memory(rng, value, 0) if value.dtype != object else value}, {}, {}, errors

    def with_options(errors, **options):
        return {}, options, {}, errors

    def with_out(errors, value):
        return {}, {}, {"out": value}, errors

    for n_threads, error in (
        (0, ValueError),
        (-2, ValueError),
        (2**31, ValueError),
        (1.5, TypeError),
        (True, TypeError),
    ):
        yield with_options(error, n_threads=n_threads)
    for parameter in case.arrays:
        for dtype in ("U2", "M8[s]", "O", "g") + (() if scipys else ("D",)):
            if case.arrays[parameter].a.dtype.kind == "b" and dtype == "M8[s]":
                continue
            yield with_array(parameter, np.zeros(case.arrays[parameter].a.shape, dtype), TypeError)
        masked = np.ma.masked_array(case.arrays[parameter].a)
        yield {parameter: Memory(masked, case.arrays[parameter].raw)}, {}, {}, TypeError
    if scipys or by_rows:
        n_dims = a.ndim
        for axis in (n_dims, -n_dims - 1, 2**70):
            yield with_options((AxisError, ValueError), axis=axis)
        for axis in (0.5, "0", True, np.True_, np.ma.masked_array(0, True)):
            yield with_options(TypeError, axis=axis)
    if not scipys:
        yield with_options(ValueError, reduction="average")
        yield with_options(ValueError, reduction="sum", normalizer=1.0)
        for value in (-1.0, np.nan, np.inf, 2**2000, 10**5000, 5e-324):
            yield with_options(ValueError, reduction="mean", normalizer=value)
        for parameter in case.arrays:
            if parameter != first:
                spoilt = case.arrays[parameter].a
                yield with_array(parameter, np.ones((2, *a.shape, 2), spoilt.dtype), ValueError)
    for parameter, value in (
        ("label_smoothing", 1.5),
        ("z_loss", -1e-300),
        ("temperature", 0),
        ("softcap", np.inf),
    ):
        if name.startswith("cross_entropy"):
            yield with_options(ValueError, **{parameter: value})
            for number in ("1", np.array("1"), np.complex64(1), np.ma.masked_array(1.0, True)):
                yield with_options(TypeError, **{parameter: number})
    if "gamma" in case.options:
        yield with_options(ValueError, gamma=-1.0)
        yield with_options(ValueError, gamma=np.inf)
    if name.startswith("hinge_loss"):
        yield with_options(ValueError, kind="hinge")
        yield with_options(ValueError, p=1.5)
        yield with_options(TypeError, p="1")
        yield with_options(ValueError, margin=np.inf)
    if "tokens" in case.arrays:
        yield from of_tokens(case, a, with_array, with_options)
    if by_rows:
        yield from of_rows(case, name, a, with_array, with_options)
    elif not scipys:
        for value in (-0.25, 1.5, np.nan, np.inf, -5e-324):
            y = case.arrays["target"].a
            if y.size and a.size:
                wrong = y.astype(float)
                wrong.flat[rng.integers(y.size)] = value
                yield with_array("target", wrong, ValueError)
    if name.startswith("linear"):
        yield from of_linear(case, with_array, with_options)
    elif name.endswith(WRITERS):
        yield from of_out(case, name, a, with_out)


def of_linear(case, with_array, with_options):
    w, target = case.arrays["linear_weight"].a, case.arrays["target"].a
    yield with_array("linear_weight", np.ones((len(w), w.shape[1] + 1)), ValueError)
    yield with_array("linear_bias", np.ones(len(w) + 1), ValueError)
    yield with_options(TypeError, memory=1.5)
    for value in (len(w), -1, 2**40):
        if target.size and value != case.options.get("ignore_index", -100):
            wrong = target.astype(np.int64)
            wrong.flat[case.rng.integers(target.size)] = value
            yield with_array("target", wrong, IndexError)


def of_tokens(case, a, with_array, with_options):
    tokens, n_classes = case.arrays["tokens"].a, a.shape[case.options["axis"]]
    for value, error in ((n_classes + 1, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        yield with_options(error, top_k=value)
    yield with_options(ValueError, temperature=0)
    yield with_options(ValueError, softcap=np.inf)
    yield with_array("tokens", np.zeros((2, *tokens.shape), tokens.dtype), ValueError)
    for value in (n_classes, -1, 2**40):
        if tokens.size and value != case.options.get("ignore_index", -100):
            wrong = tokens.astype(np.int64)
            wrong.flat[case.rng.integers(tokens.size)] = value
            yield with_array("tokens", wrong, IndexError)


def of_rows(case, name, a, with_array, with_options):
    rng, axis = case.rng, case.options["axis"]
    target, n_classes = case.arrays["target"].a, a.shape[axis]
    if target.dtype.kind in "iu":
        yield with_array("target", np.zeros(target.shape, bool), TypeError)
        for value in (0.5, True, np.ma.masked_array(0, True)):
            yield with_options(TypeError, ignore_index=value)
        info, ignored = np.iinfo(target.dtype), case.options.get("ignore_index", -100)
        for value in (n_classes, -1, -99, info.max, info.min, info.max // 2 + 1):
            if (
                target.size
                and info.min <= value <= info.max
                and not 0 <= value < n_classes
                and value != ignored
            ):
                wrong = target.astype(target.dtype)
                wrong.flat[rng.integers(target.size)] = value
                yield with_array("target", wrong, IndexError)
        if not name.startswith("cross_entropy"):
            yield with_array("target", np.zeros(target.shape, np.float32), TypeError)
    else:
        yield with_options(ValueError, ignore_index=0)
    if target.size:
        none = np.empty([0 if k == axis % a.ndim else n for k, n in enumerate(a.shape)])
        first = next(iter(case.arrays))
        arrays, *rest = with_array(first, none, ValueError)
        if target.dtype.kind in "iu":
            yield arrays, *rest
    for parameter, shape in (
        ("weight", (n_classes + 1,)),
        ("weight", (1, n_classes)),
        ("sample_weight", (*a.shape, 1)),
    ):
        yield with_array(parameter, np.ones(shape), ValueError)


def of_out(case, name, a, with_out):
    """Arrays that can't be written into, or not without harm."""
    rng = case.rng
    dtype = a.dtype if a.dtype.kind not in "biu" else np.dtype(np.float64)
    other = np.dtype(np.float32 if dtype.itemsize == 8 else np.float64)
    yield with_out(ValueError, in_memory(rng, np.zeros(a.shape, other), 0))
    yield with_out(ValueError, in_memory(rng, np.zeros((*a.shape, 1), dtype), 0))
    yield with_out(ValueError, in_memory(rng, np.zeros(a.shape, dtype), 32))
    yield with_out(TypeError, [0.0])
    yield with_out(TypeError, np.ma.masked_array(np.zeros(a.shape, dtype)))
    if a.size > 1:
        shared = in_memory(rng, np.zeros(1, dtype), 0)
        yield with_out(
            ValueError, Memory(np.ndarray(a.shape, dtype, shared.raw, 64, (0,) * a.ndim), shared.raw)
        )
        # One element further than the first argument, in the same memory.
        both = in_memory(rng, np.zeros(a.size + 1, dtype), 0)
        one, two = (Memory(both.a[k : k + a.size].reshape(a.shape), both.raw) for k in (0, 1))
        yield {next(iter(case.arrays)): one}, {}, {"out": two}, ValueError
    if name.endswith("_hess") and a.size:
        one = in_memory(rng, np.zeros(a.shape, dtype), 0)
        yield {}, {}, {"out": one, "hess_out": one}, ValueError
