"""Scores, best classes and samples, here and as computed elsewhere: what goals and benchmarks time."""

from collections.abc import Callable
from functools import partial

import numpy as np

import fastce
from fastce import inference
from fastce.cli.measure import random_batch
from fastce.cli.timing import interleaved, read_call

TASKS = ("scores", "top 50", "nucleus")


def call(task: str, rival: str, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """Return a call of a task by ``"fastce"``, ``"torch"`` or, of the top 50, ``"numpy"``."""
    return {"fastce": _fastce, "torch": _torch, "numpy": _numpy}[rival](x, y)[task]


def score_ratio(shape: tuple[int, int], rounds: int, n_threads: int) -> tuple[float, float]:
    """Seconds of scores with the top 5, and of the losses alone."""
    fastce.set_num_threads(n_threads)
    batch = random_batch(shape, "float32", n_threads)
    losses = partial(fastce.cross_entropy, batch.logits, batch.labels, reduction="none")
    calls = {"scores": call("scores", "fastce", batch.logits, batch.labels), "losses": losses}
    return tuple(interleaved(calls, rounds).values())


def row_ratio(n_classes: int, rounds: int, n_threads: int) -> tuple[float, float]:
    """Seconds of a token from one row, with its log-probability, and of a read of the row by all threads."""
    fastce.set_num_threads(n_threads)
    row = random_batch((1, n_classes), "float32", n_threads).logits[0]
    calls = {
        "sample": partial(inference.sample, row, temperature=0.8, rng=np.random.default_rng(0)),
        "read": read_call(row, 1),
    }
    ours, serial = interleaved(calls, rounds).values()
    return ours, serial / n_threads


def rival_ratio(
    task: str, rival: str, shape: tuple[int, int], rounds: int, n_threads: int
) -> tuple[float, float]:
    """Seconds of a rival and of fastce."""
    fastce.set_num_threads(n_threads)
    batch = random_batch(shape, "float32", n_threads)
    calls = {name: call(task, name, batch.logits, batch.labels) for name in (rival, "fastce")}
    return tuple(interleaved(calls, rounds).values())


def _fastce(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], object]]:
    return {
        "scores": lambda: inference.token_logprobs(x, y, top_k=5),
        "top 50": lambda: inference.top_k(x, 50),
        "nucleus": lambda: inference.sample(x, temperature=0.8, top_p=0.95, rng=0),
    }


def _numpy(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], object]]:
    return {"top 50": lambda: np.argpartition(x, -50, axis=-1)[:, -50:]}


def _torch(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], object]]:
    """With PyTorch; the nucleus by a sort, as transformers has it."""
    import torch

    logits, labels = torch.from_numpy(x), torch.from_numpy(y)[:, None]

    def scores() -> object:
        logs = torch.log_softmax(logits, -1)
        chosen = logs.gather(-1, labels)
        return chosen, (logs > chosen).sum(-1), -(logs.exp() * logs).sum(-1), logs.topk(5, -1)

    def nucleus() -> object:
        ascending, order = torch.sort(logits / 0.8)
        dropped = ascending.softmax(-1).cumsum(-1) <= 0.05
        dropped[:, -1] = False
        kept = (logits / 0.8).masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
        return torch.multinomial(kept.softmax(-1), 1)

    return {"scores": scores, "top 50": lambda: logits.topk(50, -1), "nucleus": nucleus}
