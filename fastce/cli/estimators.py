"""scikit-learn's estimators beside fastce's: seconds and passes over X to the same stopping rule."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

import fastce
from fastce.cli.common import check_only, new_table, require, still_live, three_digits, time_text
from fastce.linear import objective

SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky")
CHOLESKY = 700  # coefficients, above which newton-cholesky takes minutes or more memory than there is
INTELEX = "scikit-learn-intelex"
PATIENCE = 5.0  # seconds, after which a fit is not repeated
Data = tuple[Any, np.ndarray]


class Case(NamedTuple):
    """Data, made when its turn comes, and the parameters of a fit."""

    name: str
    make: Callable[[], Data]
    options: dict[str, Any]


class Fit(NamedTuple):
    """The best time of a fit, its passes over X (0: not known), and the objective in float64."""

    seconds: float
    passes: float
    steps: int
    loss: float
    converged: bool
    peak: int


def cases(quick: bool) -> list[Case]:
    """The table's rows: large data, wide data, small data, hard data."""
    share = 10 if quick else 1
    shapes = {
        "200000x64x10": ("float32", "float64"),
        "200000x30x2": ("float32",),
        "20000x784x10": ("float32", "float64"),
    }
    wide = dict.fromkeys(("500x1010x2", "100x784x10"), ("float64",))
    made = {
        f"{shape} {dtype}, {columns}": partial(
            dense, *map(int, shape.split("x")), dtype, columns == "correlated", 1 if shape in wide else share
        )
        for shape, dtypes in (shapes | wide).items()
        for dtype in dtypes
        for columns in ("independent", "correlated")
    }
    made["CSR 20000x50000x20 float32"] = partial(words, 20_000 // share, 50_000, 20)
    large = [Case(name, make, {"C": C}) for name, make in made.items() for C in (0.01, 1.0, 100.0)]
    small = [Case(name, partial(_load, name), {}) for name in ("iris", "digits", "breast_cancer")]
    hard = [
        Case("columns from 0.001 to 1000", _unscaled, {}),
        Case("separable", _separable, {"C": 1e6}),
        Case("200 classes", _many_classes, {}),
    ]
    return large + small + hard


def dense(n_rows: int, n_features: int, n_classes: int, dtype: str, correlated: bool, share: int = 1) -> Data:
    """Normal columns, independent or as those of images are, with labels drawn from a softmax."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows // share, n_features), dtype=np.float32)
    if correlated:  # the k-th component has a standard deviation of 1 / k
        X /= np.arange(1, n_features + 1, dtype=np.float32)
        X = X @ rng.standard_normal((n_features, n_features), dtype=np.float32)
        X /= X.std(axis=0)
    return X.astype(dtype, copy=False), _draw(X, n_classes, rng)


def words(n_rows: int, n_features: int, n_classes: int) -> Data:
    """Counts of words by Zipf's law, about 100 a row, rows of length 1; each class has words of its own."""
    from scipy import sparse

    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n_rows)
    counts = rng.poisson(100, n_rows)
    of_row = np.repeat(np.arange(n_rows), counts)
    word = np.minimum(np.exp(rng.random(len(of_row)) * np.log(n_features)).astype(int), n_features - 1)
    own = rng.random(len(word)) < 0.1  # words of the class: every n_classes-th, from its own number on
    word[own] = word[own] // n_classes * n_classes + y[of_row[own]]
    X = sparse.csr_array((np.ones(len(word), np.float32), (of_row, word)), (n_rows, n_features))
    X.sum_duplicates()
    length = np.sqrt(X.multiply(X).sum(axis=1))
    X.data /= np.repeat(np.maximum(length, 1), np.diff(X.indptr)).astype(np.float32)
    return X, y


def _draw(X: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    W = 2 * rng.standard_normal((X.shape[1], n_classes), dtype=np.float32) / np.sqrt(X.shape[1])
    return (X @ W + rng.gumbel(size=(len(X), n_classes))).argmax(axis=1)


def _load(name: str) -> Data:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(return_X_y=True)


def _unscaled() -> Data:
    X, y = dense(20_000, 20, 4, "float64", True)
    return X * 10 ** np.random.default_rng(1).uniform(-3, 3, 20), y


def _separable() -> Data:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 20))
    return X, (X @ rng.standard_normal((20, 4))).argmax(axis=1)


def _many_classes() -> Data:
    return dense(20_000, 50, 200, "float64", True)


def models(case: Case, n_coefficients: int) -> dict[str, Callable[[], Any]]:
    """Each library's classifier by name; scikit-learn's and fastce's with the limit of steps taken off."""
    from sklearn.linear_model import LogisticRegression

    from fastce.sklearn import LogisticRegression as Ours

    options = case.options | {"max_iter": 10_000}
    found = {"fastce": partial(Ours, **options)}
    for solver in SOLVERS[: 3 if n_coefficients <= CHOLESKY else 2]:
        found[solver] = partial(LogisticRegression, solver=solver, **options)
    try:
        from sklearnex.linear_model import LogisticRegression as Intel
    except ImportError:
        return found
    return found | {INTELEX: partial(Intel, **options)}


