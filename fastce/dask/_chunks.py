"""Tasks of chunks that hold whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastce
from fastce import inference
from fastce._kernels.entry import advice, arrays


def retold(error: Exception, name: str) -> Exception:
    """An error of `fastce.cross_entropy`, whose `target` the caller knows by this name."""
    elsewhere = ": use axis=.* if the classes are there"  # they are on the last axis
    return advice.retold(error, (r"\btarget\b(?! probabilities)", name), (elsewhere, ""))


class Labels(NamedTuple):
    """Targets of a chunk of rows, and all that is known of them."""

    target: NDArray
    sample_weight: NDArray | None
    start: tuple[int, ...]  # of its rows in the whole
    n_classes: int
    options: dict[str, Any]
    name: str = "target"  # what the caller knows it as

    @property
    def live(self) -> NDArray:
        """Whether rows count."""
        y, ignore_index = self.target, self.options["ignore_index"]
        return np.ones(np.shape(y), bool) if ignore_index is None else np.asarray(y) != ignore_index

    @property
    def loss_options(self) -> dict[str, Any]:
        return self.options | {"sample_weight": self.sample_weight}

    @property
    def score_options(self) -> dict[str, Any]:
        names = ("temperature", "softcap", "ignore_index", "n_threads")
        return {name: self.options[name] for name in names if name in self.options}

    @contextmanager
    def places(self) -> Iterator[None]:
        """Errors name a label that is no class by its place in the whole, and labels as the caller does."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise retold(error, self.name) from None
        except IndexError:
            y, ignore_index = self.target, self.options["ignore_index"]
            place = np.argwhere(((y < 0) | (y >= self.n_classes)) & self.live)[0]
            is_known = not np.isnan(self.start).any()
            where = ", ".join(map(str, (place + self.start).astype(int) if is_known else place.tolist()))
            raise IndexError(
                f"{self.name}[{where}]{'' if is_known else ' of a chunk'} is {y[tuple(place)]}; "
                f"expected a class in [0, {self.n_classes})"
                + ("" if ignore_index is None else f" or ignore_index={ignore_index}")
            ) from None

    def check(self) -> None:
        arrays.any_array(self.target, self.name)  # without a mask
        arrays.any_array(self.sample_weight, "sample_weight")
        with self.places():
            if ((self.target < 0) | (self.target >= self.n_classes))[self.live].any():
                raise IndexError

    def weights(self) -> NDArray:
        """Of the rows that count, in float64."""
        weight, w, live = self.options["weight"], self.sample_weight, self.live
        terms = np.ones(int(live.sum())) if w is None else np.asarray(w, np.float64)[live]
        return terms if weight is None else terms * weight[self.target[live]].astype(np.float64)


def sum_of_losses(x: Any, labels: Labels) -> float:
    with labels.places():
        return fastce.cross_entropy(x, labels.target, reduction="sum", **labels.loss_options)


def losses(x: Any, labels: Labels, dtype: Any) -> Any:
    with labels.places():
        return fastce.cross_entropy(x, labels.target, reduction="none", **labels.loss_options)


def gradient(x: Any, labels: Labels, denominator: float | None) -> Any:
    options = labels.loss_options
    is_usual = denominator is None or 1e-270 < abs(denominator) < np.inf
    if denominator is None or not is_usual:
        options["reduction"] = "sum"
    elif denominator >= 0:
        options["normalizer"] = denominator
    else:  # of weights whose sum is negative: no normalizer
        options |= {"normalizer": -denominator, "sample_weight": -np.asarray(labels.sample_weight)}
    with labels.places():
        grad = fastce.cross_entropy_and_grad(x, labels.target, **options)[1]
    if not is_usual:  # a sum of weights, which no normalizer may be
        with np.errstate(all="ignore"):
            grad[labels.live] /= denominator
    return grad


def scores(x: Any, labels: Labels, top_k: int) -> Any:
    with labels.places():
        return inference.token_logprobs(x, labels.target, top_k=top_k, **labels.score_options)


def sum_of_weights(labels: Labels) -> float:
    """The chunk's part of the mean's denominator."""
    if labels.target.dtype.kind == "f":
        w = labels.sample_weight
        return float(np.size(labels.target) / labels.n_classes if w is None else np.sum(w, dtype=np.float64))
    labels.check()
    return float(np.sum(labels.weights()))
