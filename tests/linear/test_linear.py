"""linear_cross_entropy: the twin, both ways, every option, bits, what is refused."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from conftest import DTYPES, FLOATS, bits

import fastce
from fastce import reference
from fastce.inference import score
from fastce.linear import arguments

WAYS = {"kernels": 1 << 16, "blas": 0}
SHAPES = [
    (1, 1, 2),
    (3, 5, 1),
    (64, 8, 3),
    (65, 17, 10),
    (200, 64, 7),
    (300, 33, 113),
    (7, 300, 40),
    (130, 3, 300),
    (1, 60, 40),
    (9, 60, 2),
]
# Of sums of n products in float32 or float64, in units of eps times the sum of their sizes: n for products
# added up one after the other. Random signs make it about the root of that.
LOGIT = 2.0


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(arguments, "FEW_WEIGHTS", WAYS[request.param])
    return request.param


def problem(shape, dtype=np.float64, seed=0, sure=0.0):
    n_rows, n_features, n_classes = shape
    rng = np.random.default_rng([seed, *shape])
    x = rng.normal(size=(n_rows, n_features)).astype(dtype)
    w = (rng.normal(size=(n_classes, n_features)) * (1 + sure) / np.sqrt(n_features)).astype(dtype)
    b = rng.normal(size=n_classes).astype(dtype)
    return x, w, b, rng.integers(0, n_classes, n_rows)


def assert_close(got, exact, scale, eps, label=""):
    """Within eps of the sizes of what was added up."""
    error = np.abs(np.asarray(got, np.longdouble) - np.asarray(exact))
    allowed = eps * np.asarray(scale, np.longdouble)
    excess = np.asarray(error - allowed)
    assert (excess <= 0).all(), f"{label}: off by {(error / allowed).max():.3g} of what is allowed"


def check(x, w, y, dtype, b=None, eps=None, **options):
    """Loss and gradients against the twin."""
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, **options)
    exact, exact_grad = reference.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, **options)
    alone = fastce.linear_cross_entropy(x, w, y, linear_bias=b, **options)
    computed = np.finfo(np.float64 if dtype == np.float64 else np.float32).eps
    eps = computed if eps is None else eps
    wide = [np.abs(np.asarray(a, float)) for a in (x, w)]
    # A logit is off by so much, and so are a loss and, relatively, a gradient.
    logit = LOGIT * (wide[0] @ wide[1].T + (0 if b is None else np.abs(np.asarray(b, float)))).max(initial=1)
    size = np.abs(exact).max(initial=1) if options.get("reduction") != "none" else 1 + np.abs(exact)
    assert_close(loss, exact, logit * size, computed, "loss")
    assert_close(alone, exact, logit * size, computed, "loss alone")
    rows = np.abs(
        reference.cross_entropy_and_grad(x.astype(float) @ w.T.astype(float), y, **options)[1]
    ).astype(float)
    rows = rows.reshape(-1, len(w)) + 1 / (len(rows) * len(w))
    x2 = wide[0].reshape(-1, x.shape[-1])
    scales = ((rows @ wide[1]).reshape(x.shape), rows.T @ x2, rows.sum(axis=0))
    for name, a, e, scale in zip(grad._fields, grad, exact_grad, scales, strict=True):
        if a is not None:
            assert_close(a, e, (logit + len(w) + 8) * scale, eps, name)
    return loss, grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_twin(shape, dtype, way):
    x, w, b, y = problem(shape, dtype)
    loss, grad = check(x, w, y, dtype, b)
    assert type(loss) is float
    assert [a.dtype for a in grad] == [dtype] * 3
    assert [a.shape for a in grad] == [x.shape, w.shape, b.shape]


OPTIONS = [
    {"weight": True},
    {"sample_weight": True},
    {"label_smoothing": 0.2},
    {"weight": True, "label_smoothing": 0.3, "sample_weight": True},
    {"z_loss": 0.01},
    {"temperature": 2.5},
    {"softcap": 3.0},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"normalizer": 17.0},
    {"ignore_index": 1},
    {"probabilities": True},
    {"probabilities": True, "weight": True, "label_smoothing": 0.1, "reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_options(options, dtype, way):
    options = dict(options)
    x, w, b, y = problem((150, 12, 5), dtype, seed=1)
    rng = np.random.default_rng(3)
    if options.get("weight"):
        options["weight"] = rng.random(5)
    if options.get("sample_weight"):
        options["sample_weight"] = rng.random(150)
    if options.pop("probabilities", False):
        y = rng.random((150, 5)).astype(dtype)
    check(x, w, y, dtype, b, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_halves(dtype, way):
    """Read as they are, computed in float32, rounded once."""
    x, w, b, y = problem((100, 20, 6), dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    loss, grad = check(x, w, y, dtype, b, eps=eps)
    assert [a.dtype for a in grad] == [dtype] * 3
    wide = [a.astype(np.float32) for a in (x, w, b)]
    if dtype.itemsize == 2:
        same, exact = fastce.linear_cross_entropy_and_grad(*wide[:2], y, linear_bias=wide[2])
        assert loss == pytest.approx(same, rel=1e-6)
        for a, e in zip(grad, exact, strict=True):
            assert np.abs(a.astype(float) - e).max() <= eps * np.abs(e).max()


def test_mixed_dtypes(way):
    x, w, b, y = problem((60, 9, 4))
    for dtypes in ((np.float32, np.float64), (np.float64, np.float16), (np.int64, np.float32)):
        xm, wm = (3 * x).astype(dtypes[0]), w.astype(dtypes[1])
        _, grad = fastce.linear_cross_entropy_and_grad(xm, wm, y, linear_bias=b)
        exact = reference.linear_cross_entropy_and_grad(xm, wm, y, linear_bias=b)[1]
        assert grad.linear_weight.dtype == wm.dtype
        assert np.abs(grad.linear_weight - exact[1]).max() < 10 * np.finfo(wm.dtype).eps


def test_batch_axes_and_layouts(way):
    rng = np.random.default_rng(5)
    x, w, b, y = problem((60, 10, 4))
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    shaped, shaped_grad = fastce.linear_cross_entropy_and_grad(
        x.reshape(3, 4, 5, 10), w, y.reshape(3, 4, 5), linear_bias=b
    )
    assert shaped == loss
    assert bits(shaped_grad.input) == bits(grad.input)
    one = fastce.linear_cross_entropy(x[0], w, y[0], linear_bias=b)
    assert one == pytest.approx(
        float(reference.linear_cross_entropy(x[0], w, y[0], linear_bias=b)), rel=1e-14
    )
    wide = rng.normal(size=(120, 30))
    wide[::2, ::3] = x
    other_w = np.zeros((4, 25))
    other_w[:, 20:0:-2] = w
    variants = {
        "F": (np.asfortranarray(x), np.asfortranarray(w)),
        "strided": (wide[::2, ::3], other_w[:, 20:0:-2]),
        "reversed": (x[::-1].copy()[::-1], w),
        "swapped": (x.astype(">f8"), w.astype(">f8")),
    }
    for name, (xv, wv) in variants.items():
        got, g = fastce.linear_cross_entropy_and_grad(xv, wv, y, linear_bias=b)
        assert got == pytest.approx(loss, rel=1e-14), name
        for a, e in zip(g, grad, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-15, err_msg=name)


def test_rows_do_not_depend_on_their_place():
    """By kernels: neither on the batch, nor on the order."""
    for dtype in FLOATS:
        x, w, b, y = problem((200, 37, 12), dtype)
        loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, reduction="none")
        order = np.random.default_rng(0).permutation(200)[:77]
        part, part_grad = fastce.linear_cross_entropy_and_grad(
            x[order], w, y[order], linear_bias=b, reduction="none"
        )
        assert bits(part) == bits(loss[order])
        assert bits(part_grad.input) == bits(grad.input[order])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    x, w, b, y = problem((5000, 40, 11), dtype)
    y[::7] = -100
    results = []
    for n_threads in (1, 2, 3):
        loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, n_threads=n_threads)
        results.append((loss, *map(bits, grad)))
    assert results[0] == results[1] == results[2]


def test_ignored_rows_are_not_used(way):
    x, w, b, y = problem((150, 20, 5))
    y[[0, 70, 149]] = -100
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    x[[0, 70]], x[149] = np.nan, np.inf
    again, same = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    assert again == loss
    for a, e in zip(same, grad, strict=True):
        np.testing.assert_array_equal(a, e)
    assert not same.input[[0, 70, 149]].any()
    nothing = fastce.linear_cross_entropy_and_grad(x, w, np.full(150, -100), linear_bias=b)
    assert np.isnan(nothing[0])
    assert not any(a.any() for a in nothing[1])


def test_rows_without_an_axis_of_neighbours(way):
    """Are copied block by block, and left as they were."""
    x, w, _, y = problem((50, 60, 20))
    y[::7] = -100
    given = np.repeat(x, 2, axis=1)[:, ::2], np.repeat(w, 2, axis=1)[:, ::2]
    before = given[0].copy()
    out = fastce.LinearGrad(*(np.repeat(np.zeros_like(a), 2, axis=1)[:, ::2] for a in given), None)
    options = {"ignore_index": -100, "memory": 1 << 15}
    loss, grad = fastce.linear_cross_entropy_and_grad(*given, y, out=out, **options)
    expected, exact = reference.linear_cross_entropy_and_grad(x, w, y)
    assert loss == pytest.approx(float(expected), rel=1e-13)
    for a, e in zip(grad[:2], exact[:2], strict=True):
        np.testing.assert_allclose(a, e.astype(float), atol=1e-14)
    assert bits(given[0]) == bits(before)


def test_sure_rows_keep_their_digits(way):
    """Where others subtract p_y w_y from w_y: at a lead of 20 to 25 nothing of it is left in float32."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(10, 32)).astype(np.float32)
    y = rng.integers(0, 10, 300)
    x = (2 * w[y] + 0.1 * rng.normal(size=(300, 32))).astype(np.float32)
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, reduction="sum")
    exact, exact_grad = reference.linear_cross_entropy_and_grad(x, w, y, reduction="sum")
    assert exact < 1e-4
    assert loss == pytest.approx(float(exact), rel=1e-4)  # a logit of 100 is off by 1e-5
    for a, e in zip(grad[:2], exact_grad, strict=False):
        assert np.abs(a - e).max() < 1e-4 * np.abs(e).max()


