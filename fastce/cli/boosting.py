"""Objectives for boosted trees, timed: derivatives against NumPy's, training against the built-in loss."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

import fastce
from fastce.cli.common import new_table, require, time_text
from fastce.cli.timing import interleaved

ROWS, CLASSES = 1_000_000, 10
TRAINING = (100_000, 20, 10)  # rows, features, classes
ROUNDS = 100


def show_boosting(terminal: Console, rounds: int, n_threads: int) -> None:
    """Print both tables."""
    require("bridges", "xgboost", "lightgbm", "sklearn")
    fastce.set_num_threads(n_threads)
    table = new_table(("gradient and Hessian", "order"), ("fastce", "NumPy", "ratio"))
    for dtype, order in ((np.float32, "C"), (np.float64, "F")):
        own, other = _derivatives(dtype, order, rounds)
        table.add_row(
            f"{ROWS} × {CLASSES}, {np.dtype(dtype)}",
            order,
            time_text(own),
            time_text(other),
            f"{other / own:.1f}",
        )
    terminal.print(table)
    table = new_table(
        (f"a round of training, {' × '.join(map(str, TRAINING))}, median of {ROUNDS}",),
        ("built in", "fastce ÷ built in", "computing nothing ÷ built in", "probabilities differ by"),
    )
    for name, prepare in (("XGBoost", _xgboost), ("LightGBM", _lightgbm)):
        seconds, own, nothing, apart = _compare(*prepare(n_threads))
        table.add_row(name, time_text(seconds), f"{own:.2f}", f"{nothing:.2f}", f"{apart:.1e}")
    table.caption = (
        "Rounds of boosters in turns: what disturbs one disturbs the others. Computing nothing: an objective "
        "that returns what fastce's returned a moment ago."
    )
    terminal.print(table)


def _numpy_softmax(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A whole matrix at a time, which is quicker than the loop over rows that XGBoost's demonstration has."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    grad = p.copy()
    grad[np.arange(len(x)), labels] -= 1
    return grad, np.maximum(2 * p * (1 - p), 1e-16)


def _derivatives(dtype: type, order: str, rounds: int) -> tuple[float, float]:
    from fastce.boosting import lightgbm, xgboost

    rng = np.random.default_rng(0)
    x = np.array(rng.standard_normal((ROWS, CLASSES)), dtype, order=order)
    labels = rng.integers(CLASSES, size=ROWS)
    given = labels.astype(np.float32)
    objective = (xgboost if order == "C" else lightgbm).SoftmaxObjective(CLASSES)
    calls = {"fastce": lambda: objective(given, x), "numpy": lambda: _numpy_softmax(x, labels)}
    seconds = interleaved(calls, rounds)
    return seconds["fastce"], seconds["numpy"]


def _compare(
    objective: Callable, begin: Callable, update: Callable, probabilities: Callable
) -> tuple[float, float, float, float]:
    """Seconds of a round with the built-in objective, two ratios, and by how much probabilities differ.

    `begin` makes a booster for an objective, or for none; `update` adds a round to it.
    """
    last: list[tuple] = [()]

    def own(margins: np.ndarray, data: Any) -> tuple:
        last[0] = objective(margins, data)
        return last[0]

    objectives = (None, own, lambda margins, data: last[0])
    boosters = [begin(objective) for objective in objectives]
    seconds = np.empty((ROUNDS, len(boosters)))
    for k in range(ROUNDS):
        for j, (booster, called) in enumerate(zip(boosters, objectives, strict=True)):
            start = time.perf_counter()
            update(booster, k, called)
            seconds[k, j] = time.perf_counter() - start
    ratios = np.median(seconds / seconds[:, :1], axis=0)
    built_in, custom, _ = map(probabilities, boosters, objectives)
    apart = float(np.abs(built_in - custom).max())
    return float(np.median(seconds[:, 0])), float(ratios[1]), float(ratios[2]), apart


def _data() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_classification

    rows, features, classes = TRAINING
    return make_classification(
        rows, features, n_informative=10, n_classes=classes, n_clusters_per_class=1, random_state=0
    )


def _xgboost(n_threads: int) -> tuple[Callable, ...]:
    import xgboost

    from fastce.boosting.xgboost import SoftmaxObjective, base_score

    X, y = _data()
    classes = TRAINING[2]
    data = xgboost.DMatrix(X, y)
    params = {"objective": "multi:softprob", "num_class": classes, "nthread": n_threads, "max_depth": 4}
    start = {"base_score": base_score(y, classes)}
    return (
        SoftmaxObjective(classes),
        lambda objective: xgboost.Booster(params | (start if objective else {}), [data]),
        lambda booster, k, objective: booster.update(data, k, fobj=objective),
        lambda booster, objective: booster.predict(data),
    )


def _lightgbm(n_threads: int) -> tuple[Callable, ...]:
    import lightgbm

    from fastce.boosting.lightgbm import SoftmaxObjective, init_score, predict_proba

    X, y = _data()
    classes = TRAINING[2]
    params = {
        "num_class": classes,
        "num_threads": n_threads,
        "num_leaves": 15,
        "verbose": -1,
        "deterministic": True,
    }
    start = init_score(y, classes)

    def begin(objective: Any) -> lightgbm.Booster:
        data = lightgbm.Dataset(X, y, init_score=start if objective else None)
        return lightgbm.Booster(params | {"objective": "none" if objective else "multiclass"}, data)

    def probabilities(booster: lightgbm.Booster, objective: Any) -> np.ndarray:
        if objective is None:
            return booster.predict(X)
        return predict_proba(booster.predict(X, raw_score=True) + start)

    return (
        SoftmaxObjective(classes),
        begin,
        lambda booster, k, objective: booster.update(fobj=objective),
        probabilities,
    )
