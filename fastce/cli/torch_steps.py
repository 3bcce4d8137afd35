"""Whole steps in PyTorch, loss and backward, against its own: ``python -m fastce bench --suite torch``."""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import fastce
import fastce.torch as ours
from fastce.cli.common import check_only, new_table, still_live, three_digits, time_text
from fastce.cli.timing import interleaved

SHAPES = {(65536, 10): 2.5, (8192, 1000): 3.0, (1024, 32000): 5.0, (4, 21, 512, 512): 4.0}
LINEAR = (1024, 512, 32000)
SMALL_CALLS, SMALL_ROUNDS = 50, 20


def show_torch(terminal: Console, rounds: int, n_threads: int, only: str) -> None:
    """Print each step's time, PyTorch's, and how many times it that is."""
    check_only(only, [name for name, _, _ in _steps(rounds)])
    torch.set_num_threads(n_threads)
    fastce.set_num_threads(n_threads)
    table = new_table(
        ("step",), ("fastce", "torch", "torch ÷ fastce", "goal", "kernel alone", "of which bridge")
    )
    with still_live(terminal, table) as live:
        for name, goal, measured in _steps(rounds):
            if only in name:
                table.caption = f"measuring {name}"
                live.refresh()
                table.add_row(*_cells(name, *measured(), goal))
        table.caption = (
            "Steps of float32: loss and backward, with new memory for the gradient. kernel alone: the "
            "function of arrays, which makes a gradient as well."
        )
        live.refresh()


def _steps(rounds: int) -> Iterator[tuple[str, float, Callable[[], tuple[float, float, float]]]]:
    """Names, goals, and what measures fastce, PyTorch and the kernel."""
    for shape, goal in SHAPES.items():
        yield str(shape), goal, partial(_losses, shape, rounds)
    yield "linear " + "×".join(map(str, LINEAR)), 1.0, partial(_linear, rounds)
    for name, calls in _small().items():
        yield f"(1, 10) {name}", 1.0, partial(_quickest, calls, rounds)


def _cells(name: str, own: float, theirs: float, kernel: float, goal: float) -> list[str]:
    ratio = f"{theirs / own:.2f}"
    return [name, time_text(own), time_text(theirs), ratio, f"≥ {three_digits(goal)}", time_text(kernel),
            time_text(max(own - kernel, 0.0))]  # fmt: skip


def _step(function: Callable[..., Tensor], leaves: tuple[Tensor, ...], *rest: Tensor) -> None:
    for leaf in leaves:
        leaf.grad = None
    function(*leaves, *rest).backward()


def _losses(shape: tuple[int, ...], rounds: int) -> tuple[float, float, float]:
    x = torch.randn(shape, requires_grad=True)
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    logits, labels = x.detach().numpy(), y.numpy()
    seconds = interleaved(
        {
            "fastce": partial(_step, ours.cross_entropy, (x,), y),
            "torch": partial(_step, F.cross_entropy, (x,), y),
            "kernel": partial(fastce.cross_entropy_and_grad, logits, labels, axis=1),
        },
        rounds,
    )
    return seconds["fastce"], seconds["torch"], seconds["kernel"]


def _linear(rounds: int) -> tuple[float, float, float]:
    """PyTorch's chunked one, the quickest it has."""
    n_rows, n_features, n_classes = LINEAR
    x = torch.randn(n_rows, n_features, requires_grad=True)
    w = (torch.randn(n_classes, n_features) / n_features**0.5).requires_grad_()
    y = torch.randint(n_classes, (n_rows,))
    chunked = partial(F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions())
    arrays = x.detach().numpy(), w.detach().numpy(), y.numpy()
    seconds = interleaved(
        {
            "fastce": partial(_step, ours.linear_cross_entropy, (x, w), y),
            "torch": partial(_step, chunked, (x, w), y),
            "kernel": partial(fastce.linear_cross_entropy_and_grad, *arrays),
        },
        min(rounds, 3),
    )
    return seconds["fastce"], seconds["torch"], seconds["kernel"]


class _Bare(torch.autograd.Function):
    """What PyTorch takes for a loss of somebody else's that computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:
        return *ctx.saved_tensors, None


def _small() -> dict[str, dict[str, Callable[[], object]]]:
    x, y = torch.randn(1, 10, requires_grad=True), torch.tensor([3])
    logits, labels = x.detach().numpy(), y.numpy()
    constant = x.detach()
    return {
        "loss": {
            "fastce": partial(ours.cross_entropy, constant, y),
            "torch": partial(F.cross_entropy, constant, y),
            "kernel": partial(fastce.cross_entropy, logits, labels),
        },
        "loss with a graph": {
            "fastce": partial(ours.cross_entropy, x, y),
            "torch": partial(F.cross_entropy, x, y),
            "kernel": partial(fastce.cross_entropy_and_grad, logits, labels),
        },
        "loss and backward": {
            "fastce": partial(_step, ours.cross_entropy, (x,), y),
            "torch": partial(_step, F.cross_entropy, (x,), y),
            "kernel": partial(fastce.cross_entropy_and_grad, logits, labels),
        },
        "graph of a bare Function": {
            "fastce": partial(_Bare.apply, x, constant),
            "torch": partial(F.cross_entropy, x, y),
            "kernel": lambda: None,
        },
        "bare Function and backward": {
            "fastce": partial(_step, _Bare.apply, (x,), constant),
            "torch": partial(_step, F.cross_entropy, (x,), y),
            "kernel": lambda: None,
        },
    }


def _quickest(calls: dict[str, Callable[[], object]], rounds: int) -> tuple[float, float, float]:
    """Seconds of calls that are too short for a clock: the least of many rounds, which others disturb."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(SMALL_ROUNDS * rounds):
        for key, call in calls.items():
            begin = perf_counter()
            for _ in range(SMALL_CALLS):
                call()
            best[key] = min(best[key], (perf_counter() - begin) / SMALL_CALLS)
    return best["fastce"], best["torch"], best["kernel"]
