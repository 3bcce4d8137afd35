"""What is refused, and that the message tells what was given and what was expected."""

import ml_dtypes
import numpy as np
import pytest
from conftest import bits

import fastce

FUNCTIONS = (fastce.cross_entropy, fastce.cross_entropy_and_grad)


def refused(error, match, *args, **options):
    for function in FUNCTIONS:
        with pytest.raises(error, match=match):
            function(*args, **options)


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (np.complex64, "complex64"),
        (np.complex128, "complex128"),
        (np.longdouble, "longdouble|float128|float96"),
        (object, "object"),
        ("U3", "str|<U3"),
        ("S3", "bytes|S3"),
        ("datetime64[s]", "datetime64"),
        ("timedelta64[s]", "timedelta64"),
        ([("a", "f4")], "void|'a'"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
    ],
    ids=str,
)
def test_dtypes_of_logits(dtype, named):
    refused(TypeError, named, np.zeros((2, 3), dtype), [0, 1])


@pytest.mark.parametrize("dtype", ["?", *"bBhHiIlLqQ"])
def test_integer_logits_convert_to_float64(dtype, rng):
    x, y = rng.integers(0, 2, (20, 7)).astype(dtype), rng.integers(0, 7, 20)
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
    expected = fastce.cross_entropy_and_grad(x.astype(float), y, reduction="none")
    assert loss.dtype == grad.dtype == np.float64
    assert bits(loss) == bits(expected[0])
    assert bits(grad) == bits(expected[1])


@pytest.mark.parametrize("dtype", [np.complex128, object, "U3", "datetime64[s]"], ids=str)
def test_dtypes_of_sample_weight(dtype):
    refused(TypeError, "sample_weight", np.eye(2), [0, 1], sample_weight=np.zeros(2, dtype))


@pytest.mark.parametrize("reduction", ["average", "", "Mean", None, 1, b"mean", np.array(["mean", "sum"])])
def test_reduction(reduction):
    refused((ValueError, TypeError), r"(?s)mean.*sum.*none", np.eye(2), [0, 1], reduction=reduction)


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 3), 2), ((2, 3), -3), ((3,), 1), ((), -1), ((), 0)]
)
def test_axis_out_of_range(shape, axis):
    refused((np.exceptions.AxisError, ValueError), "axis|dimension", np.zeros(shape), 0, axis=axis)


def test_axis_error_is_numpys():
    refused(np.exceptions.AxisError, "axis 5 is out of bounds", np.eye(2), [0, 1], axis=5)


def test_axis_beyond_every_integer():
    refused(np.exceptions.AxisError, "out of bounds", np.eye(2), [0, 1], axis=2**70)


@pytest.mark.parametrize("axis", [1.0, "1", None, (0, 1)])
def test_axis_must_be_an_integer(axis):
    refused(TypeError, r"axis is .*expected an int", np.eye(2), [0, 1], axis=axis)


@pytest.mark.parametrize(
    ("shape", "axis", "given", "expected"),
    [
        ((4, 3), -1, (3,), (4,)),
        ((4, 3), -1, (4, 1), (4,)),
        ((4, 3), -1, (4, 3), (4,)),
        ((4, 3), 0, (4,), (3,)),
        ((2, 5, 6), 1, (6, 2), (2, 6)),
        ((3,), 0, (1,), ()),
        ((4, 3), -1, (), (4,)),
    ],
)
def test_shapes_that_do_not_match(shape, axis, given, expected):
    """Both shapes are in the message; nothing is broadcast."""
    for function in FUNCTIONS:
        with pytest.raises(ValueError, match="target") as error:
            function(np.zeros(shape), np.zeros(given, int), axis=axis)
        assert str(given) in str(error.value)
        assert str(expected) in str(error.value)
        with pytest.raises(ValueError, match="sample_weight") as error:
            function(
                np.zeros(shape), np.zeros(expected, int), axis=axis, sample_weight=np.ones(given)
            )
        assert str(given) in str(error.value)
        assert str(expected) in str(error.value)


def test_options_are_keywords_and_known():
    for function in FUNCTIONS:
        with pytest.raises(TypeError):
            function(np.eye(2), [0, 1], -1)
        with pytest.raises(TypeError):
            function(np.eye(2), [0, 1], smoothing=0.1)
        with pytest.raises(TypeError):
            function(np.eye(2))
    with pytest.raises(TypeError):
        fastce.cross_entropy(np.eye(2), [0, 1], out=np.eye(2))


@pytest.mark.parametrize("normalizer", ["2", 1j, [1.0, 2.0]])
def test_normalizer_must_be_a_number(normalizer):
    refused(TypeError, "normalizer is .*expected a number", np.eye(2), [0, 1], normalizer=normalizer)


@pytest.mark.parametrize("normalizer", [-1, -1e-300, np.inf, np.nan])
def test_normalizer_must_be_finite_and_not_negative(normalizer):
    refused(ValueError, "normalizer is .*finite", np.eye(2), [0, 1], normalizer=normalizer)


def test_inputs_are_left_alone(rng):
    x, y, weight = rng.normal(size=(30, 40)), rng.integers(0, 40, 30), rng.uniform(size=30)
    before = [bits(a) for a in (x, y, weight)]
    for a in (x, y, weight):
        a.flags.writeable = False
    for reduction in ("mean", "sum", "none"):
        fastce.cross_entropy_and_grad(x, y, sample_weight=weight, reduction=reduction)
        fastce.cross_entropy(x, y, sample_weight=weight, reduction=reduction)
    assert [bits(a) for a in (x, y, weight)] == before


def test_results_are_fresh():
    x = np.eye(3)
    first = fastce.cross_entropy_and_grad(x, [0, 1, 2], reduction="none")
    second = fastce.cross_entropy_and_grad(x, [0, 1, 2], reduction="none")
    for a, b in zip(first, second, strict=True):
        assert not np.shares_memory(a, b)
        assert a.flags.writeable
        assert a.flags.owndata


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_reduced_losses_are_python_floats(dtype, reduction):
    for x, y in ((np.eye(2, dtype=dtype), [0, 1]), (np.zeros(2, dtype), 0)):
        assert type(fastce.cross_entropy(x, y, reduction=reduction)) is float
        assert type(fastce.cross_entropy_and_grad(x, y, reduction=reduction)[0]) is float


class Acts:
    """An argument that does something when it is asked for its value."""

    def __init__(self, act, value):
        self.act, self.value = act, value

    def __array__(self, dtype=None, copy=None):
        self.act()
        return np.asarray(self.value)

    def __index__(self):
        self.act()
        return self.value

    def __float__(self):
        self.act()
        return float(self.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("changed", ["weight", "target"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("sample_weight", 1.0), ("normalizer", 2), ("ignore_index", -1), ("axis", -1), ("n_threads", 1)],
)
def test_arrays_are_looked_at_after_all_code_of_the_caller_has_run(name, value, changed):
    """A wider dtype, set by the code of another argument, makes half as many elements."""
    rows, classes = (2, 4000) if changed == "weight" else (4000, 2)
    given = {"logits": np.zeros((rows, classes), np.float32), "target": np.zeros(rows, np.int8)}
    given["weight"] = np.ones(classes, np.float32)

    def act():
        given[changed].dtype = np.float64 if changed == "weight" else np.int16

    given[name] = Acts(act, np.ones(rows) if name == "sample_weight" else value)
    with pytest.raises(ValueError, match=rf"{changed} has shape \(2000,\)"):
        fastce.cross_entropy(**given)
