"""Every array argument of every function in every way NumPy's users have of holding an array.

Either the result is that of a plain array, bit for bit, or the argument is refused: another result would
be a silent error. Known from cython #4467 and #1605: read-only memory and fields of records.
"""

import array
import ctypes
import enum
import mmap
from collections import UserList, deque
from operator import attrgetter

import numpy as np
import pytest
from calls import digest
from test_bad_input import FUNCTIONS, SHAPE, C, N, derivatives

import fastce

pytestmark = pytest.mark.once  # the levels share the way from arguments to addresses

rng = np.random.default_rng(3)
OPTIONAL = {"weight": C, "sample_weight": N, "pos_weight": C, "b": SHAPE}


def functions():
    """Names, and arguments with all the arrays there are."""
    for function in FUNCTIONS:
        taken = {bad.parameter for bad in function.bad}
        optional = {key: rng.random(shape) for key, shape in OPTIONAL.items() if key in taken}
        options = {"axis": 1} if function.valid.keys() & {"x", "a"} else {}
        for name in function.names:
            yield name, {**function.valid, **optional}, options
    p, q = rng.dirichlet(np.ones(C), N), rng.dirichlet(np.ones(C), N)
    for name in ("cross_entropy", "kl_divergence"):
        yield f"information.{name}", {"p": p, "q": q}, {}
    for name in ("entropy", "self_information"):
        yield f"information.{name}", {"p": p}, {}
    labels = {"y_true": np.arange(N), "y_proba": rng.dirichlet(np.ones(N), N), "sample_weight": rng.random(N)}
    yield "log_loss", labels, {}


CALLS = {name: (arguments, options) for name, arguments, options in functions()}
ARGUMENTS = [(name, key) for name, (arguments, _) in CALLS.items() for key in arguments]


def call(name, replaced, **more):
    arguments, options = CALLS[name]
    given = {**arguments, **replaced}
    positional = [given.pop(key) for key in [*given] if key not in OPTIONAL]
    return attrgetter(name)(fastce)(*positional, **given, **options, **more)


# ---- Arrays as they may come ------------------------------------------------------------------------


def unaligned(a):
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def reversed_axes(a):
    back = (slice(None, None, -1),) * a.ndim
    return a[back].copy()[back]


def stepped(a):
    view = np.zeros([3 * length for length in a.shape], a.dtype)[(slice(1, None, 3),) * a.ndim]
    view[...] = a
    return view


def field(a, align, of=np.ndarray):
    dtype = np.dtype([("before", "u1"), ("field", a.dtype), ("after", "u2")], align=align)
    records = np.zeros(a.shape, dtype).view(of)
    records["field"] = a
    return records["field"]


def subarray_field(a):
    """An array that is one field of one record."""
    record = np.zeros((), np.dtype([("before", "u1"), ("field", a.dtype, a.shape)]))
    record["field"] = a
    return record["field"]


def mapped(a, folder):
    """At an odd place in a file."""
    (folder / "mapped").write_bytes(b"odd" + a.tobytes())
    return np.memmap(folder / "mapped", a.dtype, "r", offset=3, shape=a.shape)


def mapping(a):
    memory = mmap.mmap(-1, a.nbytes)
    memory.write(a.tobytes())
    return memoryview(memory).cast(a.dtype.char, a.shape)


class Subclass(np.ndarray):
    """Whose arithmetic is its own, to be kept out of results."""

    def __array_ufunc__(self, *_, **__):
        raise AssertionError("arithmetic of the subclass")

    def __array_function__(self, *_, **__):
        raise AssertionError("a function of the subclass")


class Converts:
    """Like a column of a data frame."""

    def __init__(self, a):
        self.a, self.dtype, self.shape, self.ndim = a, a.dtype, a.shape, a.ndim

    def __array__(self, dtype=None, copy=None):
        assert copy is not True
        return self.a if dtype is None else self.a.astype(dtype)

    def __len__(self):
        return len(self.a)

    def __getitem__(self, key):
        return self.a[key]


class Interface:
    def __init__(self, a, attribute="__array_interface__"):
        self.a = a
        setattr(self, attribute, getattr(a, attribute))


class DLPack:
    def __init__(self, a):
        self.a = a

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


def ctypes_array(a):
    kind = {"d": ctypes.c_double, "l": ctypes.c_long, "q": ctypes.c_longlong}[a.dtype.char]
    for length in reversed(a.shape):
        kind = kind * length
    return kind.from_buffer_copy(a.tobytes())


