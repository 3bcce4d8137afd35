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
        (f"training, {' × '.join(map(str, TRAINING))}, {ROUNDS} rounds",),
        ("fastce", "built in", "ratio", "probabilities differ by"),
    )
    for name, prepare in (("XGBoost", _xgboost), ("LightGBM", _lightgbm)):
        own, other, apart = _compare(*prepare(n_threads), 1 if rounds <= 3 else 2)
        table.add_row(name, time_text(own), time_text(other), f"{own / other:.2f}", f"{apart:.1e}")
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
    own: Callable[[], np.ndarray], other: Callable[[], np.ndarray], rounds: int
) -> tuple[float, float, float]:
    """Best times of both in turns, and by how much their probabilities differ."""
    best = [float("inf")] * 2
    results: list[Any] = [None, None]
    for _ in range(rounds):
        for k, train in enumerate((own, other)):
            begin = time.perf_counter()
            results[k] = train()
            best[k] = min(best[k], time.perf_counter() - begin)
    return *best, float(np.abs(results[0]() - results[1]()).max())


def _data() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_classification

    rows, features, classes = TRAINING
    return make_classification(
        rows, features, n_informative=10, n_classes=classes, n_clusters_per_class=1, random_state=0
    )


def _xgboost(n_threads: int) -> tuple[Callable, Callable]:
    import xgboost

    from fastce.boosting.xgboost import SoftmaxObjective, base_score

    X, y = _data()
    classes = TRAINING[2]
    data = xgboost.DMatrix(X, y)
    params = {"objective": "multi:softprob", "num_class": classes, "nthread": n_threads, "max_depth": 4}
    start = {"base_score": base_score(y, classes)}

    def train(**custom: Any) -> Callable[[], np.ndarray]:
        model = xgboost.train(params | (start if custom else {}), data, ROUNDS, **custom)
        return lambda: model.predict(data)

    return lambda: train(obj=SoftmaxObjective(classes)), train


def _lightgbm(n_threads: int) -> tuple[Callable, Callable]:
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

    def train(objective: Any) -> Callable[[], np.ndarray]:
        built_in = objective == "multiclass"
        data = lightgbm.Dataset(X, y, init_score=None if built_in else start)
        model = lightgbm.train(params | {"objective": objective}, data, ROUNDS)
        if built_in:
            return lambda: model.predict(X)
        return lambda: predict_proba(model.predict(X, raw_score=True) + start)

    return lambda: train(SoftmaxObjective(classes)), lambda: train("multiclass")
