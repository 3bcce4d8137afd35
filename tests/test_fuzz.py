"""Every public function, called as hypothesis likes at every level, against the twin within its bounds.

``python -m pytest tests/test_fuzz.py --fuzz-executions 1000000 --fuzz-seed 7`` runs it for longer. An
execution is one call of a public function that was compared with the twin, or that had to be refused.
"""

import time

import fuzz_expected
import numpy as np
import pytest
from bounds import in_order
from fuzz_memory import in_memory
from fuzz_refusals import damages
from fuzz_strategies import (
    binary_focal_losses,
    binary_losses,
    binary_probabilities,
    cross_entropies,
    focal_losses,
    hinge_losses,
    log_probabilities,
    margins,
)
from fuzz_strategies_special import (
    best_classes,
    greedy_samples,
    linear_losses,
    log_losses,
    logsumexps,
    measures,
    scores,
    softmaxes,
)
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from scipy import sparse

import fastce
from fastce import LinearGrad, _kernels, inference

pytestmark = pytest.mark.once  # each example runs at every level

# Of each strategy: what the twin says, and its share of the executions.
FAMILIES = {
    "cross_entropy": (cross_entropies, fuzz_expected.cross_entropy, 10),
    "focal_loss": (focal_losses, fuzz_expected.focal_loss, 3),
    "hinge_loss": (hinge_losses, fuzz_expected.hinge_loss, 3),
    "margin_cross_entropy": (margins, fuzz_expected.margin_cross_entropy, 3),
    "nll_loss": (log_probabilities, fuzz_expected.nll_loss, 1),
    "binary_cross_entropy_with_logits": (binary_losses, fuzz_expected.binary_cross_entropy_with_logits, 4),
    "binary_focal_loss": (binary_focal_losses, fuzz_expected.binary_focal_loss, 2),
    "binary_cross_entropy": (binary_probabilities, fuzz_expected.binary_cross_entropy, 1),
    "softmaxes": (softmaxes, fuzz_expected.softmaxes, 3),
    "logsumexp": (logsumexps, fuzz_expected.logsumexp, 3),
    "token_logprobs": (scores, fuzz_expected.token_logprobs, 3),
    "top_k": (best_classes, fuzz_expected.top_k, 1),
    "sample": (greedy_samples, fuzz_expected.sample, 1),
    "linear_cross_entropy": (linear_losses, fuzz_expected.linear_cross_entropy, 2),
    "information": (measures, fuzz_expected.information, 1),
    "log_loss": (log_losses, fuzz_expected.log_loss, 0.1),
}
ONCE = {"log_loss"}  # NumPy alone, which has no levels
OWN_REFUSALS = {"information", "log_loss"}  # tested where they are
POSITIONAL = {"logits", "cosine", "log_probs", "probs", "x", "a", "p", "q"}
POSITIONAL |= {"target", "tokens", "y_true", "y_proba", "input", "linear_weight"}
EXAMPLES_AT_ONCE = 500  # hypothesis keeps what it knows of each


def function_of(name, arrays):
    module = fastce.information if "p" in arrays else inference if name in inference.__all__ else fastce
    return getattr(module, name)


def use(level):
    for module in _kernels.MODULES:
        setattr(_kernels, module, _kernels.load(level, module))


@pytest.fixture(autouse=True)
def restored():
    before, n_threads = {name: getattr(_kernels, name) for name in _kernels.MODULES}, fastce.get_num_threads()
    yield
    vars(_kernels).update(before)
    fastce.set_num_threads(n_threads)


def outs_of(case, name, intervals):
    """Arrays to write into for a call: none, anywhere in memory, or the first argument itself."""
    rng, first = case.rng, next(iter(case.arrays))
    if name == "linear_cross_entropy_and_grad":  # of several arrays, some of which have one
        arguments = {k: case.arrays[k].a for k in LinearGrad._fields if k in case.arrays}
        return {
            f"out.{k}": in_memory(rng, np.zeros(a.shape, a.dtype), int(rng.choice([0, 1, 2, 4, 8, 15])))
            for k, a in arguments.items()
            if rng.random() < 0.4
        }, {}
    writes = {"softmax": ["out"], "log_softmax": ["out"], "logsumexp": ["out"]}.get(name, [])
    writes = (
        ["out"]
        if name.endswith("_and_grad")
        else ["out", "hess_out"]
        if name.endswith("_and_hess")
        else writes
    )
    if not writes:
        return {}, {}
    a = case.arrays[first].a
    dtype, shape = fuzz_expected.logits_dtype(a), a.shape
    if name == "logsumexp":
        shape = intervals[0].low.shape
        if "b" in case.arrays:
            dtype = fuzz_expected.dtype_with_factors(a, case.arrays["b"].a)
    outs, replaced = {}, {}
    for parameter in writes:
        how = rng.integers(4)
        may_be = name != "logsumexp" and a.dtype.kind not in "biu" and a.flags.writeable and not replaced
        if how == 0 or (how == 1 and may_be):
            if how == 1:
                replaced[first] = outs[parameter] = case.arrays[first].copied()
            else:
                outs[parameter] = None
        else:
            bits = int(rng.choice([0, 1, 2, 4, 8, 15])) | (
                16 if rng.random() < 0.2 and dtype == a.dtype else 0
            )
            outs[parameter] = in_memory(rng, np.zeros(shape, dtype), bits)
            # gradients of swapped logits are swapped
            if (
                not name.startswith(("softmax", "log"))
                and a.dtype.kind not in "biu"
                and (outs[parameter].a.dtype != a.dtype)
            ):
                outs[parameter] = in_memory(rng, np.zeros(shape, a.dtype), bits & 15)
    return {k: m for k, m in outs.items() if m is not None}, replaced