def test_negative_sample_weights(way):
    """An upstream gradient is one."""
    x, w, b, y = problem((90, 11, 4))
    s = np.random.default_rng(2).normal(size=90)
    s -= s.mean() - 0.3
    check(x, w, y, np.dtype(np.float64), b, sample_weight=s, reduction="sum")
    check(x, w, y, np.dtype(np.float64), b, sample_weight=-np.abs(s))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_out_and_accumulate(dtype, way):
    x, w, b, y = problem((130, 19, 6), dtype)
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)
    out = fastce.LinearGrad(*(np.full_like(a, 7) for a in grad))
    again, same = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, out=out)
    assert again == loss
    assert all(a is o for a, o in zip(same, out, strict=True))
    assert [bits(a) for a in same] == [bits(a) for a in grad]
    fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, out=out, accumulate=True)
    for a, e in zip(out, grad, strict=True):
        np.testing.assert_allclose(a, 2 * e, rtol=4 * np.finfo(dtype).eps, atol=1e-7 * np.abs(e).max())
    odd = fastce.LinearGrad(
        np.zeros((130, 38), dtype)[:, ::2], np.zeros((19, 6), dtype).T, np.zeros(12, dtype)[::2]
    )
    fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, out=odd)
    for a, e in zip(odd, grad, strict=True):
        np.testing.assert_allclose(
            a, e, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-7 * np.abs(e).max()
        )


