"""The libraries that fastce is measured against, behind one interface.

A rival prepares a batch once (conversion, compilation, thread pool: not timed) and returns two
calls without arguments, each in the fastest form that a fair user of that library would write.
The demo, the benchmark and ``asv_bench`` all take their rivals from here.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

import fastce


class UnsupportedError(Exception):
    """The rival has no fair form for this batch."""


class Calls(NamedTuple):
    """The calls of one rival on one batch; both return its own kind of array or scalar."""

    loss: Callable[[], object]
    loss_and_grad: Callable[[], tuple]


@dataclass(frozen=True)
class Batch:
    """Logits, integer labels and how their losses are reduced.

    Parameters
    ----------
    logits, labels : ndarray
        As for `fastce.cross_entropy`; no label is ignored.
    axis : int
        The class axis.
    reduction : {"mean", "none"}
        With "none" the gradient is the one of the losses' sum.
    n_threads : int
        Threads for every rival that has threads.
    """

    logits: np.ndarray
    labels: np.ndarray
    axis: int = -1
    reduction: str = "mean"
    n_threads: int = 1

    @cached_property
    def work_dtype(self) -> np.dtype:
        """The precision in which a NumPy user would compute."""
        dtype = self.logits.dtype
        if dtype.itemsize == 2 and dtype.kind not in "iub":
            return np.dtype(np.float32)
        return dtype if dtype.kind == "f" else np.dtype(np.float64)

    @cached_property
    def out(self) -> np.ndarray:
        """A gradient array whose pages are all present, shared by the rivals."""
        dtype = self.work_dtype if self.logits.dtype.kind in "iub" else self.logits.dtype
        return np.ones_like(self.logits, dtype=dtype)

    @cached_property
    def index(self) -> tuple[np.ndarray, ...]:
        """The index that picks each row's target."""
        index = list(np.indices(self.labels.shape, sparse=True))
        index.insert(self.axis % self.logits.ndim, self.labels)
        return tuple(index)

    @property
    def divisor(self) -> int:
        """What the sum of losses is divided by."""
        return self.labels.size if self.reduction == "mean" else 1

    def reduce(self, losses: np.ndarray) -> np.ndarray:
        """Reduce one loss per row."""
        return losses.mean() if self.reduction == "mean" else losses

    def as_matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """Return logits as native C-ordered (rows, classes), and flat labels."""
        if self.axis % self.logits.ndim != self.logits.ndim - 1:
            raise UnsupportedError("needs the class axis last")
        if self.logits.dtype not in (np.float32, np.float64):
            raise UnsupportedError(f"has no {self.logits.dtype}")
        n_classes = self.logits.shape[-1]
        return np.ascontiguousarray(self.logits).reshape(-1, n_classes), self.labels.reshape(-1)


@dataclass(frozen=True)
class Rival:
    """One library: `name` as on PyPI, the `module` it imports as, and its preparation."""

    name: str
    module: str
    prepare: Callable[[Batch], Calls]

    @property
    def installed(self) -> bool:
        """Whether the library can be imported."""
        return find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """The installed version."""
        return version(self.name)


RIVALS: dict[str, Rival] = {}


def _rival(name: str, module: str | None = None) -> Callable:
    def register(prepare: Callable[[Batch], Calls]) -> Callable[[Batch], Calls]:
        RIVALS[name] = Rival(name, module or name, prepare)
        return prepare

    return register


@_rival("fastce")
def _fastce(batch: Batch) -> Calls:
    fastce.set_num_threads(batch.n_threads)
    options = {}
    if batch.axis != -1:
        options["axis"] = batch.axis
    if batch.reduction != "mean":
        options["reduction"] = batch.reduction
    args = batch.logits, batch.labels
    return Calls(
        partial(fastce.cross_entropy, *args, **options),
        partial(fastce.cross_entropy_and_grad, *args, out=batch.out, **options),
    )


@_rival("scipy")
def _scipy(batch: Batch) -> Calls:
    from scipy.special import logsumexp, softmax

    axis, index = batch.axis, batch.index

    def loss() -> object:
        x = batch.logits.astype(batch.work_dtype, copy=False)
        return batch.reduce(logsumexp(x, axis=axis) - x[index])

    def loss_and_grad() -> tuple:
        x = batch.logits.astype(batch.work_dtype, copy=False)
        grad = softmax(x, axis=axis)
        grad[index] -= 1
        if batch.divisor != 1:
            grad /= batch.divisor
        losses = logsumexp(x, axis=axis) - x[index]
        return batch.reduce(losses), grad.astype(batch.out.dtype, copy=False)

    return Calls(loss, loss_and_grad)


