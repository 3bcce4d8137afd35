"""Figures of the linear layer and its loss, beside products by BLAS, reads and other libraries."""

import tracemalloc
from functools import partial

import numpy as np

import fastce
from fastce.cli.common import require, time_text
from fastce.cli.rivals import RIVALS
from fastce.cli.timing import interleaved, read_call
from fastce.linear import objective
from fastce.linear.arguments import MEMORY

HEAD = (1024, 512, 32000)  # rows, features, classes of a language model's head
Figure = tuple[float, str]


def figures() -> list[tuple]:
    """Each with its name, a function of rounds and threads that measures it, and its bound."""
    return [
        ("linear loss, 1024x512x32000, ÷ one product", partial(_head, False), {"at_most": 1.1}),
        ("linear loss + 3 gradients ÷ three products", partial(_head, True), {"at_most": 1.05}),
        ("the same, torch ÷ fastce", _head_torch, {"at_least": 1.1}),
        ("20000x8x100000, peak beyond `memory`, MiB", _peak, {"at_most": 16.0}),
        ("bfloat16 weights, 256x4096x32000, ÷ float32", _half_weights, {"at_most": 1.2}),
        *(
            (
                f"linear loss + gradient, {shape}, {dtype}, ÷ read",
                partial(_few, shape, dtype, "read"),
                {"at_most": bound},
            )
            for shape, dtype, bound in (
                ((200_000, 64, 10), "float32", 1.5),
                ((200_000, 64, 10), "float64", 1.5),
                ((1_000_000, 10, 2), "float64", 1.3),
            )
        ),
        *(
            (
                f"(200000, 64, 10), {dtype}, scikit-learn ÷ fastce",
                partial(_few, (200_000, 64, 10), dtype, "sklearn"),
                {"at_least": 5},
            )
            for dtype in ("float32", "float64")
        ),
        ("CSR 20000x50000x20, scikit-learn ÷ fastce", _sparse, {"at_least": 3}),
    ]


def _ratio(a: str, b: str, seconds: dict[str, float]) -> Figure:
    return seconds[a] / seconds[b], f"{time_text(seconds[a])} ÷ {time_text(seconds[b])}"


def _problem(
    shape: tuple[int, int, int], dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n_rows, n_features, n_classes = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_rows, n_features), dtype=np.float32).astype(dtype)
    w = (rng.standard_normal((n_classes, n_features), dtype=np.float32) / np.sqrt(n_features)).astype(dtype)
    return x, w, rng.integers(0, n_classes, n_rows)


def _head(with_grad: bool, rounds: int, n_threads: int) -> Figure:
    x, w, y = _problem(HEAD)
    z = np.empty((len(x), len(w)), np.float32)
    out = fastce.LinearGrad(np.empty_like(x), np.empty_like(w), None)
    if not with_grad:
        calls = {
            "fastce": lambda: fastce.linear_cross_entropy(x, w, y),
            "products": lambda: np.matmul(x, w.T, out=z),
        }
        return _ratio("fastce", "products", interleaved(calls, rounds))

    def products() -> None:
        np.matmul(x, w.T, out=z)
        np.matmul(z, w, out=out.input)
        np.matmul(z.T, x, out=out.linear_weight)

    calls = {"fastce": lambda: fastce.linear_cross_entropy_and_grad(x, w, y, out=out), "products": products}
    return _ratio("fastce", "products", interleaved(calls, rounds))


def _head_torch(rounds: int, n_threads: int) -> Figure:
    if not RIVALS["torch"].installed:
        return float("nan"), "no torch"
    import torch

    x, w, y = _problem(HEAD)
    out = fastce.LinearGrad(np.empty_like(x), np.empty_like(w), None)
    tx, tw, ty = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True), torch.tensor(y)
    function = torch.nn.functional

    def whole() -> None:
        tx.grad = tw.grad = None
        function.cross_entropy(function.linear(tx, tw), ty).backward()

    calls = {"fastce": lambda: fastce.linear_cross_entropy_and_grad(x, w, y, out=out), "whole": whole}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from 2.13 on
        options = torch.nn.LinearCrossEntropyOptions()

        def chunked() -> None:
            tx.grad = tw.grad = None
            function.linear_cross_entropy(tx, tw, ty, options=options).backward()

        calls["chunked"] = chunked
    seconds = interleaved(calls, rounds)
    return _ratio(min(calls.keys() - {"fastce"}, key=seconds.get), "fastce", seconds)


def _peak(rounds: int, n_threads: int) -> Figure:
    x, w, y = _problem((20_000, 8, 100_000))
    out = fastce.LinearGrad(np.empty_like(x), np.empty_like(w), None)
    tracemalloc.start()
    fastce.linear_cross_entropy_and_grad(x, w, y, out=out, n_threads=n_threads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - MEMORY) / 2**20, f"{peak / 2**20:.1f} MiB"


def _half_weights(rounds: int, n_threads: int) -> Figure:
    require("bench", "ml_dtypes")
    import ml_dtypes

    x, w, y = _problem((256, 4096, 32000))
    half = w.astype(ml_dtypes.bfloat16)
    calls = {
        "bfloat16": partial(fastce.linear_cross_entropy_and_grad, x, half, y, wrt=("input",)),
        "float32": partial(fastce.linear_cross_entropy_and_grad, x, w, y, wrt=("input",)),
    }
    return _ratio("bfloat16", "float32", interleaved(calls, rounds))


def _few(shape: tuple[int, int, int], dtype: str, other: str, rounds: int, n_threads: int) -> Figure:
    x, w, y = _problem(shape, dtype)
    f = objective(x, y, shape[2], fit_intercept=False, n_threads=n_threads)
    coef = w[: f.shape[0]]
    calls = {"fastce": lambda: f.loss_and_grad(coef)}
    if other == "read":
        calls["read"] = read_call(x, n_threads)
        return _ratio("fastce", "read", interleaved(calls, rounds))
    calls["sklearn"] = _scikit_learn(x, y, shape[2], w, n_threads)
    return _ratio("sklearn", "fastce", interleaved(calls, rounds))


def _scikit_learn(x: object, y: np.ndarray, n_classes: int, w: np.ndarray, n_threads: int) -> object:
    require("bench", "sklearn")
    from sklearn._loss.loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    theirs = LinearModelLoss(HalfMultinomialLoss(n_classes=n_classes), fit_intercept=False)
    coef, labels = np.asfortranarray(w), y.astype(x.dtype)
    return lambda: theirs.loss_gradient(coef, x, labels, n_threads=n_threads)


def _sparse(rounds: int, n_threads: int) -> Figure:
    require("bench", "scipy", "sklearn")
    from scipy import sparse

    x = sparse.random_array((20_000, 50_000), density=0.002, rng=np.random.default_rng(0)).tocsr()
    y, w = np.arange(20_000) % 20, np.zeros((20, 50_000))
    f = objective(x, y, 20, fit_intercept=False, n_threads=n_threads)
    calls = {"fastce": lambda: f.loss_and_grad(w), "sklearn": _scikit_learn(x, y, 20, w, n_threads)}
    return _ratio("sklearn", "fastce", interleaved(calls, rounds))
