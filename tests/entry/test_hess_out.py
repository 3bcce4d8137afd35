"""Gradient and Hessian written into arrays of the caller: any layout, either in place; what is refused."""

import numpy as np
import pytest
from conftest import DTYPES, bits, nasty

import fastce

LAYOUTS = {
    "C": np.empty_like,
    "F": lambda x: np.empty_like(x, order="F"),
    "strided": lambda x: np.empty((3 * len(x), 2 * x.shape[1]), x.dtype)[::3, ::2],
    "reversed": lambda x: np.empty_like(x)[::-1, ::-1],
    "padded": lambda x: np.empty((len(x) + 2, x.shape[1] + 3), x.dtype)[1:-1, 1:-2],
}
SHAPES = ((50, 3), (7, 57), (30, 129), (3, 9000))
OPTIONS = [
    {},
    {"reduction": "none", "softcap": 5.0},
    {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 2.0},
]


def problem(dtype, shape, probabilities):
    x, y = nasty(dtype, *shape, ("normal", "wide", "confident 25", "masked -inf", "ties"))
    if probabilities:
        return x, np.random.default_rng(1).random(shape).astype(dtype)
    y[::7] = -100
    return x, y


def filled(layout, x):
    a = LAYOUTS[layout](x)
    a[...] = x
    return a


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_places(dtype, layout, probabilities):
    """Each in an array of its own, and each in the place of the logits."""
    for shape, options in ((shape, options) for shape in SHAPES for options in OPTIONS):
        x, target = problem(dtype, shape, probabilities)
        loss, grad, hess = fastce.cross_entropy_and_hess(x, target, **options)
        assert not np.shares_memory(grad, hess)
        expected = bits(loss), bits(grad), bits(hess)
        for given, out, hess_out in (
            (x, LAYOUTS[layout](x), LAYOUTS[layout](x)),
            (x, LAYOUTS[layout](x), None),
            (x, None, LAYOUTS[layout](x)),
        ):
            got = fastce.cross_entropy_and_hess(given, target, out=out, hess_out=hess_out, **options)
            assert tuple(map(bits, got)) == expected
            assert out is None or got[1] is out
            assert hess_out is None or got[2] is hess_out
        # The layout of the logits may choose another order of sums: compare with a call on that one.
        given = filled(layout, x)
        expected = tuple(map(bits, fastce.cross_entropy_and_hess(given, target, **options)))
        got = fastce.cross_entropy_and_hess(given, target, out=given, **options)
        assert tuple(map(bits, got)) == expected
        assert got[1] is given
        given = filled(layout, x)
        got = fastce.cross_entropy_and_hess(given, target, hess_out=given, **options)
        assert tuple(map(bits, got)) == expected
        assert got[2] is given
        given, out = filled(layout, x), LAYOUTS[layout](x)
        got = fastce.cross_entropy_and_hess(given, target, hess_out=given, out=out, **options)
        assert tuple(map(bits, got)) == expected
        assert got[1] is out


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_place_along_every_axis(axis, rng):
    x = rng.normal(size=(4, 5, 6))
    y = rng.integers(0, 4, np.delete(x.shape, axis))
    expected = [bits(a) for a in fastce.cross_entropy_and_hess(x, y, axis=axis)]
    for name in ("out", "hess_out"):
        given = x.copy()
        assert [
            bits(a) for a in fastce.cross_entropy_and_hess(given, y, axis=axis, **{name: given})
        ] == expected


@pytest.mark.parametrize("bad", [6, -1, 2**40])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("in_place", ["out", "hess_out", None])
def test_nothing_is_written_before_a_bad_label_is_found(in_place, reduction, bad):
    for n_rows in (4, 5000):
        x, y = np.full((n_rows, 6), 3.0), np.zeros(n_rows, int)
        y[-1] = bad
        arrays = {name: np.full((n_rows, 6), 7.0) for name in ("out", "hess_out")}
        if in_place:
            arrays[in_place] = x
        with pytest.raises(IndexError, match=str(bad)):
            fastce.cross_entropy_and_hess(x, y, reduction=reduction, **arrays)
        assert (x == 3).all()
        for a in arrays.values():
            assert a is x or (a == 7).all()
        only = {name: a for name, a in arrays.items() if name == "hess_out"}
        with pytest.raises(IndexError):
            fastce.cross_entropy_and_hess(x, y, reduction=reduction, **only)
        assert (x == 3).all()
        for a in only.values():
            assert a is x or (a == 7).all()


def test_one_array_for_both_is_refused():
    x = np.arange(48.0).reshape(6, 8)
    before = x.copy()
    memory = np.full(96, 7.0)
    both = memory[:48].reshape(6, 8)
    for out, hess_out in (
        (x, x),
        (both, both),
        (both, memory[8:56].reshape(6, 8)),
        (both, both[::-1]),
        (x, np.flip(x)),
        (x[:, ::-1], both),
        (both, memory[:96].reshape(6, 16)[:, ::2]),
    ):
        with pytest.raises(ValueError, match="overlap"):
            fastce.cross_entropy_and_hess(x, np.zeros(6, int), out=out, hess_out=hess_out)
        assert np.array_equal(x, before)
        assert (memory == 7).all()
    # Side by side is none.
    wide = np.zeros((6, 16))
    expected = fastce.cross_entropy_and_hess(x, np.zeros(6, int))
    fastce.cross_entropy_and_hess(x, np.zeros(6, int), out=wide[:, ::2], hess_out=wide[:, 1::2])
    assert bits(wide[:, ::2]) == bits(expected[1])
    assert bits(wide[:, 1::2]) == bits(expected[2])