@_rival("numpy")
def _numpy(batch: Batch) -> Calls:
    axis, index = batch.axis, batch.index
    buffer = batch.out.astype(batch.work_dtype, copy=False)

    def loss() -> object:
        x = batch.logits.astype(batch.work_dtype, copy=False)
        m = x.max(axis=axis, keepdims=True)
        s = np.exp(x - m).sum(axis=axis, keepdims=True)
        return batch.reduce((np.log(s) + m).squeeze(axis) - x[index])

    def loss_and_grad() -> tuple:
        x = batch.logits.astype(batch.work_dtype, copy=False)
        m = x.max(axis=axis, keepdims=True)
        e = np.exp(np.subtract(x, m, out=buffer), out=buffer)
        s = e.sum(axis=axis, keepdims=True)
        losses = (np.log(s) + m).squeeze(axis) - x[index]
        grad = np.divide(e, s * batch.divisor, out=buffer)
        grad[index] -= 1 / batch.divisor
        return batch.reduce(losses), grad.astype(batch.out.dtype, copy=False)

    return Calls(loss, loss_and_grad)


@_rival("scikit-learn", "sklearn")
def _sklearn(batch: Batch) -> Calls:
    from sklearn._loss import HalfMultinomialLoss

    x, labels = batch.as_matrix()
    y = labels.astype(x.dtype)
    weight = np.full(len(y), 1 / batch.divisor, x.dtype)
    losses = np.empty(len(y), x.dtype)
    multinomial = HalfMultinomialLoss(n_classes=x.shape[1])
    options = {
        "y_true": y,
        "raw_prediction": x,
        "sample_weight": None if batch.reduction == "none" else weight,
        "loss_out": losses,
        "n_threads": batch.n_threads,
    }
    gradient = batch.out.reshape(x.shape)

    def finish() -> object:
        return losses if batch.reduction == "none" else losses.sum()

    def loss() -> object:
        multinomial.loss(**options)
        return finish()

    def loss_and_grad() -> tuple:
        multinomial.loss_gradient(gradient_out=gradient, **options)
        return finish(), gradient

    return Calls(loss, loss_and_grad)


@_rival("torch")
def _torch(batch: Batch) -> Calls:
    import torch

    torch.set_num_threads(batch.n_threads)
    try:
        x = torch.from_numpy(batch.logits)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(str(error)) from error
    y = torch.from_numpy(batch.labels.astype(np.int64, copy=False))
    entropy = partial(torch.nn.functional.cross_entropy, reduction=batch.reduction)
    leaf = x.detach().requires_grad_()
    ones = None if batch.reduction == "mean" else torch.ones(y.shape, dtype=x.dtype)

    def classes_second(tensor: torch.Tensor) -> torch.Tensor:
        return torch.movedim(tensor, batch.axis, 1) if tensor.ndim > 1 else tensor

    def loss() -> object:
        with torch.inference_mode():
            return entropy(classes_second(x), y)

    def loss_and_grad() -> tuple:
        value = entropy(classes_second(leaf), y)
        (grad,) = torch.autograd.grad(value, leaf, ones)
        return value.detach(), grad

    return Calls(loss, loss_and_grad)


@_rival("jax")
def _jax(batch: Batch) -> Calls:
    os.environ["NPROC"] = str(batch.n_threads)  # the size of XLA's pool, read at its first use
    import jax

    jax.config.update("jax_enable_x64", True)
    x = jax.block_until_ready(jax.numpy.asarray(batch.logits))
    y = jax.numpy.asarray(batch.labels.astype(np.int32))
    loss, loss_and_grad = _jax_functions(batch.axis, batch.reduction)
    return Calls(
        lambda: jax.block_until_ready(loss(x, y)),
        lambda: jax.block_until_ready(loss_and_grad(x, y)),
    )


@cache
def _jax_functions(axis: int, reduction: str) -> tuple[Callable, Callable]:
    """Compile the form that was the fastest of several in JAX: shifted sum, gathered target."""
    import jax
    import jax.numpy as jnp

    def rows(x: jax.Array, y: jax.Array) -> jax.Array:
        m = jax.lax.stop_gradient(x.max(axis, keepdims=True))
        s = jnp.exp(x - m).sum(axis)
        target = jnp.take_along_axis(x, jnp.expand_dims(y, axis), axis).squeeze(axis)
        return jnp.log(s) + m.squeeze(axis) - target

    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return rows(x, y).mean() if reduction == "mean" else rows(x, y)

    def loss_and_grad(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        if reduction == "mean":
            return jax.value_and_grad(loss)(x, y)
        losses, pull_back = jax.vjp(lambda logits: rows(logits, y), x)
        return losses, pull_back(jnp.ones_like(losses))[0]

    return jax.jit(loss), jax.jit(loss_and_grad)


@_rival("numba")
def _numba(batch: Batch) -> Calls:
    import numba

    from fastce.cli import numba_kernels

    x, y = batch.as_matrix()
    numba.set_num_threads(min(batch.n_threads, numba.config.NUMBA_NUM_THREADS))
    losses = np.empty(len(y), x.dtype)
    gradient = batch.out.reshape(x.shape)
    scale = x.dtype.type(1 / batch.divisor)

    def loss() -> object:
        numba_kernels.loss(x, y, losses)
        return batch.reduce(losses)

    def loss_and_grad() -> tuple:
        numba_kernels.loss_and_grad(x, y, scale, losses, gradient)
        return batch.reduce(losses), gradient

    return Calls(loss, loss_and_grad)
