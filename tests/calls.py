"""Calls of every public function that computes on the kernels, for tests of what holds for all of them.

`calls` makes them for a dtype and a shape. `named` has those of shapes that are large enough for threads, and
`digests` what they give, for tests of what a process does to a call: forks, threads, other runtimes, signals.
"""

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
from conftest import FLOATS, bits, nasty

import fastce
from fastce import calibration, inference


class Call(NamedTuple):
    """A function with arguments; those in `rows` have one entry per row, first axis, as the results do."""

    name: str
    function: Any
    rows: tuple
    options: dict
    row_options: dict = {}  # noqa: RUF012

    def results(self, **more):
        """What it returns, as a tuple."""
        result = self.function(*self.rows, **self.options, **self.row_options, **more)
        return result if isinstance(result, tuple) else (result,)

    def part(self, rows):
        """The same for some of the rows."""
        shares = {name: a[rows] for name, a in self.row_options.items()}
        return self._replace(rows=tuple(a[rows] for a in self.rows), row_options=shares)

    @property
    def reduces(self):
        """Whether it has an argument `reduction`."""
        return "axis" not in self.options


def calls(
    dtype, n_rows, n_classes, kinds=("normal", "wide", "subnormal", "confident 25", "masked -inf", "tiny")
):
    """One or more of each function, on the same rows, which come again and again."""
    again = np.arange(n_rows) % 60
    x, y = (a[again] for a in nasty(dtype, min(n_rows, 60), n_classes, kinds))
    rng = np.random.default_rng(n_classes)
    q, w = rng.dirichlet(np.ones(n_classes), n_rows), rng.uniform(0.5, 2, n_classes)
    p, s = rng.uniform(size=x.shape).astype(dtype), rng.uniform(0.5, 2, n_rows)
    full = {"weight": w, "label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 0.7, "softcap": 30.0}
    last = {"axis": -1}
    return [
        Call("cross_entropy", fastce.cross_entropy, (x, y), {}),
        Call("cross_entropy, options", fastce.cross_entropy, (x, y), full, {"sample_weight": s}),
        Call("gradient", fastce.cross_entropy_and_grad, (x, y), {}),
        Call("gradient, across", fastce.cross_entropy_and_grad, (np.asfortranarray(x), y), {}),
        Call(
            "gradient, q", fastce.cross_entropy_and_grad, (x, q), {"temperature": 3.0}, {"sample_weight": s}
        ),
        Call("Hessian", fastce.cross_entropy_and_hess, (x, y), full),
        Call("focal", fastce.focal_loss, (x, y), {"gamma": 1.5}),
        Call("focal gradient", fastce.focal_loss_and_grad, (x, y), {"weight": w, "gamma": 1.5}),
        Call("margin", fastce.margin_cross_entropy, (2 * p - 1, y), {"margin2": 0.3}),
        Call("margin gradient", fastce.margin_cross_entropy_and_grad, (2 * p - 1, y), {"margin1": 1.1}),
        Call("hinge", fastce.hinge_loss, (x, y), {"weight": w}),
        Call("hinge gradient", fastce.hinge_loss_and_grad, (x, y), {"kind": "multi_margin"}),
        Call(
            "hinge gradient, across",
            fastce.hinge_loss_and_grad,
            (np.asfortranarray(x), y),
            {"kind": "multi_margin", "p": 2, "weight": w},
        ),
        Call("hinge of the largest", fastce.hinge_loss_and_grad, (x, y), {"kind": "crammer_singer", "p": 2}),
        Call("nll", fastce.nll_loss, (x, y), {}),
        Call("binary", fastce.binary_cross_entropy_with_logits, (x, p), {}),
        Call("binary gradient", fastce.binary_cross_entropy_with_logits_and_grad, (x, p), {}),
        Call(
            "binary Hessian",
            fastce.binary_cross_entropy_with_logits_and_hess,
            (x, q),
            {"weight": w, "pos_weight": w},
        ),
        Call("binary focal", fastce.binary_focal_loss, (x, p), {"alpha": 0.3}),
        Call("binary focal gradient", fastce.binary_focal_loss_and_grad, (x, p), {"alpha": 0.3}),
        Call("probabilities", fastce.binary_cross_entropy, (p, p), {}),
        Call("logsumexp", fastce.logsumexp, (x,), last),
        Call("logsumexp, b", fastce.logsumexp, (x,), {**last, "return_sign": True}, {"b": p - dtype(0.5)}),
        Call("softmax", fastce.softmax, (x,), last),
        Call("log_softmax", fastce.log_softmax, (x,), last),
        Call("scores", inference.token_logprobs, (x, y), {**last, "top_k": min(n_classes, 5)}),
        Call("best classes", inference.top_k, (x,), {**last, "k": min(n_classes, 5)}),
    ]


def linear_calls(dtype, n_rows, n_classes):
    """The same of a linear layer, where kernels compute it and not BLAS. They hold more than they return."""
    if n_classes > 4096:
        return []
    rng = np.random.default_rng(n_classes)
    w, b = rng.normal(size=(n_classes, 11)).astype(dtype), rng.normal(size=n_classes).astype(dtype)
    rows = rng.normal(size=(n_rows, 11)).astype(dtype), rng.integers(0, n_classes, n_rows)

    def loss(x, y, **options):
        return fastce.linear_cross_entropy(x, w, y, linear_bias=b, **options)

    def input_grad(x, y, **options):
        value, grad = fastce.linear_cross_entropy_and_grad(x, w, y, linear_bias=b, **options)
        return value, grad.input

    return [
        Call("linear", loss, rows, {"label_smoothing": 0.1}),
        Call("linear gradient", input_grad, rows, {}, {"sample_weight": rng.random(n_rows)}),
    ]


def scores(dtype, n_rows, n_classes):
    """Functions whose results are of the whole batch."""
    rng = np.random.default_rng(n_classes)
    x = rng.normal(size=(n_rows, n_classes)).astype(dtype)
    y = (x + rng.gumbel(size=x.shape) / 2).argmax(axis=1)  # surer than the logits: there is a temperature
    return [
        Call(f.__name__, f, (x, y), {}, {"sample_weight": rng.uniform(0.5, 2, n_rows)})
        for f in (calibration.fit_temperature, calibration.reliability_curve, calibration.brier_score)
    ]


# Few classes, some, a row of pieces for each thread, and fewer rows than threads.
SHAPES = ((4001, 3), (700, 57), (300, 200), (4, 20_000), (3, 20_000))


@functools.cache
def named():
    """Calls of each shape in float32 and float64, by name: "softmax, float32, (4001, 3)"."""
    return {
        f"{call.name}, {dtype}, {shape}": call
        for dtype in FLOATS
        for shape in SHAPES
        for make in (calls, linear_calls, scores)
        for call in make(dtype.type, *shape)
    }


def digest(results):
    """A hash of the bits of a result or several."""
    parts = results if isinstance(results, tuple) else (results,)
    return hashlib.sha256(b"".join(map(bits, parts))).hexdigest()


def digests(n_threads=None, names=None):
    """Those of all calls, or of the named ones."""
    return {name: digest(named()[name].results(n_threads=n_threads)) for name in names or named()}
