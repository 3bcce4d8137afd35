"""`token_logprobs` against the twin, and what no result may depend on."""

import numpy as np
import pytest
from conftest import DTYPES, FLOATS, KINDS, assert_ulp, bits, nasty
from hypothesis import given
from hypothesis import strategies as st

import fastce
from fastce.inference import token_logprobs
from fastce.reference import inference as reference

# Log-probabilities have the bounds of the losses. A term of an entropy has the errors of its exp, its
# difference and its product, and four are added in the precision of the logits.
LOGPROB_ULP = {"float32": 2, "float64": 4}
ENTROPY_ULP = {"float32": 4, "float64": 8}

# One vector and less, around a group of vectors, around a block, around a piece, several pieces.
CLASS_COUNTS = (1, 2, 9, 33, 1003, 1025, 16_385, 40_000)


def assert_scores(found, exact):
    dtype = found.logprob.dtype.name
    assert_ulp(found.logprob, exact.logprob, LOGPROB_ULP[dtype], label="logprob")
    assert_ulp(found.top_logprobs, exact.top_logprobs, LOGPROB_ULP[dtype], label="top_logprobs")
    assert_ulp(found.entropy, exact.entropy, ENTROPY_ULP[dtype], label="entropy")
    np.testing.assert_array_equal(found.rank, exact.rank)
    np.testing.assert_array_equal(found.top_tokens, exact.top_tokens)


