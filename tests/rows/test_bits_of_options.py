"""The same bits for any number of threads, split of the batch and order of rows, of calls with options."""

import numpy as np
import pytest
from conftest import DTYPES, FLOATS, bits, nasty

import fastce

THREADS = (1, 2, 3, 8)
# The last are rows of several pieces, fewer of them than threads.
SHAPES = ((4001, 10), (700, 57), (50, 1003), (9, 8193), (3, 40000), (2, 40000), (1, 40000))


def cosines(x):
    quarter, most = x.dtype.type(0.25), x.dtype.type(4)
    return np.clip(x, -most, most) * quarter


def cross_entropy(**options):
    return lambda x, y, q, **more: fastce.cross_entropy_and_grad(x, y, **{**options, **more})


def hessian(**options):
    return lambda x, y, q, **more: fastce.cross_entropy_and_hess(x, y, **{**options, **more})


def probabilities(function):
    return lambda x, y, q, **more: function(x, q, q, **more)


CALLS = {
    "smoothing, weight": lambda x, y, q, **more: fastce.cross_entropy_and_grad(
        x, y, label_smoothing=0.1, weight=np.linspace(0.5, 2, x.shape[1]), **more
    ),
    "z_loss, temperature": cross_entropy(z_loss=1e-3, temperature=1.7),
    "softcap": cross_entropy(softcap=20.0),
    "probabilities": probabilities(cross_entropy()),
    "probabilities, all": probabilities(
        cross_entropy(label_smoothing=0.2, z_loss=0.01, temperature=0.7, softcap=9.0)
    ),
    "hessian": hessian(),
    "hessian, all": hessian(label_smoothing=0.2, z_loss=0.01, temperature=0.7, softcap=9.0),
    "hessian of probabilities": probabilities(hessian()),
    "focal": lambda x, y, q, **more: fastce.focal_loss_and_grad(x, y, gamma=1.5, **more),
    "hinge": lambda x, y, q, **more: fastce.hinge_loss_and_grad(x, y, **more),
    "hinge, multi_margin": lambda x, y, q, **more: fastce.hinge_loss_and_grad(
        x, y, kind="multi_margin", p=2, weight=np.linspace(0.5, 2, x.shape[-1]), **more
    ),
    "hinge, crammer_singer": lambda x, y, q, **more: fastce.hinge_loss_and_grad(
        x, y, kind="crammer_singer", **more
    ),
    "margin": lambda x, y, q, **more: fastce.margin_cross_entropy_and_grad(cosines(x), y, scale=20, **more),
    "SphereFace": lambda x, y, q, **more: fastce.margin_cross_entropy_and_grad(
        cosines(x), y, scale=20, margin1=4, margin2=0, **more
    ),
}


def batch(dtype, n_rows, n_classes):
    """Rows of all kinds, repeated; labels and probabilities."""
    x, y = nasty(dtype, min(n_rows, 100), n_classes)
    index = np.arange(n_rows) % len(x)
    q = np.random.default_rng(7).gamma(0.4, size=x.shape).astype(dtype)
    return x[index], y[index], q[index]


def run(call, x, y, q, **options):
    return [bits(a) for a in call(x, y, q, **options)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_threads(name, shape, rng):
    call, weight = CALLS[name], rng.uniform(0.5, 2, shape[0])
    for dtype in FLOATS:
        x, y, q = batch(dtype, *shape)
        x = np.where(abs(x) < 1e5, x, dtype.type(1))  # finite losses, so that a mean has bits to compare
        for options in ({"reduction": "none"}, {"sample_weight": weight}):
            expected = run(call, x, y, q, n_threads=1, **options)
            for n_threads in (*THREADS[1:], None):
                assert run(call, x, y, q, n_threads=n_threads, **options) == expected


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 33, 57, 129, 1003, 8193])
@pytest.mark.parametrize("name", CALLS)
def test_splits_and_order(name, n_classes, rng):
    """A row's bits do not depend on how many rows there are nor on where it stands."""
    call, n_rows = CALLS[name], 80 if n_classes < 500 else 33 if n_classes < 5000 else 5
    for dtype in DTYPES if n_classes < 500 else FLOATS:
        x, y, q = batch(dtype, n_rows, n_classes)
        expected = call(x, y, q, reduction="none")
        for size in (1, 3, 16, 31):
            for i in (0, size, n_rows - 1):
                part = slice(i, i + size)
                got = run(call, x[part], y[part], q[part], reduction="none")
                assert got == [bits(a[part]) for a in expected]
        for order in (rng.permutation(n_rows), np.arange(n_rows)[::-1]):
            got = run(call, x[order], y[order], q[order], reduction="none")
            assert got == [bits(a[order]) for a in expected]


@pytest.mark.parametrize("n_classes", [2, 10, 57, 129, 1003, 9000])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "margin" and name != "SphereFace"])
def test_every_way_to_call(name, n_classes):
    """The derivatives fresh, in `out`, in place."""
    call = CALLS[name]
    for dtype in DTYPES:
        x, y, q = batch(dtype, 70 if n_classes < 500 else 3, n_classes)
        for options in ({"reduction": "none"}, {}, {"reduction": "sum"}, {"normalizer": 3.0}):
            expected = run(call, x, y, q, **options)
            out = np.full_like(x, 5)
            assert run(call, x, y, q, out=out, **options) == expected
            assert bits(out) == expected[1]
            out[...] = x
            assert run(call, out, y, q, out=out, **options) == expected


@pytest.mark.parametrize("name", [name for name in CALLS if "hessian" not in name])
def test_loss_alone(name):
    """A call without a gradient returns the same loss."""
    alone = {
        fastce.cross_entropy_and_grad: fastce.cross_entropy,
        fastce.focal_loss_and_grad: fastce.focal_loss,
        fastce.hinge_loss_and_grad: fastce.hinge_loss,
        fastce.margin_cross_entropy_and_grad: fastce.margin_cross_entropy,
    }
    for n_classes in (2, 10, 57, 1003, 9000):
        x, y, q = batch(np.dtype(np.float32), 5, n_classes)
        loss, _ = CALLS[name](x, y, q, reduction="none")
        names = {f.__name__: g for f, g in alone.items()}
        with pytest.MonkeyPatch.context() as patch:
            for both, one in names.items():
                patch.setattr(fastce, both, lambda *args, one=one, **options: (one(*args, **options),))
            assert bits(CALLS[name](x, y, q, reduction="none")[0]) == bits(loss)


@pytest.mark.parametrize(
    "name",
    ["probabilities", "z_loss, temperature", "softcap", "hinge, multi_margin", "hinge, crammer_singer"],
)
@pytest.mark.parametrize("n_classes", [300, 9000])
def test_slices_of_rows_side_by_side(n_classes, name):
    """Classes far apart in memory: neither the order nor the number of rows decides how they are summed."""
    x, y = nasty(np.float32, 40, n_classes, ("normal", "wide", "confident 25"))
    q = np.random.default_rng(1).random(x.shape, dtype=np.float32)
    x = np.asfortranarray(x)
    loss, grad = CALLS[name](x, y, q, reduction="none")
    for rows in (slice(None, None, -1), slice(None, None, 3), slice(7, 8)):
        part_loss, part_grad = CALLS[name](x[rows], y[rows], q[rows], reduction="none")
        assert bits(part_loss) == bits(loss[rows])
        assert bits(part_grad) == bits(grad[rows])
    single_loss, single_grad = CALLS[name](x[5], y[5], q[5], reduction="none")
    assert bits(single_loss) == bits(loss[5])
    assert bits(single_grad) == bits(grad[5])
