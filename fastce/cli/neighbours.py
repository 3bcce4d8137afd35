"""Shapes, layouts and values on walks of their own, beside plain ones: a cliff between them is a ratio."""

from collections.abc import Callable
from functools import partial

import numpy as np

import fastce
from fastce import inference, information
from fastce.cli.common import require, time_text
from fastce.cli.measure import random_batch
from fastce.cli.timing import Call, interleaved


def figures() -> list[tuple]:
    """Each with its name, a function of rounds and threads that measures it, and its bound."""
    rows = (  # a name and a bound, what prepares the two calls, and its arguments for each
        ("1x600000 ÷ 8x75000", 1.5, _grad, ((1, 600_000),), ((8, 75_000),)),
        ("2x400000 ÷ 16x50000, float64", 1.5, _grad, ((2, 400_000), "float64"), ((16, 50_000), "float64")),
        ("(16666, 3, 4), axis=1, ÷ 66664x3", 2.5, _grad, ((16_666, 3, 4),), ((66_664, 3),)),
        ("(5000, 10, 4), axis=1, ÷ 20000x10", 2.5, _grad, ((5000, 10, 4),), ((20_000, 10),)),
        ("(2, 150, 10000), axis=1, ÷ (2, 100, 15000)", 1.5, _grad, ((2, 150, 10_000),), ((2, 100, 15_000),)),
        ("softcap, 300x1000, Fortran's order ÷ C's", 3.0, _outer, ("F", "softcap"), ("C", "softcap")),
        ("margins, 300x1000, Fortran's order ÷ C's", 4.0, _outer, ("F", "margins"), ("C", "margins")),
        ("top 50, 4x32000, 99.9 % -inf ÷ finite", 6.0, _top_50, (0.999,), (0.0,)),
        ("log_softmax, 300x1000, all -inf ÷ finite", 1.5, _log_softmax, (1.0,), (0.0,)),
        ("target of both signs, 30000x10, ÷ probabilities", 1.5, _soft, (-1,), (0,)),
        ("kl_divergence of 1e6 float64 ÷ SciPy's", 0.8, _divergence, ("fastce",), ("scipy",)),
    )
    return [(name, partial(_ratio, *calls), {"at_most": bound}) for name, bound, *calls in rows]


def _ratio(
    prepare: Callable[..., Call], these: tuple, those: tuple, rounds: int, n_threads: int
) -> tuple[float, str]:
    fastce.set_num_threads(n_threads)
    calls = {"this": prepare(*these), "that": prepare(*those)}
    this, that = interleaved(calls, rounds).values()
    return this / that, f"{time_text(this)} ÷ {time_text(that)}"


def _grad(shape: tuple[int, ...], dtype: str = "float32") -> Call:
    """Loss + gradient along the second axis."""
    batch = random_batch(shape, dtype, 1, axis=1)
    return partial(fastce.cross_entropy_and_grad, batch.logits, batch.labels, axis=1, out=batch.out)


def _outer(order: str, option: str) -> Call:
    batch = random_batch((300, 1000), "float32", 1)
    x = np.asarray(batch.logits / 30, order=order)  # of which nearly all may be cosines
    if option == "softcap":
        call = partial(fastce.cross_entropy_and_grad, softcap=1.0)
    else:
        call = fastce.margin_cross_entropy_and_grad
    return partial(call, x, batch.labels, out=np.empty_like(x))


def _masked(shape: tuple[int, int], share: float) -> np.ndarray:
    x = random_batch(shape, "float32", 1).logits
    x[np.random.default_rng(0).random(shape) < share] = -np.inf
    return x


def _top_50(share: float) -> Call:
    return partial(inference.top_k, _masked((4, 32_000), share), 50)


def _log_softmax(share: float) -> Call:
    x = _masked((300, 1000), share)
    return partial(fastce.log_softmax, x, axis=1, out=np.empty_like(x))


def _soft(least: float) -> Call:
    """Targets from `least` to 1."""
    batch = random_batch((30_000, 10), "float32", 1)
    target = np.random.default_rng(0).uniform(least, 1, batch.logits.shape).astype(np.float32)
    if least == 0:
        target /= target.sum(axis=1, keepdims=True)
    return partial(fastce.cross_entropy_and_grad, batch.logits, target, out=batch.out)


def _divergence(library: str) -> Call:
    p, q = np.random.default_rng(0).dirichlet(np.ones(1_000_000), 2)
    if library == "fastce":
        return partial(information.kl_divergence, p, q)
    require("bench", "scipy")
    from scipy import special

    return lambda: special.kl_div(p, q).sum()
