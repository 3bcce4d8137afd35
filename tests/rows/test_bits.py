"""The same bits for any number of threads, split of the batch, order of rows, way to call."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import DTYPES, HALVES, bits, nasty

import fastce

THREADS = (1, 2, 3, 8)
# Few and many rows, short and long ones; enough elements in each that several threads have work.
SHAPES = ((20000, 3), (6001, 10), (2000, 37), (700, 1003), (64, 16385), (3, 70000))


def batch(dtype, n_rows, n_classes):
    """A large batch of nasty rows: 200 different ones, repeated."""
    x, y = nasty(dtype, min(200, n_rows), n_classes)
    index = np.arange(n_rows) % len(x)
    y = y[index]
    y[::11] = -100
    return x[index], y


def run(x, y, **options):
    loss, grad = fastce.cross_entropy_and_grad(x, y, **options)
    return bits(loss), bits(grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads(dtype, shape, rng):
    x, y = batch(dtype, *shape)
    x = np.where(np.isinf(x), dtype.type(1), x)  # finite losses, so that the mean has bits to compare
    weight = rng.uniform(0, 2, len(y))
    for options in ({"reduction": "none"}, {}, {"sample_weight": weight}, {"reduction": "sum"}):
        expected = run(x, y, n_threads=1, **options)
        for n_threads in (*THREADS[1:], None):
            assert run(x, y, n_threads=n_threads, **options) == expected


@pytest.mark.parametrize("n_classes", [129, 1024, 8192, 20000])
def test_rows_far_from_their_targets(n_classes, rng):
    """A row's bits do not depend on the row before it, which may be far or NaN; its sum may be large."""
    x, y = rng.normal(size=(60, n_classes)), rng.integers(n_classes, size=60)
    x[np.arange(60), y] -= rng.uniform(0, 30, 60)
    x[::4] += 18 * (np.arange(n_classes) != y[::4, None])  # thousands of exps far above their target's
    x[5::9, 7], x[6::9, 7] = np.nan, -np.inf
    for dtype in (np.float32, np.float64):
        rows = x.astype(dtype)
        for function in (
            lambda x, y: fastce.cross_entropy_and_grad(x, y, reduction="none", temperature=0.9),
            lambda x, y: fastce.cross_entropy_and_grad(x, y, reduction="none", out=x.copy()),
            lambda x, y: (fastce.softmax(x, axis=1), fastce.cross_entropy(x, y, reduction="none")),
        ):
            whole = function(rows, y)
            for i in range(len(rows)):
                alone = function(rows[i : i + 1], y[i : i + 1])
                for got, expected in zip(whole, alone, strict=True):
                    np.testing.assert_array_equal(got[i], expected[0])  # a NaN is a NaN


@pytest.mark.parametrize("shape", [(8400, 1001), (70, 130_000), (3, 3_000_001)], ids=str)
def test_past_the_caches(shape, rng):
    """Gradients of 32 MiB and more are stored in another way: the same bits as those of smaller batches."""
    x = rng.normal(size=shape).astype(np.float32)
    y = rng.integers(0, shape[1], shape[0])
    y[0] = -100
    out = np.empty(x.size + 1, np.float32)[1:].reshape(shape)  # begins with a part of a vector

    def gradient(x, y, **options):
        return fastce.cross_entropy_and_grad(x, y, reduction="none", **options)[1]

    for function in (
        gradient,
        lambda x, y, **how: gradient(x, y, label_smoothing=0.1, **how),
        lambda x, y, **how: fastce.softmax(x, axis=1, **how),
        lambda x, y, **how: fastce.log_softmax(x, axis=1, **how),
    ):
        out[...] = np.nan
        whole = function(x, y, out=out)
        for rows in np.array_split(np.arange(len(x)), 3):
            assert bits(whole[rows]) == bits(function(x[rows], y[rows]))