@pytest.mark.parametrize("n_classes", CLASS_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_twin(dtype, n_classes):
    x, y = nasty(dtype, len(KINDS), n_classes)
    k = min(n_classes, 7)
    assert_scores(token_logprobs(x, y, top_k=k), reference.token_logprobs(x, y, top_k=k))


@pytest.mark.parametrize("temperature", [0.3, 2.5, 1e-3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_temperature(dtype, temperature):
    x, y = nasty(dtype, 60, 1500, ("normal", "wide", "confident 25", "offset 1e4", "masked -inf", "wrong 12"))
    options = {"temperature": temperature, "top_k": 3}
    assert_scores(token_logprobs(x, y, **options), reference.token_logprobs(x, y, **options))


@pytest.mark.parametrize(("softcap", "temperature"), [(30.0, 0.7), (2.0, 1.0), (50.0, 10.0)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_softcap(dtype, softcap, temperature):
    """A capped logit is rounded, at most to half an ULP of `term`, before its exp is taken. That much a
    logarithm is off; in the entropy each p_j is, times its distance from the mean one, 2 H.
    """
    x, y = nasty(dtype, 40, 1500, ("normal", "wide", "masked -inf", "ties", "confident 25"))
    options = {"softcap": softcap, "temperature": temperature, "top_k": 3}
    found, exact = token_logprobs(x, y, **options), reference.token_logprobs(x, y, **options)
    np.testing.assert_array_equal(found.rank, exact.rank)
    np.testing.assert_array_equal(found.top_tokens, exact.top_tokens)
    term, bound = softcap / temperature, 1.5 * LOGPROB_ULP[found.logprob.dtype.name]
    for field in ("logprob", "top_logprobs"):
        value = getattr(exact, field)
        assert_ulp(getattr(found, field), value, bound, np.maximum(term, abs(value)), field)
    scale = np.maximum(term * (1 + 2 * exact.entropy), exact.entropy)
    assert_ulp(found.entropy, exact.entropy, 1.5 * ENTROPY_ULP[found.logprob.dtype.name], scale, "entropy")


@pytest.mark.parametrize("k", [32, 33])
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sorted_rows(dtype, order, k):
    """The largest so far is another one in each group of vectors, or the first."""
    x = np.sort(nasty(dtype, 4, 9003, "normal")[0])
    x, y = x if order == "ascending" else x[:, ::-1].copy(), [0, 9002, 1030, 4500]
    assert_scores(token_logprobs(x, y, top_k=k), reference.token_logprobs(x, y, top_k=k))


def test_no_negative_zero(level):
    x = np.array([[0, -np.inf, -np.inf], [150, 0, 0]], np.float32)
    found = token_logprobs(x, [0, 0], top_k=1)
    for a in (found.logprob, found.entropy, found.top_logprobs.ravel()):
        assert bits(a) == bits(np.zeros(2, np.float32))


def test_is_the_loss(level):
    x, y = nasty(np.float32, 200, 3000)
    loss = fastce.cross_entropy(x, y, reduction="none")
    found = -token_logprobs(x, y).logprob
    assert_ulp(found, loss.astype(np.float64), 4)  # each within 2 of the exact one


@pytest.mark.parametrize("n_classes", [5, 1025, 40_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_axes(dtype, n_classes):
    """The same bits whatever the strides, the byte order and the order of the axes."""
    x, y = nasty(dtype, 6 * 7, n_classes, ("normal", "ties", "confident 25", "masked -inf"))
    x, y = x.reshape(6, 7, n_classes), y.reshape(6, 7)
    plain = token_logprobs(x, y, top_k=4)
    for axis in range(3):
        moved = np.moveaxis(x, -1, axis)
        strided = np.empty((*moved.shape[:-1], 2 * moved.shape[-1]), dtype)[..., ::-2]
        strided[...] = moved
        for given_x in (moved, np.ascontiguousarray(moved), np.asfortranarray(moved), strided):
            found = token_logprobs(given_x, y, top_k=4, axis=axis)
            for a, b in zip(found, plain, strict=True):
                assert bits(a) == bits(b)
    if dtype.name != "bfloat16":
        swapped = x.astype(x.dtype.newbyteorder())
        assert bits(token_logprobs(swapped, y.astype(">i4")).entropy) == bits(plain.entropy)
    broadcast = token_logprobs(np.broadcast_to(x[:1], x.shape), np.broadcast_to(y[:1], y.shape))
    assert bits(broadcast.entropy[3]) == bits(plain.entropy[0])


@pytest.mark.parametrize("shape", [(1, 100_000), (3, 40_000), (400, 1500), (5000, 17)])
@pytest.mark.parametrize("order", "CF")
def test_threads_and_splits(shape, order):
    """The same bits for any number of threads and any split of the batch."""
    x, y = nasty(np.float32, *shape, ("normal", "wide", "wrong 12", "confident 25", "ties"))
    x = np.asarray(x, order=order)
    one = token_logprobs(x, y, top_k=10, n_threads=1)
    for n_threads in (2, 3, 7):
        for a, b in zip(token_logprobs(x, y, top_k=10, n_threads=n_threads), one, strict=True):
            assert bits(a) == bits(b)
    middle = shape[0] // 2
    halves = [token_logprobs(x[part], y[part], top_k=10) for part in (slice(0, middle), slice(middle, None))]
    for a, b, whole in zip(*halves, one, strict=True):
        assert bits(np.concatenate([a, b])) == bits(whole)


@pytest.mark.parametrize("n_classes", [40, 9000])
@pytest.mark.parametrize("where", ["first", "last", "target"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf], ids=["nan", "negative nan", "inf"])
def test_invalid_rows(value, where, n_classes):
    x, y = nasty(np.float32, 5, n_classes, "normal")
    clean = token_logprobs(x, y, top_k=2)
    x[2, {"first": 0, "last": -1, "target": y[2]}[where]] = value
    found = token_logprobs(x, y, top_k=2)
    others = np.arange(5) != 2
    for a, b in zip(found, clean, strict=True):
        assert bits(a[others]) == bits(b[others])
    assert np.isnan([found.logprob[2], found.entropy[2], *found.top_logprobs[2]]).all()
    assert found.rank[2] == 0
    assert (found.top_tokens[2] == -1).all()


def test_nothing_but_minus_infinity():
    found = token_logprobs(np.full((1, 3000), -np.inf), [0], top_k=1)
    assert np.isnan(found.logprob[0])
    assert found.rank[0] == 0
    assert found.top_tokens[0, 0] == -1


def test_masked_vocabulary():
    """Few finite logits: those at -inf follow in their order, with probability 0."""
    x = np.full(2000, -np.inf)
    x[[1990, 7]] = 1, 0
    found = token_logprobs(x, 5, top_k=5)
    assert found.top_tokens.tolist() == [1990, 7, 0, 1, 2]
    assert found.top_logprobs[2:].tolist() == [-np.inf] * 3
    assert found.logprob == -np.inf
    assert found.rank == 3
    assert_ulp(found.entropy, reference.token_logprobs(x, 5).entropy, 8)


def test_ignored_rows_are_not_read():
    x, y = nasty(np.float64, 4, 50, "normal")
    x[1], y[1] = np.nan, -100
    found = token_logprobs(x, y, top_k=2)
    assert found.logprob[1] == found.entropy[1] == found.rank[1] == 0
    assert found.top_tokens[1].tolist() == [-1, -1]
    assert found.top_logprobs[1].tolist() == [0, 0]
    y[1] = 49
    for a, b in zip(token_logprobs(x[[0, 3]], y[[0, 3]]), token_logprobs(x, y, ignore_index=49), strict=True):
        assert bits(a) == bits(b[[0, 3]])


@given(
    x=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 30.0, -np.inf]), min_size=1, max_size=80),
    k=st.integers(0, 80),
    y=st.integers(0, 79),
)
def test_ties(level, x, k, y):
    """Few different logits: ranks count what is strictly larger, ties go by index."""
    x, y, k = np.array(x), y % len(x), k % (len(x) + 1)
    if np.isneginf(x).all():
        return
    assert_scores(token_logprobs(x, y, top_k=k), reference.token_logprobs(x, y, top_k=k))


@given(data=st.data())
def test_random_calls(level, data):
    """Any shape, axis, order, dtype, kind of rows and temperature."""
    draw = data.draw
    dtype = draw(st.sampled_from(DTYPES))
    n_classes = draw(st.integers(1, 300) | st.sampled_from([1024, 8200]))
    batch = tuple(draw(st.lists(st.integers(0, 4), max_size=2)))
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3))
    x, y = nasty(dtype, int(np.prod(batch)), n_classes, tuple(kinds), seed=draw(st.integers(0, 99)))
    x, y = x.reshape(*batch, n_classes), y.reshape(batch)
    axis = draw(st.integers(0, len(batch)))
    x = np.asarray(np.moveaxis(x, -1, axis), order=draw(st.sampled_from("CFK")))
    options = {
        "axis": axis - draw(st.sampled_from([0, len(batch) + 1])),
        "top_k": draw(st.integers(0, min(n_classes, 100))),
        "temperature": draw(st.sampled_from([1.0, 1.0, 0.7, 40.0])),
    }
    found = token_logprobs(x, y, **options, n_threads=draw(st.sampled_from([None, 1, 3])))
    assert_scores(found, reference.token_logprobs(x, y, **options))


def test_sure_rows_keep_their_digits(level):
    """Where log s and p - 1 would have none left: the right token, and a wrong one."""
    x = np.array([[60.0, 0, 0], [0, 60.0, 0]])
    found = token_logprobs(x, [0, 0])
    assert_ulp(found.logprob, reference.token_logprobs(x, [0, 0]).logprob, 4)
    assert_ulp(found.entropy, reference.token_logprobs(x, [0, 0]).entropy, 8)
    assert 0 < found.entropy[0] < 1e-23


@pytest.mark.once
def test_shapes():
    x = np.zeros((2, 0, 5))
    assert token_logprobs(x, np.zeros((2, 0), int), top_k=2).top_tokens.shape == (2, 0, 2)
    scalar = token_logprobs(np.zeros(4), 1)
    assert scalar.logprob.shape == ()
    assert scalar.rank == 1
    assert token_logprobs(np.zeros((2, 3), bool), [0, 1]).logprob.dtype == np.float64


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"tokens": [[0, 1], [7, 0]]},
            IndexError,
            r"tokens\[1, 0\] is 7; expected a class index in \[0, 5\)",
        ),
        ({"tokens": [[0, 1], [-1, 0]]}, IndexError, r"tokens\[1, 0\] is -1.*or ignore_index=-100"),
        ({"tokens": [[0, 1], [-100, 0]], "ignore_index": None}, IndexError, r"is -100; expected .*\[0, 5\)$"),
        ({"tokens": [[0.0, 1], [0, 0]]}, TypeError, "tokens has dtype float64"),
        ({"tokens": [0, 1]}, ValueError, r"tokens has shape \(2,\); expected \(2, 2\)"),
        ({"top_k": 6}, ValueError, r"top_k is 6; expected an int in \[0, 5\]"),
        ({"top_k": -1}, ValueError, "top_k is -1"),
        ({"top_k": 2.5}, TypeError, "top_k is 2.5; expected an int"),
        ({"temperature": 0}, ValueError, "temperature is 0"),
        ({"softcap": -1}, ValueError, "softcap is -1"),
        ({"logits": np.zeros((2, 2, 5), complex)}, TypeError, "logits has dtype complex128"),
        ({"logits": np.zeros((2, 2, 0))}, ValueError, "no classes"),
        ({"n_threads": 0}, ValueError, "n_threads is 0"),
    ],
)
def test_refusals(change, error, message):
    arguments = {"logits": np.zeros((2, 2, 5)), "tokens": [[0, 1], [2, 0]]} | change
    with pytest.raises(error, match=message):
        token_logprobs(arguments.pop("logits"), arguments.pop("tokens"), **arguments)


def test_flushed_subnormals_of_the_host(level):
    """Kernels compute in an environment of their own, on every thread."""
    torch = pytest.importorskip("torch", reason="sets the processor's mode")
    x, y = nasty(np.float32, 300, 900, ("confident subnormal", "subnormal"))
    before = token_logprobs(x, y)
    if not torch.set_flush_denormal(True):
        return
    try:
        for a, b in zip(token_logprobs(x, y, n_threads=2), before, strict=True):
            assert bits(a) == bits(b)
    finally:
        torch.set_flush_denormal(False)
