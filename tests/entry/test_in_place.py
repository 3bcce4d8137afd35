"""Results in the memory of arguments, of every function that writes: all of the first one, or none of any.

Memory that is shared in part made results of old values and new ones: numpy #8043.
"""

import numpy as np
import pytest
from calls import digest
from conftest import bits
from test_bad_input import SHAPE, C, N, call
from test_bad_out import WRITERS

import fastce

pytestmark = pytest.mark.once  # the levels share the source of the checks


def first_of(function):
    return next(iter(function.valid))


@pytest.mark.parametrize(("name", "function", "key"), WRITERS)
def test_in_place_of_the_first_argument(name, function, key):
    """In any layout, and through another view of the same memory."""
    first = first_of(function)
    x = function.valid[first]
    expected = digest(call(name, dict(function.valid)))
    for make in (np.array, np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]):
        for view in (lambda a: a, lambda a: a[:]):
            given = make(x)
            out = view(given)
            got = call(name, {**function.valid, first: given, key: out})
            written = got[("out", "hess_out").index(key) + 1] if isinstance(got, tuple) else got
            assert written is out
            assert digest(got) == expected


def other_ways_round(memory):
    yield memory[::-1]
    yield memory[:, ::-1]
    yield np.flip(memory)
    yield memory.reshape(C, N).T


@pytest.mark.parametrize(("name", "function", "key"), WRITERS)
def test_the_same_memory_in_another_order(name, function, key):
    first = first_of(function)
    memory = function.valid[first].copy()
    for out in other_ways_round(memory):
        with pytest.raises(ValueError, match=rf"{key} (may )?overlaps? {first}"):
            call(name, {**function.valid, first: memory, key: out})
    assert bits(memory) == bits(function.valid[first])


@pytest.mark.parametrize(("name", "function", "key"), WRITERS)
def test_elements_between_those_of_an_argument(name, function, key):
    """No byte is shared, though the ends overlap."""
    first = first_of(function)
    memory = np.zeros((N, 2 * C))
    given, out = memory[:, ::2], memory[:, 1::2]
    given[...] = function.valid[first]
    assert digest(call(name, {**function.valid, first: given, key: out})) == digest(
        call(name, dict(function.valid))
    )
    assert bits(given) == bits(function.valid[first])


@pytest.mark.parametrize("factors", [False, True])
def test_logsumexp(factors):
    """Its result is smaller than its argument, and nowhere in it."""
    memory = np.arange(2.0 * N * C)
    a, b = memory[: N * C].reshape(SHAPE), memory[N * C :].reshape(SHAPE) if factors else None
    places = [memory[:N], memory[3 : 3 + N], a[:, 0], a[0, :N], a[::-1, 2]]
    places += [b[:, 1], memory[-N:]] if factors else []
    for out in places:
        with pytest.raises(ValueError, match=r"out overlaps [ab]"):
            fastce.logsumexp(a, 1, b, out=out)
    assert bits(memory) == bits(np.arange(2.0 * N * C))
