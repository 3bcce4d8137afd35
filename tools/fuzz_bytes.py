"""Fuzz the public functions with raw bytes, guided by coverage of Python code, and of kernels built for it.

    pip install atheris && python tools/fuzz_bytes.py -atheris_runs=1000000

The bytes of an input say which function is called with which options, and with arrays of what dtype, shape,
strides and place in memory, and what they hold. Whatever they are, a call must

- return, or raise one of the documented exceptions; if it raises, nothing is written;
- write to nothing but `out` and `hess_out`;
- give, bit for bit, what one thread gives for fresh contiguous copies of the rows, class axis last;
- agree with the twin to a thousandth where numbers are plain (`tests/test_fuzz.py` counts ULP).

Options that begin with a dash are libFuzzer's, as `-max_total_time=60` or `-seed=1`; a folder keeps inputs.
To guide it by the kernels as well, build them with Clang first, which finds reads beyond arrays, too::

    export CFLAGS="-fsanitize=address,fuzzer-no-link -g1" ASAN_OPTIONS=detect_leaks=0
    CC=clang LDSHARED="clang -shared $CFLAGS" python setup.py build_ext --inplace
    export LD_PRELOAD="$(python -c "import atheris; print(atheris.path())")/asan_with_fuzzer.so"
    python tools/fuzz_bytes.py
"""

import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris
import ml_dtypes
import numpy as np

with atheris.instrument_imports(include=["fastce"]):
    import fastce
    from fastce import _kernels
from fastce import reference

FILL = 0xFF  # of every byte that no array has: NaN, and labels out of range
ERRORS = (TypeError, ValueError, IndexError, OverflowError)  # AxisError is two of them
FLOATS = [np.dtype(t) for t in ("f4", "f8", "f2", ml_dtypes.bfloat16, ">f4", ">f8", ">f2")]
OTHERS = [
    np.dtype(t)
    for t in ("i1", "u1", "i2", "i4", "i8", "u8", ">i4", ">u2", "?", "c8", "g", "S2", "M8[s]", "O")
]
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 57, 113, 130)
NUMBERS = (
    0,
    1,
    -1,
    0.5,
    2,
    1e-3,
    30,
    1e18,
    1e-18,
    1e300,
    -100,
    float("nan"),
    float("inf"),
    -float("inf"),
    5e-324,
    7,
)
ODD = (None, "1", "mean", "none", 1.5, 2**70, -(2**70), True, (0, 1), 1j, [], b"x")

ROW_OPTIONS = ("axis", "weight", "sample_weight", "ignore_index", "reduction", "normalizer", "n_threads")
LOGIT_OPTIONS = ("label_smoothing", "z_loss", "temperature", "softcap")
BINARY_OPTIONS = ("weight", "reduction", "normalizer", "n_threads")
FUNCTIONS = {
    **{
        f"cross_entropy{how}": (2, (*ROW_OPTIONS, *LOGIT_OPTIONS, *outs))
        for how, outs in (("", ()), ("_and_grad", ("out",)), ("_and_hess", ("out", "hess_out")))
    },
    "focal_loss": (2, (*ROW_OPTIONS, "gamma")),
    "focal_loss_and_grad": (2, (*ROW_OPTIONS, "gamma", "out")),
    "hinge_loss": (2, (*ROW_OPTIONS, "kind", "p", "margin")),
    "hinge_loss_and_grad": (2, (*ROW_OPTIONS, "kind", "p", "margin", "out")),
    "margin_cross_entropy": (2, (*ROW_OPTIONS, "scale", "margin1", "margin2", "margin3")),
    "margin_cross_entropy_and_grad": (2, (*ROW_OPTIONS, "scale", "margin1", "margin2", "margin3", "out")),
    "nll_loss": (2, ROW_OPTIONS),
    "binary_cross_entropy_with_logits": (2, (*BINARY_OPTIONS, "pos_weight")),
    "binary_cross_entropy_with_logits_and_grad": (2, (*BINARY_OPTIONS, "pos_weight", "out")),
    "binary_cross_entropy_with_logits_and_hess": (2, (*BINARY_OPTIONS, "pos_weight", "out", "hess_out")),
    "binary_focal_loss": (2, (*BINARY_OPTIONS, "gamma", "alpha")),
    "binary_focal_loss_and_grad": (2, (*BINARY_OPTIONS, "gamma", "alpha", "out")),
    "binary_cross_entropy": (2, BINARY_OPTIONS),
    "softmax": (1, ("axis", "n_threads", "out")),
    "log_softmax": (1, ("axis", "n_threads", "out")),
    "logsumexp": (1, ("axis", "b", "keepdims", "return_sign", "n_threads", "out")),
    "information.self_information": (1, ("base",)),
    "information.entropy": (1, ("axis", "base")),
    "information.cross_entropy": (2, ("axis", "base")),
    "information.kl_divergence": (2, ("axis", "base")),
    "set_num_threads": (0, ()),
}
ARRAYS = {"weight", "sample_weight", "pos_weight", "b", "out", "hess_out"}