FORMS = {
    "unaligned": unaligned,
    "read-only": read_only,
    "reversed": reversed_axes,
    "stepped": stepped,
    "Fortran": lambda a: np.asfortranarray(a),
    "field, packed": lambda a: field(a, align=False),
    "field, aligned": lambda a: field(a, align=True),
    "field of a recarray": lambda a: field(a, False, np.recarray),
    "field of one record": subarray_field,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "swapped, unaligned": lambda a: unaligned(a.astype(a.dtype.newbyteorder())),
    "subclass": lambda a: a.view(Subclass),
    "list": lambda a: a.tolist(),
    "tuple of arrays": tuple,
    "memoryview": lambda a: memoryview(a.copy()),
    "mmap": mapping,
    "ctypes": ctypes_array,
    "__array__": Converts,
    "__array_interface__": Interface,
    "__array_struct__": lambda a: Interface(a, "__array_struct__"),
    "__dlpack__": DLPack,
}


def native(result):
    """The digest of results, which have the byte order of the logits."""
    parts = result if isinstance(result, tuple) else (result,)
    return digest(tuple(np.asarray(part, np.result_type(part)) for part in parts))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_same_result(name, form):
    """One argument after the other, and all of them at once."""
    arguments, _ = CALLS[name]
    expected = native(call(name, {}))
    made = {key: FORMS[form](a) for key, a in arguments.items()}
    if name == "log_loss":  # scikit-learn decides what it takes, and computes with some of it
        for key, a in made.items() if form != "subclass" else ():
            try:
                got = call(name, {key: a})
            except (TypeError, ValueError):
                assert not isinstance(a, np.ndarray | list)
            else:
                assert native(got) == expected, key
        return
    for key, a in made.items():
        assert native(call(name, {key: a})) == expected, key
    if form != "Fortran":  # rows that are adjacent are summed in another order
        assert native(call(name, made)) == expected


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_memory_map_at_an_odd_place(name, key, tmp_path):
    a = CALLS[name][0][key]
    assert digest(call(name, {key: mapped(a, tmp_path)})) == digest(call(name, {}))


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_one_dimension_of_the_standard_library(name, key):
    a = CALLS[name][0][key]
    if a.ndim == 1:
        assert digest(call(name, {key: array.array(a.dtype.char, a.tolist())})) == digest(call(name, {}))


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_one_element_for_all(name, key):
    """Strides of 0."""
    a = CALLS[name][0][key]
    shared = np.broadcast_to(a.reshape(-1)[:1].reshape((1,) * a.ndim), a.shape)
    if name == "log_loss" and key != "sample_weight":
        return  # neither all labels nor all probabilities may be the same
    assert digest(call(name, {key: shared})) == digest(call(name, {key: shared.copy()}))


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_masked_arrays_are_refused(name, key):
    """Also those whose mask masks nothing: another time it may."""
    a = CALLS[name][0][key]
    for mask in (False, np.arange(a.size).reshape(a.shape) == 1):
        with pytest.raises(TypeError, match=f"{key} is or holds a masked array"):
            call(name, {key: np.ma.masked_array(a, mask)})
    parts = [np.ma.masked_array(part, True) for part in a]
    for given in (parts, tuple(parts), deque(parts), UserList(parts), [*a[:-1], np.ma.masked]):
        with pytest.raises(TypeError, match=f"{key} is or holds a masked array"):
            call(name, {key: given})
    if name != "log_loss":  # scikit-learn converts what has a shape
        with pytest.raises(TypeError, match=f"{key} is or holds a masked array"):
            call(name, {key: Converts(np.ma.masked_array(a, True))})


class Label(enum.IntEnum):
    CAT = 0
    DOG = 1


class Letters(enum.Flag):
    A = 1
    B = 2