def test_wrt(way):
    x, w, b, y = problem((30, 7, 4))
    whole = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b)[1]
    for wrt in (
        (),
        ("input",),
        ("linear_weight",),
        ("linear_bias",),
        ("input", "linear_bias"),
        "linear_weight",
    ):
        grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, wrt=wrt)[1]
        for name, a, e in zip(grad._fields, grad, whole, strict=True):
            assert (a is None) == (name not in wrt)
            if a is not None:
                assert bits(a) == bits(e)
    assert fastce.linear_cross_entropy_and_grad(x, w, y)[1].linear_bias is None


def test_no_rows(way):
    w = np.ones((3, 4))
    loss, grad = fastce.linear_cross_entropy_and_grad(np.empty((0, 4)), w, [])
    assert np.isnan(loss)
    assert grad.input.shape == (0, 4)
    assert not grad.linear_weight.any()
    assert fastce.linear_cross_entropy(np.empty((0, 4)), w, [], reduction="sum") == 0


def test_no_classes_and_no_rows(way):
    x = w = np.empty((0, 4))
    for y in (np.empty(0, int), np.empty((0, 0))):
        loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, reduction="sum")
        assert loss == 0
        assert (grad.input.shape, grad.linear_weight.shape) == ((0, 4), (0, 4))
    assert score(x, w, np.empty(0, int)).logprob.shape == (0,)
    with pytest.raises(ValueError, match="no classes"):
        score(np.empty((3, 4)), w, np.full(3, -100))


