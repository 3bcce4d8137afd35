"""Every argument of every function, given what it can't be: an error that names it, and nothing written."""

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import bits

import fastce

pytestmark = pytest.mark.once  # the levels share the source of the checks

SHAPE = N, C = 4, 6
UNSUPPORTED = ("complex64", "complex128", "longdouble", "object", "U3", "S3", "datetime64[s]", "m8[s]")


class Bad(NamedTuple):
    """A value for a parameter, what is raised, and what the message holds."""

    parameter: str
    value: Any
    error: type[Exception] | tuple[type[Exception], ...]
    message: tuple[str, ...]
    others: dict[str, Any] = {}  # noqa: RUF012

    def __str__(self):
        value = self.value
        if isinstance(value, np.ndarray):
            kind = "masked " if isinstance(value, np.ma.MaskedArray) else ""
            value = f"{kind}{value.dtype}{list(value.shape)}"
        return f"{self.parameter}={value}"


class Function(NamedTuple):
    """A function under all its names, with arguments it takes."""

    names: tuple[str, ...]
    valid: dict[str, np.ndarray]
    bad: tuple[Bad, ...]


# --- what arguments of each kind can't be ---------------------------------------------------------


def unsupported(name, shape, refused=UNSUPPORTED):
    """Dtypes, and masked arrays, whose mask would be lost."""
    for dtype in refused:
        value = np.zeros(shape, dtype)
        yield Bad(name, value, TypeError, (name, str(value.dtype)))
    yield Bad(name, np.ma.masked_array(np.zeros(shape), np.ones(shape, bool)), TypeError, (name, "masked"))


def misshapen(name, *shapes, expected=(), dtype=float):
    for shape in shapes:
        yield Bad(name, np.ones(shape, dtype), ValueError, (name, str(shape), *map(str, expected)))


def out_of(name, *values):
    for value in values:
        yield Bad(name, value, ValueError, (name, repr(value), "expected"))


def not_a_number(name):
    masked = np.ma.masked_array(0.5, True)
    text = np.array("0.5"), np.array("abc"), np.array("0.5", object)
    for value in ("0.5", 1j, [0.5, 0.5], np.complex64(1 + 5j), *text, np.array([0.5, 0.5]), masked):
        yield Bad(name, value, TypeError, (name, repr(value), "expected"))


def parameter(name, *values):
    yield from out_of(name, *values)
    yield from not_a_number(name)


NAN = float("nan")
REDUCTION = (
    *out_of("reduction", "average", "Mean", ""),
    Bad("reduction", None, (TypeError, ValueError), ("reduction", "None", "'mean', 'sum' or 'none'")),
    Bad("reduction", 1, (TypeError, ValueError), ("reduction", "1", "'mean', 'sum' or 'none'")),
    *parameter("normalizer", -1.0, -1e-300, NAN, float("inf")),
)
THREADS = (
    *(Bad("n_threads", value, ValueError, ("n_threads", str(value))) for value in (0, -3)),
    *(Bad("n_threads", value, TypeError, ("n_threads", repr(value))) for value in (1.5, "2", [1])),
)
NO_INDICES = (True, np.True_, np.array(True), np.ma.masked_array(1, True), np.ma.masked)
AXIS = (
    *(Bad("axis", axis, np.exceptions.AxisError, ("axis", str(axis))) for axis in (2, -3, 2**70)),
    *(Bad("axis", axis, TypeError, ("axis", repr(axis))) for axis in (1.0, "1", None, (0, 1), *NO_INDICES)),
)


def labels(expected_range):
    """Class indices."""
    target = np.arange(N)
    for value in (C, -1, -99, 2**40):
        wrong = target.copy()
        wrong[2] = value
        yield Bad("target", wrong, IndexError, ("target", str(value), "2", expected_range))
    yield Bad("target", target % 2 == 0, TypeError, ("target", "bool"))
    yield from unsupported("target", N)
    yield from misshapen("target", (N + 1,), (N, 1), (C, N), (), expected=[(N,)], dtype=int)
    for value in (1.5, "0", *NO_INDICES):
        yield Bad("ignore_index", value, TypeError, ("ignore_index", repr(value)))


def rows(name, *numbers):
    """A function of rows of classes: its array, labels and weights."""
    yield from unsupported(name, SHAPE)
    yield Bad(name, np.float64(1.0), (ValueError, np.exceptions.AxisError), ())
    yield Bad(name, np.empty((N, 0)), ValueError, ("no classes",))
    yield from labels(f"[0, {C})")
    yield from misshapen("weight", (C + 1,), (N,), (N, C), (), (1,), expected=[(C,)])
    yield from misshapen("sample_weight", (N + 1,), (C,), (N, C), (N, 1), (), expected=[(N,)])
    yield from unsupported("weight", C)
    yield from unsupported("sample_weight", N)
    yield from (*AXIS, *REDUCTION, *THREADS, *numbers)
    yield Bad("smoothing", 0.1, TypeError, ("smoothing",))


