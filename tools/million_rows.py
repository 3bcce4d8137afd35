"""Measures what docs/plots/million_rows.py draws: objectives of a million rows against the time of a fit.

``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tools/million_rows.py``, a few minutes. Each point is a
fit of its own, with a larger limit of steps. Time is the processor's, of all threads, which other
processes hardly change.
"""

import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from fastce.cli import estimators, machine
from fastce.linear import objective

SHAPE = (1_000_000, 20, 5)
STEPS = (0, 1, 2, 4, 8, 15, 30, 60)
PATIENCE = 20.0  # seconds that a peer gets for all of its fits
TO = Path(__file__).parents[1] / "docs" / "plots" / "million_rows.json"


def curve(name, make, X, y, exact):
    """Seconds and objectives of fits with more and more steps, until one converges."""
    points = []
    for steps in STEPS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            begin = time.process_time()
            model = make(max_iter=steps).fit(X, y)
            seconds = time.process_time() - begin
        points.append((seconds, exact.loss(np.hstack([model.coef_, model.intercept_[:, None]]))))
        print(name, steps, *points[-1], flush=True)
        if (steps and not caught) or sum(p[0] for p in points) > PATIENCE:
            break
    return points


def main():
    """Measure, and write the file."""
    X, y = estimators.dense(*SHAPE, "float32", correlated=True)
    exact = objective(X.astype(np.float64), y, SHAPE[2], l2=1 / len(X))
    case = estimators.Case("", lambda: (X, y), {})
    curves = {
        name: curve(name, partial(make.func, **{**make.keywords, "max_iter": 0}), X, y, exact)
        for name, make in estimators.models(case, exact.size).items()
    }
    facts = {"shape": SHAPE, "processor": machine.cpu_name()}
    TO.write_text(json.dumps(facts | {"curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