@contextmanager
def counted(n_rows: int) -> Iterator[list[float]]:
    """Counts rows that sums of fastce's and scikit-learn's objectives walk over, by `n_rows`."""
    from sklearn.linear_model._linear_loss import LinearModelLoss

    from fastce.linear.objective import Objective

    total = [0.0]
    walks = {
        Objective: ("_sums", "hessian_product", "_probabilities"),
        LinearModelLoss: (
            "loss",
            "loss_gradient",
            "gradient",
            "gradient_hessian",
            "gradient_hessian_product",
        ),
    }
    kept = [(owner, name, getattr(owner, name)) for owner, names in walks.items() for name in names]

    def counting(function: Callable) -> Callable:
        def call(self: Any, *args: Any, **more: Any) -> Any:
            X = self._X if isinstance(self, Objective) else more["X"] if "X" in more else args[1]
            total[0] += X.shape[0] / n_rows
            result = function(self, *args, **more)
            if function.__name__ != "gradient_hessian_product":
                return result
            return result[0], counting_product(result[1])

        return call

    def counting_product(product: Callable) -> Callable:
        def call(s: np.ndarray) -> np.ndarray:
            total[0] += 1
            return product(s)

        return call

    for owner, name, function in kept:
        setattr(owner, name, counting(function))
    try:
        yield total
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def measure(make: Callable[[], Any], data: Data, C: float, rounds: int) -> Fit:
    """Best time of `rounds` fits, the first of which is counted, and its objective in float64."""
    X, y = data
    spent: list[float] = []
    with counted(X.shape[0]) as passes, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = _reset_peak()
        begin = time.perf_counter()
        model = make().fit(X, y)
        spent.append(time.perf_counter() - begin)
        peak = _peak() - before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(spent) < rounds and sum(spent) < PATIENCE:
            begin = time.perf_counter()
            make().fit(X, y)
            spent.append(time.perf_counter() - begin)
    label = np.searchsorted(model.classes_, y)
    f = objective(X.astype(np.float64), label, len(model.classes_), l2=1 / (C * X.shape[0]))
    loss = f.loss(np.hstack([model.coef_, model.intercept_[:, None]]))
    return Fit(min(spent), passes[0], int(model.n_iter_.max()), loss, not caught, peak)


def _reset_peak() -> int:
    """Bytes in memory; from here on the peak is noted anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _peak("VmRSS")


def _peak(name: str = "VmHWM") -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def show_estimators(terminal: Console, rounds: int, n_threads: int, only: str, quick: bool) -> None:
    """Print a line for each case and library, and the ratios of all."""
    require("sklearn", "sklearn", "scipy")
    check_only(only, [case.name for case in cases(quick)])
    fastce.set_num_threads(n_threads)
    table = new_table(
        ("data", "C", "fitted by"),
        ("time", "÷ fastce", "steps", "passes", "objective - fastce's", "peak MiB"),
    )
    best, own = [], []
    with still_live(terminal, table) as live:
        for case in cases(quick):
            if only not in case.name:
                continue
            data, C = case.make(), case.options.get("C", 1.0)
            n_classes = len(np.unique(data[1]))
            n_coefficients = (1 if n_classes == 2 else n_classes) * (data[0].shape[1] + 1)
            fits = {}
            for name, make in models(case, n_coefficients).items():
                fits[name] = fit = measure(make, data, C, rounds)
                table.add_row(case.name, f"{C:g}", name, *_cells(fit, fits["fastce"]))
                live.refresh()
            ours = fits.pop("fastce")
            best.append(min(fit.seconds for fit in fits.values()) / ours.seconds)
            own.append(min(fit.seconds for name, fit in fits.items() if name != INTELEX) / ours.seconds)
    terminal.print(
        f"best of all ÷ fastce: {_summary(best)}; best of scikit-learn's ÷ fastce: {_summary(own)}"
    )


def _cells(fit: Fit, ours: Fit) -> list[str]:
    return [
        time_text(fit.seconds),
        f"{fit.seconds / ours.seconds:.2f}",
        f"{fit.steps}{'' if fit.converged else ', warns'}",
        three_digits(fit.passes) if fit.passes else "",
        f"{(fit.loss - ours.loss) / ours.loss:+.0e}",
        f"{fit.peak / 2**20:.0f}" if fit.peak else "",
    ]


def _summary(ratios: list[float]) -> str:
    return (
        f"geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, least {min(ratios):.2f}"
        if ratios
        else "nothing"
    )