def test_no_features(way):
    bias, y = np.arange(5.0), np.array([[0, 4], [2, 1]])
    x, w = np.ones((2, 2, 0)), np.ones((5, 0))
    loss, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=bias)
    expected, of_logits = fastce.cross_entropy_and_grad(np.broadcast_to(bias, (2, 2, 5)), y)
    assert loss == expected
    assert (grad.input.shape, grad.linear_weight.shape) == ((2, 2, 0), (5, 0))
    np.testing.assert_allclose(grad.linear_bias, of_logits.sum(axis=(0, 1)), rtol=1e-14)


def test_labels_are_checked_before_anything_is_written(way):
    x, w, b, y = problem((200, 10, 4))
    y[150] = 4
    out = fastce.LinearGrad(*(np.full_like(a, 7) for a in (x, w, b)))
    with pytest.raises(IndexError, match=r"target\[150\] is 4; expected a class index in \[0, 4\)"):
        fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, out=out)
    assert all((a == 7).all() for a in out)


@pytest.mark.parametrize("kind", ["array", "memoryview", "tensor"])
@pytest.mark.parametrize("name", ["target", "weight", "sample_weight"])
def test_out_is_apart_from_all_that_is_read(name, kind):
    x, w, _, y = problem((30, 6, 6))
    shared = {"target": np.zeros((30, 6)), "weight": np.zeros(6), "sample_weight": np.zeros(30)}[name]
    given = memoryview(shared) if kind == "memoryview" else shared
    if kind == "tensor":
        given = pytest.importorskip("torch").from_numpy(shared)
    grads = (shared[::-1], None, None) if name == "target" else (None, None, shared[:6])
    arguments = {"target": y, "linear_bias": np.zeros(6)} | {name: given}
    with pytest.raises(ValueError, match=rf"out\.\w+ overlaps {name} in memory"):
        fastce.linear_cross_entropy_and_grad(x, w, out=grads, **arguments)


