"""The relatives of the plain loss, timed: options against the plain call, the others against libraries."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

import fastce
from fastce.cli.common import time_text
from fastce.cli.measure import random_batch
from fastce.cli.rivals import RIVALS
from fastce.cli.timing import Call, interleaved

SHAPE = (8192, 1000)
BINARY_ELEMENTS = 10_000_000


#: Options whose time is held against that of the plain call: keyword arguments, of which `weight` and a
#: `target` of probabilities are arrays to be made.
OPTIONS = {
    "weight": {"weight": ...},
    "label_smoothing": {"label_smoothing": 0.1},
    "weight + label_smoothing": {"weight": ..., "label_smoothing": 0.1},
    "temperature": {"temperature": 2.0},
    "z_loss": {"z_loss": 1e-4},
    "target probabilities": {"target": ...},
}


def option_cost(option: str, shape: tuple[int, int], rounds: int, n_threads: int) -> tuple[float, str]:
    """Time of a call with one of `OPTIONS`, in those of the plain one."""
    fastce.set_num_threads(n_threads)
    batch = random_batch(shape, "float32", n_threads)
    rng = np.random.default_rng(0)
    options = {"target": batch.labels, **OPTIONS[option]}
    if "weight" in options:
        options["weight"] = rng.random(shape[1], np.float32)
    if options["target"] is ...:
        options["target"] = rng.random(shape, np.float32)
        options["target"] /= options["target"].sum(axis=1, keepdims=True)
    calls = {
        "plain": partial(fastce.cross_entropy_and_grad, batch.logits, target=batch.labels, out=batch.out),
        option: partial(fastce.cross_entropy_and_grad, batch.logits, out=batch.out, **options),
    }
    seconds = interleaved(calls, rounds)
    return seconds[option] / seconds["plain"], f"{time_text(seconds[option])} ÷ {time_text(seconds['plain'])}"


def best_ratio(name: str, rivals: list[str], rounds: int, n_threads: int) -> tuple[float, str]:
    """How many times fastce's time the fastest of the given libraries takes for a function of `FUNCTIONS`."""
    fastce.set_num_threads(n_threads)
    rng = np.random.default_rng(0)
    if name == "binary":
        x = rng.standard_normal(BINARY_ELEMENTS, np.float32)
        arrays = x, (rng.random(BINARY_ELEMENTS) < 0.5).astype(np.float32)
    else:
        arrays = (random_batch(SHAPE, "float32", n_threads).logits,)
    prepare = FUNCTIONS[name]
    chosen = [rival for rival in prepare if rival in rivals and RIVALS[rival].installed]
    if not chosen:
        return float("nan"), "no other library"
    calls = {rival: prepare[rival](*arrays, n_threads=n_threads) for rival in ["fastce", *chosen]}
    seconds = interleaved(calls, rounds)
    best = min(chosen, key=seconds.__getitem__)
    fastest, own = seconds[best], seconds["fastce"]
    return fastest / own, f"{best} {time_text(fastest)} ÷ {time_text(own)}"


# ---- The same function of several libraries, on arrays that are prepared and not timed --------------------


def _of_fastce(function: Callable, *arrays: np.ndarray, n_threads: int, **options: object) -> Call:
    return partial(function, *arrays, **options)


def _of_scipy(name: str, axis: int, x: np.ndarray, n_threads: int) -> Call:
    from scipy import special

    return partial(getattr(special, name), x, axis=axis)


def _of_torch(name: str, axis: int, x: np.ndarray, n_threads: int) -> Call:
    import torch

    torch.set_num_threads(n_threads)
    return partial(getattr(torch, name), torch.from_numpy(x), axis)


def _of_jax(name: str, axis: int, x: np.ndarray, n_threads: int) -> Call:
    import jax

    module = jax.scipy.special if name == "logsumexp" else jax.nn
    function, given = jax.jit(partial(getattr(module, name), axis=axis)), jax.numpy.asarray(x)
    return lambda: jax.block_until_ready(function(given))


def _binary_of_torch(x: np.ndarray, y: np.ndarray, n_threads: int) -> Call:
    import torch

    torch.set_num_threads(n_threads)
    leaf, target = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)

    def call() -> tuple:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(leaf, target)
        return loss.detach(), torch.autograd.grad(loss, leaf)

    return call


def _binary_of_jax(x: np.ndarray, y: np.ndarray, n_threads: int) -> Call:
    import jax
    import jax.numpy as jnp

    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return (jnp.maximum(x, 0) - x * y + jnp.log1p(jnp.exp(-jnp.abs(x)))).mean()

    function, arrays = jax.jit(jax.value_and_grad(loss)), (jnp.asarray(x), jnp.asarray(y))
    return lambda: jax.block_until_ready(function(*arrays))


#: Preparations by function and library.
FUNCTIONS: dict[str, Mapping[str, Callable[..., Call]]] = {
    name + end: {
        "fastce": partial(_of_fastce, getattr(fastce, name), axis=axis),
        "scipy": partial(_of_scipy, name, axis),
        "torch": partial(_of_torch, name, axis),
        "jax": partial(_of_jax, name, axis),
    }
    for name in ("logsumexp", "softmax", "log_softmax")
    for axis, end in ((1, ""), (0, " along axis 0"))
}
FUNCTIONS["binary"] = {
    "fastce": partial(_of_fastce, fastce.binary_cross_entropy_with_logits_and_grad),
    "torch": _binary_of_torch,
    "jax": _binary_of_jax,
}