def call(case, name, arrays, more):
    values = {k: getattr(m, "a", m) for k, m in arrays.items()}
    positional = [values.pop(k) for k in list(values) if k in POSITIONAL]
    options = case.options
    if name == "self_information":
        options = {k: v for k, v in options.items() if k != "axis"}
    return function_of(name, arrays)(*positional, **values, **options, **more)


def in_rows(rng, x):
    """Features as a CSR array at times, with entries for zeros, or in two halves."""
    if x.dtype not in (np.float32, np.float64) or rng.random() < 0.5:
        return None
    indices = np.tile(np.arange(x.shape[1]), len(x))
    data, starts = x.astype(x.dtype.newbyteorder("=")).ravel(), np.arange(len(x) + 1) * x.shape[1]
    if rng.random() < 0.5:
        data, indices, starts = np.repeat(data / 2, 2), np.repeat(indices, 2), 2 * starts
    return sparse.csr_array((data, indices, starts), shape=x.shape)


def keeps_order(values, x, axis):
    """The elements of each softmax stand in the order of its logits."""
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    rows = (
        np.moveaxis(a, axes, range(-len(axes), 0)).reshape(-1, int(np.prod([a.shape[k] for k in axes])))
        for a in (np.asarray(values).astype(float), x.astype(float))
    )
    return in_order(*rows)


def check(case, name, intervals):
    """An execution: results within their intervals, outputs where they were wanted, all else as before."""
    outs, replaced = outs_of(case, name, intervals)
    arrays = case.arrays | replaced
    more = {k: m.a for k, m in outs.items()}
    if name.startswith("linear"):
        if name.endswith("_and_grad"):
            more = {"out": [more.get(f"out.{k}") for k in LinearGrad._fields]} if outs else {}
        if (x := in_rows(case.rng, arrays["input"].a)) is not None and "out.input" not in outs:
            arrays = {k: x if k == "input" else m for k, m in arrays.items()}
            intervals = intervals[:1] + intervals[2:]
    if name != "log_loss" and "p" not in arrays:
        n_threads = [None, 1, 2, 3, 8][case.rng.integers(5)]
        if n_threads is None:
            fastce.set_num_threads(int(case.rng.integers(1, 4)))
        else:
            more["n_threads"] = n_threads
    results = call(case, name, arrays, more)
    results = results if isinstance(results, tuple) else (results,)
    if name == "linear_cross_entropy_and_grad":
        results = results[0], *(a for a in results[1] if a is not None)
    assert len(results) == len(intervals)
    if name in ("softmax", "log_softmax") and np.size(results[0]):
        assert keeps_order(results[0], case.values()["x"], case.options.get("axis")), f"{name}: another order"
    for result, expected in zip(results, intervals, strict=True):
        assert np.shape(result) == expected.low.shape, f"{name}: {np.shape(result)}"
        wrong = expected.wrong(result)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise AssertionError(
                f"{name} at {_kernels.kernels.__name__}, {[*more]}: {wrong.sum()} of {wrong.size} wrong, "
                f"{place} is {np.asarray(result)[place]!r}; expected {expected.low[place]!r} to "
                f"{expected.high[place]!r}"
            )
    for parameter, memory in outs.items():
        if parameter.startswith("out."):  # of those that are not None
            assert any(written is memory.a for written in results[1:]), parameter
        else:
            first = 0 if name in ("softmax", "log_softmax", "logsumexp") else 1
            assert results[first + (parameter == "hess_out")] is memory.a, parameter
        assert memory.is_whole_outside(), f"{name} wrote outside of {parameter}"


def check_refused(case, name, damage):
    """One execution: the exception that is documented, and nothing written."""
    arrays, options, more, errors = damage
    before = {k: m.raw.tobytes() for k, m in (arrays | more).items() if hasattr(m, "raw")}
    bad = case._replace(arrays=arrays, options=options)
    given = {k: getattr(m, "a", m) for k, m in more.items()}
    with pytest.raises(errors) as caught:
        call(bad, name, arrays, given)
    assert str(caught.value)
    for k, m in (arrays | more).items():
        assert not hasattr(m, "raw") or m.raw.tobytes() == before[k], f"{name} wrote to {k}"


def fuzz(family, n_executions, number):
    """Examples until there were so many executions, some of them of damaged arguments."""
    strategy, expectation, _ = FAMILIES[family]
    done = [0]

    def example(case, data):
        levels = _kernels.runnable()
        before = {k: m.raw.tobytes() for k, m in case.arrays.items()}
        expected = expectation(case.values(), case.options)
        for name, intervals in expected.items():
            for level in levels[-1:] if family in ONCE else levels:
                use(level)
                check(case, name, intervals)
                done[0] += 1
        assert before == {k: m.raw.tobytes() for k, m in case.arrays.items()}, "inputs were written"
        if family not in OWN_REFUSALS and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(case.names))
            for damage in damages(case, name, data):
                check_refused(case, name, damage)
                done[0] += 1

    while done[0] < n_executions:
        some = min(EXAMPLES_AT_ONCE, 1 + (n_executions - done[0]) // 5)
        seed(number)(settings(max_examples=some)(given(case=strategy(), data=st.data())(example)))()
        number += 1
    return done[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_fuzz(family, request):
    total = sum(share for *_, share in FAMILIES.values())
    budget = request.config.getoption("--fuzz-executions")
    start = time.perf_counter()
    n = fuzz(
        family, max(1, int(budget * FAMILIES[family][2] / total)), request.config.getoption("--fuzz-seed")
    )
    print(f"{family}: {n} executions in {time.perf_counter() - start:.0f} s")
