"""The goals that fastce sets itself, as a list: ``python -m fastce bench --suite goals``."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from timeit import Timer

import numpy as np
from rich.console import Console

import fastce
from fastce.cli import linear_goals, neighbours
from fastce.cli.bounds import closest_to_bound, require_wide_reference
from fastce.cli.callers import CALLERS, at_once
from fastce.cli.common import UserError, new_table, require, still_live, three_digits, time_text
from fastce.cli.inference import rival_ratio, row_ratio, score_ratio
from fastce.cli.measure import GRAD, LOSS, STREAM, measure, random_batch
from fastce.cli.relatives import OPTIONS, best_ratio, option_cost
from fastce.cli.report import Run
from fastce.cli.rivals import Batch
from fastce.cli.timing import interleaved

STREAM_BYTES = 1 << 27  # far beyond any cache
#: How many copies or reads of the logits a call may take, by the number of classes.
STREAM_BOUNDS = {
    ("float32", GRAD, "loss + gradient", "copy"): {
        2: 2.2, 3: 2.2, 5: 1.8, 10: 1.4, 17: 1.4, 32: 1.4,
        **dict.fromkeys((100, 1000, 32000, 262144), 1.2),
    },
    ("float64", GRAD, "loss + gradient", "copy"): {2: 2.5, 3: 2.5, 5: 2.0, 10: 1.6, 17: 1.5, 32: 1.5},
    ("float32", LOSS, "loss", "read"): {
        2: 3.5, 10: 2.0, 32: 1.6,
        100: 1.5, 1000: 1.3, 32000: 1.2, 262144: 1.2,
    },
    ("float64", LOSS, "loss", "read"): dict.fromkeys((100, 1000, 32000), 1.5),
}
LEVEL_SHAPES = "256x1000,1000000x2,1000000x10,8192x1000,1024x32000"


@dataclass(frozen=True)
class Setting:
    """How to measure."""

    rivals: list[str]
    rounds: int
    n_threads: int


@dataclass(frozen=True)
class Goal:
    """A figure, its bound, and the function that returns the figure and what it is made of."""

    name: str
    measure: Callable[[Setting], tuple[float, str]]
    at_most: float = float("inf")
    at_least: float = float("-inf")
    text: Callable[[float], str] = three_digits

    @property
    def bound(self) -> str:
        """The bound in words."""
        return f"≤ {self.text(self.at_most)}" if isfinite(self.at_most) else f"≥ {self.at_least:g}"


def show_goals(terminal: Console, rivals: list[str], rounds: int, n_threads: int) -> None:
    """Measure every goal and print figure beside bound."""
    setting = Setting(rivals, rounds, n_threads)
    table = new_table(("figure",), ("measured", "goal", "met"))
    table.add_column("made of", overflow="fold")
    with still_live(terminal, table) as live:
        for goal in _goals():
            table.caption = f"measuring {goal.name}"
            live.refresh()
            figure, source = goal.measure(setting)
            met = goal.at_least <= figure <= goal.at_most
            table.add_row(goal.name, goal.text(figure), goal.bound, "yes" if met else "[bold]no[/]", source)
        table.caption = None
        live.refresh()


def _goals() -> list[Goal]:
    streams = [
        Goal(
            f"{dtype} {text}, 128 MiB, C = {n_classes}, ÷ {stream}",
            partial(_stream_ratio, n_classes, dtype, quantity),
            at_most=bound,
        )
        for (dtype, quantity, text, stream), bounds in STREAM_BOUNDS.items()
        for n_classes, bound in bounds.items()
    ]
    options = [
        Goal(
            f"{option}, {rows}x{classes}, ÷ plain",
            partial(_option, option, (rows, classes)),
            at_most=2.0 if option == "target probabilities" else 1.3,
        )
        for rows, classes in ((1000000, 10), (8192, 1000))
        for option in OPTIONS
    ]
    functions = [
        Goal(
            f"{name}, 8192x1000, {best} ÷ fastce",
            partial(_function, name, libraries),
            at_least=bound,
        )
        for name in ("logsumexp", "softmax", "log_softmax")
        for best, libraries, bound in (
            ("best of torch, jax", ("torch", "jax"), 2.0),
            ("SciPy", ("scipy",), 5.0),
        )
    ]
    small = [
        Goal(f"(1, 10) {text} ÷ np.exp of it", partial(_small, statement), at_most=bound)
        for text, statement, bound in (
            ("loss", "cross_entropy(logits, labels)", 1.0),
            ("loss + gradient, out", "cross_entropy_and_grad(logits, labels, out=out)", 1.4),
            ("softmax, out", "softmax(logits, axis=1, out=out)", 1.5),
        )
    ]
    return [
        *streams,
        Goal("(1900, 10) loss, all threads ÷ one", _threads_pay, at_most=1.0),
        *options,
        Goal(
            "binary, 1e7, fresh gradient, best of torch, jax ÷ fastce",
            partial(_function, "binary", ("torch", "jax")),
            at_least=3.0,
        ),
        *functions,
        Goal(
            "softmax along axis 0, 8192x1000, torch ÷ fastce",
            partial(_function, "softmax along axis 0", ("torch",)),
            at_least=2.0,
        ),
        Goal("(4, 21, 512, 512), axis=1, best other ÷ fastce", _pixels, at_least=4.0),
        *small,
        Goal(f"{CALLERS} callers at once ÷ in sequence, worst shape", _callers, at_most=1.3),
        Goal("the level below the best ÷ the best, slowest of the shapes", _levels, at_most=2.0),
        Goal("8192x32000 in place, bfloat16 ÷ float32", _bfloat16, at_most=0.7),
        *(
            Goal(
                f"scores with top 5, {rows}x{classes}, ÷ losses",
                partial(_scores, (rows, classes)),
                at_most=1.3,
            )
            for rows, classes in ((256, 128256), (2048, 32000))
        ),
        *(
            Goal(
                f"{task}, {rows}x{classes}, {rival} ÷ fastce",
                partial(_inference, task, rival, (rows, classes)),
                at_least=bound,
            )
            for task, rival, rows, classes, bound in (
                ("scores", "torch", 256, 128256, 5.0),
                ("top 50", "torch", 256, 128256, 3.0),
                ("top 50", "numpy", 256, 128256, 3.0),
                ("top 50", "torch", 2048, 32000, 3.0),
                ("nucleus", "torch", 64, 128256, 5.0),
            )
        ),
        Goal("a token of one row of 128256, ÷ read from cache", _row, at_most=1.5),
        *(
            Goal(name, partial(_figure, function), **bound)
            for module in (linear_goals, neighbours)
            for name, function, bound in module.figures()
        ),
        Goal("errors in ULP ÷ their bounds, worst", _accuracy, at_most=1.0),
    ]


def _stream_ratio(n_classes: int, dtype: str, quantity: str, setting: Setting) -> tuple[float, str]:
    n_elements = STREAM_BYTES // np.dtype(dtype).itemsize
    batch = random_batch((n_elements // n_classes, n_classes), dtype, setting.n_threads)
    case = next(c for c in measure(batch, [], setting.rounds, print) if c.quantity == quantity)
    stream = case.seconds[STREAM]
    return case.fastce / stream, f"{time_text(case.fastce)} ÷ {time_text(stream)}"


def _threads_pay(setting: Setting) -> tuple[float, str]:
    """Just enough work for more than one thread."""
    batch = random_batch((1900, 10), "float32", setting.n_threads)
    fastce.set_num_threads(setting.n_threads)
    calls = {
        f"{n} threads": partial(fastce.cross_entropy, batch.logits, batch.labels, n_threads=n)
        for n in (setting.n_threads, 1)
    }
    many, one = interleaved(calls, setting.rounds).values()
    return many / one, f"{time_text(many)} ÷ {time_text(one)}"


def _option(option: str, shape: tuple[int, int], setting: Setting) -> tuple[float, str]:
    return option_cost(option, shape, setting.rounds, setting.n_threads)


def _function(name: str, libraries: tuple[str, ...], setting: Setting) -> tuple[float, str]:
    rivals = [rival for rival in libraries if rival in setting.rivals]
    return best_ratio(name, rivals, setting.rounds, setting.n_threads)


def _pixels(setting: Setting) -> tuple[float, str]:
    batch = random_batch((4, 21, 512, 512), "float32", setting.n_threads, axis=1)
    case = measure(batch, setting.rivals, setting.rounds, lambda reason: None)[1]
    if not case.peers:
        return float("nan"), "no other library"
    best = min(case.peers, key=case.peers.get)
    return case.best_peer, f"{best} {time_text(case.seconds[best])} ÷ {time_text(case.fastce)}"


def _small(statement: str, setting: Setting) -> tuple[float, str]:
    batch = random_batch((1, 10), "float32", setting.n_threads)
    names = {"logits": batch.logits, "labels": batch.labels, "out": batch.out, "exp": np.exp, **vars(fastce)}
    timers = {text: Timer(text, globals=names) for text in (statement, "exp(logits)")}
    own, exp = interleaved(timers, setting.rounds).values()
    return own / exp, f"{time_text(own)} ÷ {time_text(exp)}"


def _callers(setting: Setting) -> tuple[float, str]:
    return at_once(setting.rounds, setting.n_threads)


def _levels(setting: Setting) -> tuple[float, str]:
    """Run this benchmark in a process per level, in turns."""
    levels = fastce.show_config(mode="dict")["levels_runnable"][-2:]
    if len(levels) < 2:
        return float("nan"), "one level"
    times: dict[str, dict[str, float]] = {level: {} for level in levels}
    for _ in range(2):
        for level, best in times.items():
            for name, seconds in _times_at_level(level, setting).items():
                best[name] = min(seconds, best.get(name, seconds))
    below, above = times.values()
    ratios = {name: below[name] / above[name] for name in above}
    slowest = max(ratios, key=ratios.get)
    return ratios[slowest], f"{' ÷ '.join(levels)}, {slowest}; fastest {three_digits(min(ratios.values()))}"


def _times_at_level(level: str, setting: Setting) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        command = [sys.executable, "-m", "fastce", "bench", "--rivals", "none"]
        command += ["--shapes", LEVEL_SHAPES, "--json", str(path)]
        command += ["--rounds", str(setting.rounds), "--threads", str(setting.n_threads)]
        environment = {**os.environ, "FASTCE_LEVEL": level}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"level {level} does not run: {done.stderr.strip().splitlines()[-1]}")
        cases = Run.read(path).cases
    return {f"{'x'.join(map(str, case.shape))} {case.quantity}": case.seconds["fastce"] for case in cases}


def _bfloat16(setting: Setting) -> tuple[float, str]:
    require("bench", "ml_dtypes")
    import ml_dtypes

    wide = random_batch((8192, 32000), "float32", setting.n_threads)
    half = Batch(wide.logits.astype(ml_dtypes.bfloat16), wide.labels)
    fastce.set_num_threads(setting.n_threads)
    calls = {
        name: partial(fastce.cross_entropy_and_grad, batch.logits, batch.labels, out=batch.logits)
        for name, batch in {"float32": wide, "bfloat16": half}.items()
    }
    seconds = interleaved(calls, setting.rounds)
    source = " ÷ ".join(time_text(seconds[name]) for name in ("bfloat16", "float32"))
    return seconds["bfloat16"] / seconds["float32"], source


def _scores(shape: tuple[int, int], setting: Setting) -> tuple[float, str]:
    scores, losses = score_ratio(shape, setting.rounds, setting.n_threads)
    return scores / losses, f"{time_text(scores)} ÷ {time_text(losses)}"


def _inference(task: str, rival: str, shape: tuple[int, int], setting: Setting) -> tuple[float, str]:
    if rival not in setting.rivals:
        return float("nan"), f"no {rival}"
    theirs, ours = rival_ratio(task, rival, shape, setting.rounds, setting.n_threads)
    return theirs / ours, f"{time_text(theirs)} ÷ {time_text(ours)}"


def _row(setting: Setting) -> tuple[float, str]:
    ours, read = row_ratio(128256, setting.rounds, setting.n_threads)
    return ours / read, f"{time_text(ours)} ÷ {time_text(read)}"


def _figure(function: Callable, setting: Setting) -> tuple[float, str]:
    return function(setting.rounds, setting.n_threads)


def _accuracy(setting: Setting) -> tuple[float, str]:
    require_wide_reference()
    closest = closest_to_bound(setting.n_threads)
    return closest.share, str(closest)