@pytest.mark.parametrize("n_classes", [2, 10, 129, 137, 1031, 8200])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_computed_in_float32(dtype, n_classes):
    """Losses are those of the widened logits, what is written is theirs rounded once, wherever rows begin."""
    x, y = nasty(dtype, 40, n_classes)
    wide, place = x.astype(np.float32), np.empty(x.size + 1, dtype)[1:].reshape(x.shape)
    with np.errstate(all="ignore"):
        for name, value in (("label_smoothing", 0.1), ("temperature", 1.7), ("softcap", 20.0), ("z_loss", 0)):
            options = {name: value}
            expected, gradient = fastce.cross_entropy_and_grad(wide, y, reduction="none", **options)
            place[...] = x
            loss, grad = fastce.cross_entropy_and_grad(place, y, reduction="none", out=place, **options)
            np.testing.assert_array_equal(loss, expected)
            np.testing.assert_array_equal(grad, gradient.astype(dtype))
            np.testing.assert_array_equal(fastce.cross_entropy(x, y, reduction="none", **options), expected)
        for function in (fastce.softmax, fastce.log_softmax):
            place[...] = x
            expected = function(wide, axis=1).astype(dtype)
            np.testing.assert_array_equal(function(place, axis=1, out=place), expected)
            np.testing.assert_array_equal(function(x, axis=1), expected)