calls = {"all": 0, "accepted": 0}


class Memory:
    """Bytes that belong to an array, and those around and between them."""

    def __init__(self, raw, offset, shape, dtype, strides):
        self.raw, self.place = raw, (offset, strides)
        self.a = np.ndarray(shape, dtype, raw, offset, strides) if np.prod(shape) else np.empty(shape, dtype)
        self.before = raw.copy()

    def fill(self, values):
        self.a[...] = values
        self.before = self.raw.copy()

    def unwritten(self):
        return self.raw.tobytes() == self.before.tobytes()

    def unwritten_but_for(self, a):
        """Whether no byte was written but those of `a`, an array in this memory."""
        now = self.raw.copy()
        if a.size:
            offset = a.__array_interface__["data"][0] - self.raw.__array_interface__["data"][0]
            here = (a.shape, f"u{a.itemsize}", now, offset, a.strides)
            np.ndarray(*here)[...] = np.ndarray(here[0], here[1], self.before, *here[3:])
        return now.tobytes() == self.before.tobytes()


class Bytes(atheris.FuzzedDataProvider):
    """What the bytes of an input stand for."""

    def one(self, choices):
        return choices[self.ConsumeIntInRange(0, len(choices) - 1)]

    def often(self):
        return self.ConsumeIntInRange(0, 7) != 0

    def shape(self):
        shape = [self.one(SIZES) for _ in range(self.ConsumeIntInRange(0, 4))]
        while np.prod([max(n, 1) for n in shape]) > 3000:
            shape[int(np.argmax(shape))] = 2
        return tuple(shape)

    def memory(self, shape, dtype):
        """Any order of axes, steps of either sign and of 0, any alignment; sometimes any strides at all."""
        order, step = list(range(len(shape))), dtype.itemsize
        if self.ConsumeBool():
            order = [order.pop(self.ConsumeIntInRange(0, len(order) - 1)) for _ in shape]
        strides, low, high = [0] * len(shape), 0, dtype.itemsize
        for k in reversed(order):
            factor = 1 if self.ConsumeBool() else self.one((1, 1, 2, 3, -1, -2, 0))
            strides[k] = step * factor if self.often() else self.ConsumeIntInRange(-40, 40)
            step = abs(step * factor) * max(shape[k], 1) or step
        for n, stride in zip(shape, strides, strict=True):
            low, high = low + min(0, (n - 1) * stride), high + max(0, (n - 1) * stride)
        offset = 64 + self.one((0, 0, 0, 1, 4, 7))
        raw = np.full(offset - low + high + 64, FILL, np.uint8)
        return Memory(raw, offset - low, shape, dtype, tuple(strides))

    def array(self, shape, dtype, tame=(0.5, 2)):
        """Numbers of a range, numbers from a list, or bytes as they come."""
        if dtype.kind in "OMSc" or dtype.char == "g":
            return np.zeros(shape, dtype), False
        memory, kind = self.memory(shape, dtype), self.ConsumeIntInRange(0, 3)
        rng = np.random.default_rng(self.ConsumeIntInRange(0, 2**32))
        is_tame = kind < 2
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_tame:
                memory.fill(rng.uniform(*tame, shape).astype(dtype))
            elif kind == 2:
                numbers = np.array([self.one(NUMBERS) for _ in range(4)])
                memory.fill(rng.choice(numbers, shape).astype(dtype))
            else:
                some = np.frombuffer(self.ConsumeBytes(64) + b"\0", np.uint8)
                n = int(np.prod(shape)) * dtype.itemsize
                values = np.resize(some, n).view(dtype.newbyteorder("=") if dtype.kind != "b" else np.uint8)
                memory.fill(values.reshape(shape).astype(dtype))
            # Where elements overlap they hold parts of each other.
            is_tame &= bool((abs(memory.a.astype(float)) <= 4).all())
        memory.a.flags.writeable = self.often()
        return memory, is_tame

    def labels(self, shape, n_classes):
        memory = self.memory(shape, self.one([d for d in OTHERS if d.kind in "iu"]))
        rng = np.random.default_rng(self.ConsumeIntInRange(0, 2**32))
        y = rng.integers(0, max(n_classes, 1), shape)
        if not self.often():
            y = np.where(rng.random(shape) < 0.1, self.one((-100, -1, n_classes, 2**31, -(2**63), 255)), y)
        memory.fill(y.astype(memory.a.dtype))
        return memory, True

    def number(self):
        return self.one(NUMBERS) if self.often() else self.one(ODD)