def test_refusals():
    x, w, b, y = problem((20, 6, 3))
    f, g = fastce.linear_cross_entropy, fastce.linear_cross_entropy_and_grad
    with pytest.raises(ValueError, match=r"linear_weight has shape \(3, 5\) and input \(20, 6\)"):
        f(x, w[:, :5], y)
    with pytest.raises(ValueError, match=r"linear_bias has shape \(2,\); expected \(3,\)"):
        f(x, w, y, linear_bias=b[:2])
    with pytest.raises(ValueError, match=r"target has shape \(19,\); expected \(20,\)"):
        f(x, w, y[1:])
    with pytest.raises(ValueError, match=r"sample_weight has shape \(2,\)"):
        f(x, w, y, sample_weight=[1.0, 2.0])
    with pytest.raises(TypeError, match="input has dtype complex128"):
        f(x.astype(complex), w, y)
    for memory in (True, 1.5, np.ma.masked_array(2**20, True)):
        with pytest.raises(TypeError, match=r"(?s)memory is .*; expected an int"):
            f(x, w, y, memory=memory)
    with pytest.raises(TypeError, match="memory is 'much'"):
        f(x, w, y, memory="much")
    with pytest.raises(ValueError, match="wrt has 'weights'"):
        g(x, w, y, wrt=("weights",))
    for wrt in ("linear_bias", ("linear_bias",), ["input", "linear_bias"], ("linear_weight", "linear_bias")):
        with pytest.raises(ValueError, match=r"wrt has 'linear_bias', which is not given; .*numpy.zeros"):
            g(x, w, y, wrt=wrt)
    for shape in ((3,), (20, 3, 1)):  # of classes that are elsewhere, whose axis nobody can give
        with pytest.raises(ValueError, match=r"target has shape") as error:
            f(x, w, np.zeros(shape, int))
        assert "use axis" not in str(error.value)
    for wrt in (None, 5):
        with pytest.raises(TypeError, match=f"wrt is {wrt}; expected names out of input, linear_weight"):
            g(x, w, y, wrt=wrt)
    for out, given in (((x, w), "tuple of 2"), (5, "int"), (x, "ndarray")):
        with pytest.raises(TypeError, match=f"out is a {given}; expected a LinearGrad"):
            g(x, w, y, out=out)
    assert f(x, w, y, memory=2**63) == f(x, w, y)
    with pytest.raises(ValueError, match="no classes"):
        f(x, np.empty((0, 6)), y)
    with pytest.raises(ValueError, match="accumulate is True without out"):
        g(x, w, y, accumulate=True)
    with pytest.raises(
        ValueError, match=r"out.linear_weight has shape \(3, 5\).*expected those of linear_weight"
    ):
        g(x, w, y, out=(None, np.empty((3, 5)), None))
    with pytest.raises(ValueError, match=r"out\.input overlaps input"):
        g(x, w, y, out=(x, None, None))
    buffer = np.empty((20, 6))
    with pytest.raises(ValueError, match=r"out\.linear_weight overlaps out\.input"):
        g(x, w, y, out=(buffer, buffer[:3], None))
    with pytest.raises(ValueError, match="out has an array for linear_bias"):
        g(x, w, y, out=(None, None, b))


@pytest.mark.once
@pytest.mark.parametrize("shape", [(6000, 64, 5000), (100_000, 20, 300)], ids=str)
def test_peak_memory(shape):
    """Beside arguments and results: `memory`, and 16 MiB that Python and the sums of blocks may take."""
    x, w, b, y = problem(shape, np.float32)
    out = fastce.LinearGrad(np.zeros_like(x), np.zeros_like(w), np.zeros_like(b))
    memory = 1 << 24
    strided = [np.repeat(a, 2, axis=1)[:, ::2] for a in (x, w)]
    for accumulate, given in ((False, (x, w)), (True, (x, w)), (False, strided)):
        tracemalloc.start()
        fastce.linear_cross_entropy_and_grad(
            *given, y, linear_bias=b, out=out, accumulate=accumulate, memory=memory
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < memory + (1 << 24)