def elements(name, *numbers):
    """A binary function: every argument broadcasts to its first."""
    yield from unsupported(name, SHAPE)
    yield from unsupported("target", SHAPE)
    yield from unsupported("weight", SHAPE)
    for value in (-0.25, 1.5, 2.0, NAN):
        wrong = np.zeros(SHAPE)
        wrong[2, 3] = value
        yield Bad("target", wrong, ValueError, ("target", str(value), "2, 3", "[0, 1]"))
    yield Bad("target", np.full(SHAPE, 2), ValueError, ("target", "2", "[0, 1]"))
    for parameter_name in ("target", "weight"):
        yield from misshapen(parameter_name, (C + 1,), (N,), (N + 1, C), (2, N, C), expected=[SHAPE])
    yield from (*REDUCTION, *THREADS, *numbers)
    yield Bad("axis", 1, TypeError, ("axis",))


def scipys(name):
    """SciPy takes complex numbers, and whatever else it does; these are no numbers at all."""
    yield from unsupported(name, SHAPE, refused=("U3", "S3", "datetime64[s]"))
    for axis in (2, -3, (0, 2)):
        yield Bad("axis", axis, (np.exceptions.AxisError, ValueError), ("axis",))
    yield Bad("axis", (0, 0), ValueError, ("axis",))
    for axis in (1.5, "1", *NO_INDICES):
        yield Bad("axis", axis, TypeError, ("axis", repr(axis)))
    yield from THREADS
    yield Bad("reduction", "sum", TypeError, ("reduction",))


def refused_probabilities():
    for value in (-0.25, 1.5, NAN, float("inf")):
        wrong = np.full(SHAPE, 0.5)
        wrong[2, 3] = value
        yield Bad("probs", wrong, ValueError, ("probs", str(value), "2, 3", "[0, 1]"))


x = np.random.default_rng(0).normal(size=SHAPE)
y = np.arange(N)
q = np.full(SHAPE, 1 / C)
SOFTMAX_NUMBERS = (
    *parameter("label_smoothing", -0.1, 1.5, NAN),
    *parameter("z_loss", -1.0, -1e-300, NAN),
    *parameter("temperature", 0.0, -1.0, NAN),
    *parameter("softcap", 0.0, -1.0, NAN),
    *misshapen("target", (N, C + 1), (N + 1, C), (C, N), dtype=float),
    Bad("target", q.astype(complex), TypeError, ("target", "complex128")),
    Bad("ignore_index", 3, ValueError, ("ignore_index", "3"), {"target": q}),
)
FUNCTIONS = (
    Function(
        ("cross_entropy", "cross_entropy_and_grad", "cross_entropy_and_hess"),
        {"logits": x, "target": y},
        tuple(rows("logits", *SOFTMAX_NUMBERS)),
    ),
    Function(
        ("focal_loss", "focal_loss_and_grad"),
        {"logits": x, "target": y},
        tuple(
            rows("logits", *parameter("gamma", -1.0, NAN), Bad("target", q, TypeError, ("target", "float64")))
        ),
    ),
    Function(
        ("hinge_loss", "hinge_loss_and_grad"),
        {"logits": x, "target": y},
        tuple(
            rows(
                "logits",
                *parameter("p", 0, 3, 1.5, NAN),
                *parameter("margin", 1e19, NAN),
                Bad("kind", "hinge", ValueError, ("kind", "'hinge'", "crammer_singer")),
                Bad("kind", None, ValueError, ("kind", "None", "crammer_singer")),
                Bad("target", q, TypeError, ("target", "float64")),
            )
        ),
    ),
    Function(
        ("margin_cross_entropy", "margin_cross_entropy_and_grad"),
        {"cosine": np.tanh(x), "target": y},
        tuple(
            rows(
                "cosine",
                *parameter("scale", -1.0, NAN),
                *parameter("margin1", NAN),
                *parameter("margin2", NAN),
                *parameter("margin3", NAN),
                Bad("target", q, TypeError, ("target", "float64")),
            )
        ),
    ),
    Function(
        ("nll_loss",),
        {"log_probs": -np.abs(x), "target": y},
        tuple(rows("log_probs", Bad("target", q, TypeError, ("target", "float64")))),
    ),
    Function(
        (
            "binary_cross_entropy_with_logits",
            "binary_cross_entropy_with_logits_and_grad",
            "binary_cross_entropy_with_logits_and_hess",
        ),
        {"logits": x, "target": (x > 0).astype(float)},
        tuple(
            elements(
                "logits",
                *unsupported("pos_weight", C),
                *misshapen("pos_weight", (C + 1,), (N,), expected=[SHAPE]),
            )
        ),
    ),
    Function(
        ("binary_focal_loss", "binary_focal_loss_and_grad"),
        {"logits": x, "target": (x > 0).astype(float)},
        tuple(elements("logits", *parameter("gamma", -1.0, NAN), *parameter("alpha", -0.1, 1.5, NAN))),
    ),
    Function(
        ("binary_cross_entropy",),
        {"probs": np.full(SHAPE, 0.5), "target": (x > 0).astype(float)},
        tuple(elements("probs", *refused_probabilities())),
    ),
    Function(("softmax", "log_softmax"), {"x": x}, tuple(scipys("x"))),
    Function(
        ("logsumexp",),
        {"a": x},
        (
            *scipys("a"),
            *unsupported("b", SHAPE, refused=("U3", "datetime64[s]")),
            Bad("b", np.ones((N, C + 1)), ValueError, ("b has shape (4, 7)", "a has shape (4, 6)")),
        ),
    ),
)
CASES = [(name, function, bad) for function in FUNCTIONS for name in function.names for bad in function.bad]