def arguments(data, name, n_positional, parameters):
    """Arrays in memory, all arguments by name, and whether the twin knows three digits of the answer."""
    shape = data.shape()
    dtype = data.one(FLOATS) if data.often() else data.one(OTHERS)
    axis = data.ConsumeIntInRange(-len(shape), len(shape) - 1) if shape else 0
    unit = name.startswith("information") or name == "binary_cross_entropy"
    given = {"axis": axis} if "axis" in parameters else {}
    given["first"], tame = data.array(shape, dtype, (0.1, 0.9) if unit else (-3, 3))
    if n_positional == 2:
        rows = tuple(np.delete(shape, axis)) if shape and "axis" in parameters else shape
        rows = rows if data.often() else data.shape()
        if "ignore_index" in parameters and data.often():
            given["second"], known = data.labels(tuple(map(int, rows)), shape[axis] if shape else 1)
        else:
            given["second"], known = data.array(shape, data.one(FLOATS), (0.1, 0.9))
        tame &= known
    for parameter in parameters:
        if parameter == "axis":
            if not data.often():
                given["axis"] = data.number()
        elif data.ConsumeIntInRange(0, 3) != 0:
            continue
        elif parameter in ("out", "hess_out"):
            given[parameter] = an_out(data, given["first"], shape, dtype)
        elif parameter in ARRAYS:
            fitting = {
                "weight": shape[axis : axis + 1 or None] if "axis" in parameters and shape else shape,
                "sample_weight": tuple(int(n) for n in np.delete(shape, axis)) if shape else (),
            }
            fitting = fitting.get(parameter, shape[-1:])
            fitting = fitting if data.often() else data.shape()
            given[parameter], known = data.array(
                fitting, data.one(FLOATS) if data.often() else data.one(OTHERS)
            )
            tame &= known
        elif parameter == "n_threads":
            given[parameter] = data.one((1, 2, 3, 8)) if data.often() else data.number()
        elif parameter == "reduction":
            given[parameter] = data.one(("mean", "sum", "none")) if data.often() else data.one(ODD)
        else:
            given[parameter] = data.number()
            tame &= given[parameter] in (0.5, 1, 2) or parameter in ("keepdims", "return_sign")
    return given, tame


def an_out(data, first, shape, dtype):
    """In place, somewhere else, over a part of the first argument, or anything."""
    how = data.ConsumeIntInRange(0, 4)
    if how == 0 or not isinstance(first, Memory) or dtype.kind in "OMSc" or dtype.char == "g":
        return first
    if how == 1:
        offset, strides = first.place
        offset += data.ConsumeIntInRange(-64, 64)
        try:
            return np.ndarray(shape, dtype, first.raw, offset, strides)
        except ValueError:
            return None
    native = dtype if dtype.kind == "f" or dtype.name == "bfloat16" else np.dtype(float)
    return data.array(shape, native if data.often() else data.one(FLOATS))[0]


def plain(value):
    return value.a if isinstance(value, Memory) else value


def call(name, given, module=fastce):
    function = module
    for part in name.split("."):
        function = getattr(function, part)
    given = {k: plain(v) for k, v in given.items()}
    positional = [given.pop(k) for k in ("first", "second") if k in given]
    with warnings.catch_warnings():
        if any(getattr(v, "dtype", np.dtype(float)).kind == "c" for v in (*positional, *given.values())):
            warnings.simplefilter("ignore")  # complex numbers are SciPy's, which warns of them
        return function(*positional, **given)


def bits(a):
    a = np.array(a)
    if a.dtype.kind == "f" or a.dtype.name == "bfloat16":
        a[np.isnan(a.astype(float))] = np.nan
    return a.astype(a.dtype.newbyteorder("=") if a.dtype.name != "bfloat16" else a.dtype).tobytes()


def fresh(given, name):
    """The same numbers in arrays of their own, classes last, for one thread."""
    copies = {
        k: np.array(plain(v), order="C") if isinstance(v, Memory | np.ndarray) else v
        for k, v in given.items()
    }
    for k in ("out", "hess_out"):
        copies.pop(k, None)
    if "n_threads" in copies:
        copies["n_threads"] = 1
    return copies