def test_members_of_an_enum():
    """Whose class is a sequence of them, which they are not themselves."""
    x, members = np.array([2.0, 1, 0]), [Label.DOG, Label.CAT]
    assert fastce.cross_entropy(x, Label.DOG) == fastce.cross_entropy(x, 1)
    assert fastce.cross_entropy(np.eye(2), members) == fastce.cross_entropy(np.eye(2), [1, 0])
    for weight in (Label.DOG, [Label.DOG] * 3):
        of_elements = fastce.binary_cross_entropy_with_logits(x, Label.DOG, weight=weight, pos_weight=weight)
        assert of_elements == fastce.binary_cross_entropy_with_logits(x, 1)
    weights = {"weight": [Label.DOG] * 3, "sample_weight": Label.DOG}
    assert fastce.cross_entropy(x, 1, **weights) == fastce.cross_entropy(x, 1)
    assert fastce.softmax(Label.DOG) == 1
    assert fastce.logsumexp(x, b=Label.DOG) == fastce.logsumexp(x, b=1)
    assert fastce.cross_entropy(np.eye(2), members, axis=Label.DOG) == fastce.cross_entropy(np.eye(2), [1, 0])
    for member in (Letters.A, Letters.A | Letters.B):
        with pytest.raises(TypeError, match="target has dtype object"):
            fastce.cross_entropy(x, member)


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_lists_without_end_are_refused(name, key):
    endless, deep = [], []
    endless.append(endless)
    for _ in range(20_000):
        deep = [deep]
    for given in (endless, deep):
        with pytest.raises((TypeError, ValueError)):
            call(name, {key: given})


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_matrices(name, key):
    """They are of two dimensions, always: a vector that becomes one has another shape."""
    a = CALLS[name][0][key]
    matrix = np.asmatrix(a)
    if name == "log_loss":  # which scikit-learn checks
        with pytest.raises(TypeError, match="matrix"):
            call(name, {"y_proba": np.asmatrix(CALLS[name][0]["y_proba"])})
    elif a.ndim == 2:
        result = call(name, {key: matrix})
        assert digest(result) == digest(call(name, {}))
        for part in result if isinstance(result, tuple) else (result,):
            assert not isinstance(part, np.matrix)
    else:
        try:
            got = call(name, {key: matrix})
        except (TypeError, ValueError):
            return
        assert digest(got) == digest(call(name, {key: a.reshape(1, -1)}))


# ---- Nothing, or one number -------------------------------------------------------------------------

REFUSALS = (ValueError, TypeError, IndexError)


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
@pytest.mark.parametrize("shape", [(0,), (0, C), (N, 0), (0, 0), (N, C, 0), ()], ids=str)
def test_empty_or_scalar_in_every_place(name, key, shape):
    """Beside arguments that hold something: refused, with nothing written, or broadcast as NumPy would."""
    a = CALLS[name][0][key]
    odd = np.ones(shape, a.dtype)
    written = dict(derivatives(name, CALLS[name][0]))
    if name == "logsumexp":
        written["out"] = np.full(N, 7.0)
    try:
        got = call(name, {key: odd}, **written)
    except REFUSALS:
        assert all((part == 7).all() for part in written.values())
        return
    others = [b for other, b in CALLS[name][0].items() if other != key]
    full = np.broadcast_to(odd, np.broadcast_shapes(shape, *(b.shape for b in others)))
    if full.size:
        assert digest(got) == digest(call(name, {key: full.copy()}))


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
@pytest.mark.parametrize("odd", [1, 0.5, True, np.float32(1), None, (), [], "", b"", {}, object], ids=repr)
def test_no_arrays_at_all(name, key, odd):
    """Numbers where NumPy would broadcast them; never a crash."""
    try:
        got = call(name, {key: odd})
    except REFUSALS:
        return
    if odd is None:
        assert key in OPTIONAL
        return
    assert digest(got) == digest(call(name, {key: np.asarray(odd)}))


# ---- Where results go -------------------------------------------------------------------------------

PLACES = [form for form in FORMS if form.startswith(("unal", "rev", "step", "Fort", "field", "sub"))]
WRITERS = [(name, key) for name, (given, _) in CALLS.items() for key, _ in derivatives(name, given)]


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("form", [*PLACES, "matrix", "memory map"])
@pytest.mark.parametrize(("name", "key"), WRITERS)
def test_places_to_write(name, key, form, tmp_path):
    plain = np.zeros(N if name == "logsumexp" else SHAPE)
    expected = call(name, {}, **{key: plain})
    if form == "memory map":
        (tmp_path / "out").write_bytes(b"odd" + plain.tobytes())
        out = np.memmap(tmp_path / "out", plain.dtype, "r+", offset=3, shape=plain.shape)
    elif form == "matrix":
        out = np.asmatrix(plain.copy())
        if plain.ndim == 1:
            with pytest.raises(ValueError, match=key):
                call(name, {}, **{key: out})
            return
    else:
        out = FORMS[form](plain)
    got = call(name, {}, **{key: out})
    assert got is out or any(part is out for part in got)
    assert digest(got) == digest(expected)
    assert digest(np.asarray(out)) == digest(plain)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1), (1, 0)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_matrix_for_joined_axes(name, axis):
    """It stays one of two dimensions when it is flattened, and is written where it is, not beside it."""
    x, function = rng.normal(size=SHAPE), getattr(fastce, name)
    options = {"keepdims": True} if name == "logsumexp" else {}
    expected = function(x, axis=axis, **options)
    memory = np.full((50, expected.shape[1]), 7.0)
    out = np.asmatrix(memory[20 : 20 + len(expected)])
    assert function(x, axis=axis, out=out, **options) is out
    assert digest(np.asarray(out)) == digest(expected)
    assert (memory[:20] == 7).all()
    assert (memory[20 + len(expected) :] == 7).all()