def call(name, arguments):
    """Arrays by position, as in the signature; the rest by name."""
    positional = [arguments.pop(key) for key in [*arguments][: 2 if "target" in arguments else 1]]
    return getattr(fastce, name)(*positional, **arguments)


def derivatives(name, arguments):
    """Arrays for the results that a function can write, full of sevens."""
    shape = () if name == "logsumexp" else SHAPE
    if name.endswith(("_and_grad", "_and_hess")) or name in ("softmax", "log_softmax", "logsumexp"):
        yield "out", np.full(shape, 7.0)
    if name.endswith("_and_hess"):
        yield "hess_out", np.full(shape, 7.0)


@pytest.mark.parametrize(("name", "function", "bad"), CASES, ids=[f"{name}-{bad}" for name, _, bad in CASES])
def test_refused(name, function, bad):
    arguments = {**function.valid, **bad.others, bad.parameter: bad.value}
    before = {key: bits(arguments[key]) for key in function.valid if key != bad.parameter}
    written = dict(derivatives(name, arguments))
    with pytest.raises(bad.error) as error:
        call(name, {**arguments, **written})
    for text in bad.message:
        assert text in str(error.value)
    assert all((a == 7).all() for a in written.values())
    assert all(bits(arguments[key]) == memory for key, memory in before.items())


@pytest.mark.parametrize(("name", "function"), [(n, f) for f in FUNCTIONS for n in f.names])
def test_accepted(name, function):
    """The same calls without the bad argument, or the tests above would not show what is refused."""
    written = dict(derivatives(name, function.valid))
    call(name, {**function.valid, **written})
    assert not any((a == 7).any() for a in written.values())


@pytest.mark.parametrize(("name", "function"), [(n, f) for f in FUNCTIONS for n in f.names])
def test_arguments_are_needed(name, function):
    with pytest.raises(TypeError):
        getattr(fastce, name)()
    with pytest.raises(TypeError):  # options of losses, and out of all, are keywords
        getattr(fastce, name)(*function.valid.values(), 1, None, False, False, None, None, None)


HUGE = 10**5000  # an int that has no repr


@pytest.mark.parametrize(("name", "function"), [(n, f) for f in FUNCTIONS for n in f.names])
def test_options_without_a_repr_are_named(name, function):
    """Refused, or, as the index to ignore, only in the message about a label."""
    arrays = {"weight", "sample_weight", "pos_weight", "b", *function.valid}
    options = {bad.parameter for bad in function.bad} - arrays
    for parameter in sorted(options):
        others = {"target": np.full(N, C)} if parameter == "ignore_index" else {}
        with pytest.raises((IndexError, TypeError, ValueError), match=rf"\b{parameter}\b") as error:
            call(name, {**function.valid, **others, parameter: HUGE})
        assert "digits" not in str(error.value)


# log_loss hands its labels to scikit-learn, which refuses them in its own words.
NAMED = [(n, f) for f in FUNCTIONS for n in f.names if n != "log_loss"]


@pytest.mark.parametrize(("name", "function"), NAMED)
def test_what_is_no_sequence_of_numbers_is_named(name, function):
    """Types and matches can be asked for items, but have none in order."""
    for parameter in function.valid:
        for value in (list, list[int], re.match("a", "a"), {1: 2}, None):
            with pytest.raises(TypeError, match=f"{parameter}.* has dtype object"):
                call(name, {**function.valid, parameter: value})