def takes_the_same_walk(name, given):
    """Few classes, or classes close to each other: rows then have the same bits wherever they are."""
    a = plain(given["first"])
    if name.startswith("information"):
        return True
    if "axis" not in given or not a.ndim or name[:3] == "log":
        return name.startswith("binary") or name == "nll_loss"
    if not isinstance(given["axis"], int):
        return False
    item = 8 if a.dtype.itemsize == 8 or a.dtype.kind in "biu" else 4
    n = a.shape[given["axis"]]
    close = abs(a.strides[given["axis"]]) < 64 and given["axis"] % a.ndim == a.ndim - 1
    return n * item <= 448 or close


def results_of(results):
    return results if isinstance(results, tuple) else (results,)


def test_one_input(data):
    data = Bytes(data)
    name = data.one(list(FUNCTIONS))
    level = data.one(_kernels.runnable())
    for module in _kernels.MODULES:
        setattr(_kernels, module, _kernels.load(level, module))
    if name == "set_num_threads":
        n = data.number()
        with suppress(*ERRORS):
            fastce.set_num_threads(n)
        fastce.set_num_threads(2)
        return
    given, tame = arguments(data, name, *FUNCTIONS[name])
    memories = [v for v in given.values() if isinstance(v, Memory)]
    copies = fresh(given, name)
    calls["all"] += 1
    if calls["all"] % 50_000 == 0:
        print(f"{calls['all']} calls, {calls['accepted']} of them accepted", file=sys.stderr)
        assert calls["accepted"] > calls["all"] / 20, "hardly any arguments fit: not much is tested"
    error = None
    try:
        results = results_of(call(name, given))
    except ERRORS as raised:
        error = raised
    if error is not None:
        assert str(error), "an error that says nothing"
        assert all(m.unwritten() for m in memories), f"{name} wrote, and raised {error!r}"
        return
    calls["accepted"] += 1
    outs = [plain(given[k]) for k in ("out", "hess_out") if given.get(k) is not None]
    for memory in memories:
        inside = [a for a in outs if np.may_share_memory(a, memory.raw)]
        if len(inside) == 1:
            assert memory.unwritten_but_for(inside[0]), f"{name} wrote beyond an array"
        elif not inside:
            assert memory.unwritten(), f"{name} wrote to an input"
    assert all(any(r is a for r in results) for a in outs)

    again = results_of(call(name, copies))
    exact_sum = given.get("reduction") in ("sum", "none") or given.get("normalizer") is not None
    if takes_the_same_walk(name, given):
        for k, (one, other) in enumerate(zip(results, again, strict=True)):
            if isinstance(one, np.ndarray) and (exact_sum or k == 0):
                assert bits(one) == bits(other), f"{name} has other bits for contiguous copies"
    for one, other in zip(results, again, strict=True):
        assert np.shape(one) == np.shape(other)
    if tame and plain(given["first"]).ndim and given.get("reduction", "mean") in ("mean", "sum", "none"):
        compare_with_twin(name, copies, again)


def compare_with_twin(name, given, results):
    given.pop("n_threads", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signalling NaN
        expected = results_of(call(name, given, reference))
    assert len(expected) == len(results)
    if isinstance(results[0], float) and not np.isfinite(results[0]) and np.isnan(expected[0]):
        return  # weights that sum to 0: the twin says NaN of all that is divided by that, also of x / 0
    for one, exact in zip(results, expected, strict=True):
        one = np.asarray(one)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = np.asarray(exact).astype(one.dtype).astype(np.longdouble)
        one = one.astype(np.longdouble)
        assert one.shape == exact.shape
        assert (np.isnan(one) == np.isnan(exact)).all()
        inexact = 0.02 if np.asarray(results[-1]).dtype.itemsize == 2 else 1e-3
        # Terms are of the order of 10; a mean of few rows with small weights less.
        with np.errstate(invalid="ignore"):
            far = abs(one - exact) > inexact * (1 + abs(exact))
        assert not far.any(), f"{name}: {one[far][:3]} instead of {exact[far][:3]}"


def main():
    warnings.simplefilter("error")
    fastce.set_num_threads(2)
    for function in (arguments, an_out, *(f for f in vars(Bytes).values() if callable(f))):
        atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as seeds:
        for k in range(500):  # or it would be long before an input is one of arguments that fit
            Path(seeds, str(k)).write_bytes(np.random.default_rng(k).bytes(200))
        options = ["-len_control=0", "-max_len=256", *sys.argv[1:]]
        atheris.Setup([sys.argv[0], *options, *([] if has_corpus(options) else [seeds])], test_one_input)
        atheris.Fuzz()


def has_corpus(options):
    return any(not option.startswith("-") for option in options)


if __name__ == "__main__":
    main()
