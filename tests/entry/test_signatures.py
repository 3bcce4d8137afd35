"""An option is written in few places, and there alike: signatures of a loss, its derivatives and its twin."""

import inspect

import pytest

import fastce
from fastce import reference

pytestmark = pytest.mark.once

OUTS = {"_and_grad": ["out"], "_and_hess": ["out", "hess_out"]}
# Of calls, not of losses; and those of blocks of a linear layer.
OWN = {"n_threads", "out", "hess_out", "memory", "wrt", "accumulate"}


def options(function):
    """Names and defaults of the arguments, in their order."""
    return {name: a.default for name, a in inspect.signature(function).parameters.items()}


def derivatives():
    for name in fastce.__all__:
        for suffix in OUTS:
            if hasattr(fastce, name + suffix):
                yield name, suffix


DERIVATIVES = list(derivatives())


@pytest.mark.parametrize(("name", "suffix"), DERIVATIVES, ids=map("".join, DERIVATIVES))
def test_derivatives_take_what_their_loss_takes(name, suffix):
    loss, both = (options(getattr(fastce, name + part)) for part in ("", suffix))
    more = {k: both.pop(k) for k in OWN - {"n_threads", "memory"} if k in both}
    assert list(both.items()) == list(loss.items())
    assert set(OUTS[suffix]) <= set(more)


@pytest.mark.parametrize("name", sorted({name for name, _ in DERIVATIVES}))
def test_the_twin_takes_what_its_loss_takes(name):
    twins = [options(getattr(reference, name + s)) for s in OUTS if hasattr(reference, name + s)]
    twin, loss = twins[-1], options(getattr(fastce, name))
    if "options" in twin:  # a layer's, which hands on those of its loss
        twin = {k: a for k, a in twin.items() if k != "options"} | options(reference.cross_entropy_and_hess)
        twin, loss = ({k: a[k] for k in sorted(a) if k not in OWN | {"axis", "logits"}} for a in (twin, loss))
    assert list(twin.items()) == [(k, a) for k, a in loss.items() if k not in OWN]