@pytest.mark.parametrize("n_classes", [2, 3, 33])
@pytest.mark.parametrize("temperature", [1e-8, 1.0, 1e10])
def test_loss_beside_any_gradient(n_classes, temperature, rng):
    """The loss alone is not told what the gradient beside it is divided by."""
    x = rng.normal(size=(70, n_classes)) * temperature
    y, q = rng.integers(0, n_classes, 70), rng.dirichlet(np.ones(n_classes), 70)
    for dtype in (np.float32, np.float64):
        logits = x.astype(dtype)
        for target, options in ((y, {}), (y, {"label_smoothing": 0.1}), (y, {"z_loss": 0.1}), (q, {})):
            for normalizer in (None, 1e-9, 1e15):
                more = {**options, "temperature": temperature, "normalizer": normalizer}
                loss, grad = fastce.cross_entropy_and_grad(logits, target, **more)
                assert loss == fastce.cross_entropy(logits, target, **more)
                more["normalizer"] = 1.0 / temperature  # no factor at all
                expected = fastce.cross_entropy_and_grad(logits, target, **more)[1]
                factor = temperature * (normalizer or 70)
                np.testing.assert_allclose(grad.astype(float) * factor, expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("n_classes", [2, 10, 100, 1000])
def test_swapped_probabilities_of_another_precision(n_classes, rng):
    x, q = rng.normal(size=(70, n_classes)), rng.dirichlet(np.ones(n_classes), 70)
    for logits, of_target in ((np.float32, np.float64), (np.float64, np.float32), (np.float64, np.float16)):
        for axis in (0, 1):
            z, target = np.moveaxis(x.astype(logits), 1, axis), np.moveaxis(q.astype(of_target), 1, axis)
            z, target = np.ascontiguousarray(z), np.ascontiguousarray(target)
            swapped = target.astype(target.dtype.newbyteorder())
            expected = fastce.cross_entropy_and_grad(z, target, axis=axis, reduction="none")
            loss, grad = fastce.cross_entropy_and_grad(z, swapped, axis=axis, reduction="none")
            assert bits(loss) == bits(expected[0])
            assert bits(grad) == bits(expected[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_threads_along_other_axes(axis, rng):
    x = rng.normal(size=(60, 40, 50)).astype(np.float32)
    y = rng.integers(0, 40, np.delete(x.shape, axis))
    for options in ({"reduction": "none"}, {}):
        expected = run(x, y, axis=axis, n_threads=1, **options)
        for n_threads in THREADS[1:]:
            assert run(x, y, axis=axis, n_threads=n_threads, **options) == expected


@pytest.mark.parametrize("length", [2, 3, 4, 9])
@pytest.mark.parametrize("n_classes", [2, 10, 128])
def test_short_axes_of_the_batch(n_classes, length, rng):
    """Whichever axis of the batch rows are taken along."""
    x = rng.normal(size=(70, n_classes, length)).astype(np.float32)
    y = rng.integers(0, n_classes, (70, length))
    weight = rng.uniform(0.5, 2, y.shape)
    rows = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for options in ({}, {"sample_weight": weight}, {"label_smoothing": 0.1, "temperature": 2.0}):
        loss, grad = fastce.cross_entropy_and_grad(x, y, axis=1, reduction="none", **options)
        expected = fastce.cross_entropy_and_grad(rows, y, reduction="none", **options)
        assert bits(loss) == bits(expected[0])
        assert bits(np.moveaxis(grad, 1, -1)) == bits(expected[1])
    assert bits(np.moveaxis(fastce.softmax(x, axis=1), 1, -1)) == bits(fastce.softmax(rows, axis=-1))


@pytest.mark.parametrize("n_classes", [1, 2, 3, 7, 10, 16, 33, 65, 129, 1003, 4097])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_splits(dtype, n_classes):
    """A row's bits do not depend on how many rows there are nor on where it stands."""
    x, y = nasty(dtype, 150, n_classes)
    y[::13] = -100
    expected = fastce.cross_entropy_and_grad(x, y, reduction="none")
    for size in (1, 2, 3, 5, 8, 16, 17, 31, 64, 149):
        parts = [
            fastce.cross_entropy_and_grad(x[i : i + size], y[i : i + size], reduction="none")
            for i in range(0, len(x), size)
        ]
        for whole, pieces in zip(expected, zip(*parts, strict=True), strict=True):
            assert bits(np.concatenate(pieces)) == bits(whole)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 16, 33, 129, 1003])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_of_rows(dtype, n_classes, rng):
    x, y = nasty(dtype, 203, n_classes)
    expected = fastce.cross_entropy_and_grad(x, y, reduction="none")
    for order in (rng.permutation(203), np.arange(203)[::-1]):
        loss, grad = fastce.cross_entropy_and_grad(x[order], y[order], reduction="none")
        assert bits(loss) == bits(expected[0][order])
        assert bits(grad) == bits(expected[1][order])


@pytest.mark.parametrize(
    "n_classes", [1, 2, 3, 5, 8, 10, 16, 17, 33, 64, 65, 129, 1003, 4097, 40000]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_way_to_call(dtype, n_classes):
    """Loss alone, or with the gradient fresh, in `out`, in place; by row, summed, averaged."""
    x, y = nasty(dtype, 70 if n_classes < 5000 else 3, n_classes)
    y[5::7] = -100
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
    assert bits(fastce.cross_entropy(x, y, reduction="none")) == bits(loss)
    out = np.full_like(x, 5)
    assert run(x, y, reduction="none", out=out) == (bits(loss), bits(grad))
    for reduction in ("sum", "mean"):
        options = {"reduction": reduction}
        by_value = fastce.cross_entropy_and_grad(x, y, **options)
        assert bits(fastce.cross_entropy(x, y, **options)) == bits(by_value[0])
        assert run(x, y, out=out, **options) == (bits(by_value[0]), bits(by_value[1]))
        logits = x.copy()
        assert run(logits, y, out=logits, **options) == (bits(by_value[0]), bits(by_value[1]))
    in_place = x.copy()
    assert run(in_place, y, reduction="none", out=in_place) == (bits(loss), bits(grad))


def test_place_in_memory():
    """The alignment of the arrays decides nothing."""
    x, y = nasty(np.float32, 60, 37)
    expected = run(x, y, reduction="none")
    for offset in range(17):
        buffer = np.empty(x.size + 32, np.float32)
        logits = buffer[offset : offset + x.size].reshape(x.shape)
        logits[...] = x
        assert run(logits, y, reduction="none") == expected
        assert run(logits, y, reduction="none", out=logits) == expected


@pytest.mark.once
def test_omp_num_threads():
    """The same bits for every default that the environment sets."""
    code = """
import hashlib, json, sys
import numpy as np
import fastce
rng = np.random.default_rng(0)
digest = []
for shape in ((20000, 10), (500, 1003)):
    x, y = rng.normal(size=shape), rng.integers(0, 10, shape[0])
    loss, grad = fastce.cross_entropy_and_grad(x, y)
    digest.append([loss.hex(), hashlib.sha256(grad).hexdigest()])
print(json.dumps([fastce.get_num_threads(), digest]))
"""
    results = {}
    for n in (None, "1", "2", "5"):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
        if n is not None:
            environment["OMP_NUM_THREADS"] = n
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results[n] = json.loads(done.stdout)
    assert results["1"][0] == 1
    for n, (n_threads, digest) in results.items():
        assert n_threads >= 1
        assert digest == results[None][1], n
