"""Errors at every instruction-set level beside their bounds: ``bench --suite accuracy``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from fastce import _kernels
from fastce.cli.accuracy import Errors, truth
from fastce.cli.common import UserError, new_table, still_live
from fastce.cli.rivals import RIVALS, Batch

#: ULP that the documentation promises for hard targets, by dtype and quantity.
BOUNDS = {
    "float32": {"loss": 2, "gradient": 4, "target": 4},
    "float64": {"loss": 4, "gradient": 8, "target": 8},
}

CLASS_COUNTS = (2, 3, 10, 33, 1000, 32000, 262144)
ELEMENTS = 1 << 20  # of a batch: half a million rows of 2 classes, 4 of 262144

#: The place of the class axis in memory, and what lays an array out so. Two walks of the kernels.
AXES = {"last": np.ascontiguousarray, "first": np.asfortranarray}

Rows = tuple[np.ndarray, np.ndarray]  # float64 logits, classes last, and their labels


# --- kinds of rows: each makes float64 logits of a shape, and their labels ---


def _normal(rng: np.random.Generator, shape: tuple[int, int], scale: float, offset: float) -> Rows:
    logits = rng.standard_normal(shape) * scale + offset
    return logits, rng.integers(shape[1], size=shape[0])


def _confident(rng: np.random.Generator, shape: tuple[int, int], lead: float) -> Rows:
    """The target stands above all others, where `lse - x_y` and `p_y - 1` lose all digits."""
    logits, labels = _normal(rng, shape, 1, 0)
    logits[np.arange(shape[0]), labels] = logits.max(axis=1) + lead
    return logits, labels


def _uniform(rng: np.random.Generator, shape: tuple[int, int]) -> Rows:
    """All logits of a row are the same number."""
    logits, labels = _normal(rng, (shape[0], 1), 10, 0)[0], rng.integers(shape[1], size=shape[0])
    return np.repeat(logits, shape[1], axis=1), labels


def _masked(rng: np.random.Generator, shape: tuple[int, int]) -> Rows:
    """Half of the classes are masked out, the target is not."""
    logits, labels = _normal(rng, shape, 3, 0)
    masked = rng.random(shape) < 0.5
    masked[np.arange(shape[0]), labels] = False
    logits[masked] = -np.inf
    return logits, labels


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Rows]] = {
    "normal × 3": partial(_normal, scale=3, offset=0),
    "normal × 20": partial(_normal, scale=20, offset=0),
    "confident +25": partial(_confident, lead=25),
    "confident +60": partial(_confident, lead=60),
    "offset 1e4": partial(_normal, scale=3, offset=1e4),
    "offset -1e6": partial(_normal, scale=3, offset=-1e6),
    "uniform": _uniform,
    "half -inf": _masked,
}


# --- errors ---


class Checked(NamedTuple):
    """What one call got wrong."""

    errors: Errors
    n_rows: int
    n_different: int  # rows whose loss has other bits where the gradient is not asked for


class Worst(NamedTuple):
    """The largest of several errors, in ULP, and where it stands."""

    ulp: float
    n_classes: int
    axis: str


@dataclass(frozen=True)
class Finding:
    """The largest errors, by quantity, of rows of one kind (or of all) at one level."""

    dtype: str
    kind: str
    level: str
    worst: dict[str, Worst]
    n_rows: int
    n_different: int

    @property
    def closest(self) -> str:
        """The quantity that comes closest to its bound."""
        return max(self.worst, key=lambda q: self.worst[q].ulp / BOUNDS[self.dtype][q])

    @property
    def share(self) -> float:
        """The largest error as a share of its bound."""
        return self.worst[self.closest].ulp / BOUNDS[self.dtype][self.closest]

    @property
    def met(self) -> bool:
        """Whether all errors are within their bounds, and the loss alone is the same."""
        return self.share <= 1 and not self.n_different

    def __str__(self) -> str:
        ulp, n_classes, axis = self.worst[self.closest]
        return (
            f"{self.dtype}, level {self.level}, {self.kind}, {self.closest}: {_text(ulp)} of "
            f"{BOUNDS[self.dtype][self.closest]} ULP at C = {n_classes}, class axis {axis}"
        )


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """Run the calls inside at one instruction-set level."""
    before = _kernels.kernels
    _kernels.kernels = _kernels.load(level)
    try:
        yield
    finally:
        _kernels.kernels = before


@cache  # the suite and the goal that sums it up are shown by one command
def check(dtype: str, kind: str, n_classes: int, n_threads: int) -> dict[tuple[str, str], Checked]:
    """Hold one batch against its exact result, at every runnable level in every layout."""
    shape = (ELEMENTS // n_classes, n_classes)
    logits, labels = KINDS[kind](np.random.default_rng([n_classes, *kind.encode()]), shape)
    logits = logits.astype(dtype)
    exact = truth(Batch(logits, labels, reduction="none"))
    checked = {}
    for axis, laid_out in AXES.items():
        batch = Batch(laid_out(logits), labels, reduction="none", n_threads=n_threads)
        for level in _kernels.runnable():
            batch.out.fill(np.nan)  # else what a level fails to write is there from the one before
            with at_level(level):
                calls = RIVALS["fastce"].prepare(batch)
                (losses, gradient), alone = calls.loss_and_grad(), calls.loss()
            n_different = int(np.count_nonzero(_bits(alone) != _bits(losses)))
            errors = exact.errors_of(losses, gradient)
            checked[level, axis] = Checked(errors, len(losses), n_different)
    return checked


def _bits(a: np.ndarray) -> np.ndarray:
    return a.view(f"u{a.itemsize}")


def find(
    dtype: str, kind: str, n_threads: int, report: Callable[[str], None] = lambda step: None
) -> list[Finding]:
    """Return the largest errors of a kind of rows over all class counts, level by level."""
    of_level: dict[str, list[Finding]] = {level: [] for level in _kernels.runnable()}
    for n_classes in CLASS_COUNTS:
        report(f"{dtype}, {kind}, C = {n_classes}")
        for (level, axis), (errors, *counts) in check(dtype, kind, n_classes, n_threads).items():
            ulps = {"loss": errors.loss, "gradient": errors.off_target, "target": errors.target}
            worst = {quantity: Worst(ulp, n_classes, axis) for quantity, ulp in ulps.items()}
            of_level[level].append(Finding(dtype, kind, level, worst, *counts))
    return [_together(kind, findings) for findings in of_level.values()]


def _together(kind: str, findings: list[Finding]) -> Finding:
    """Return the worst of several findings that share dtype and level."""
    first = findings[0]
    worst = {q: max(finding.worst[q] for finding in findings) for q in first.worst}
    n_rows = sum(finding.n_rows for finding in findings)
    n_different = sum(finding.n_different for finding in findings)
    return Finding(first.dtype, kind, first.level, worst, n_rows, n_different)


def closest_to_bound(n_threads: int) -> Finding:
    """Return where an error takes the largest share of its bound, over everything."""
    found = (find(dtype, kind, n_threads) for dtype in BOUNDS for kind in KINDS)
    return max((finding for some in found for finding in some), key=lambda finding: finding.share)


# --- what is printed ---


def show_bounds(terminal: Console, n_threads: int) -> None:
    """Print a table of errors for each dtype, then whether all are within their bounds."""
    require_wide_reference()
    terminal.print(_legend())
    findings = [finding for dtype in BOUNDS for finding in _show_dtype(terminal, dtype, n_threads)]
    terminal.print(_verdict(findings))


def require_wide_reference() -> None:
    """Raise `UserError` where the exact results would take hours."""
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant:
        raise UserError(
            "the accuracy suite needs a long double wider than float64, which this platform does "
            "not have; for fewer rows: python -m pytest tests/rows/test_accuracy.py"
        )


def _show_dtype(terminal: Console, dtype: str, n_threads: int) -> list[Finding]:
    """Print one dtype's table, row by row as it is found, and return its findings."""
    columns = [text for name, ulp in BOUNDS[dtype].items() for text in (f"{name} ≤ {ulp}", "at C")]
    table = new_table((f"[bold]{dtype}[/]", "level"), (*columns, "met"))
    table.title_justify = "left"
    findings: list[Finding] = []
    with still_live(terminal, table) as live:

        def report(step: str) -> None:
            table.title = f"checking {step}"  # on top: in sight however long the table grows
            live.refresh()

        for kind in KINDS:
            found = find(dtype, kind, n_threads, report)
            _add_rows(table, found)
            findings += found
        of_level = [[f for f in findings if f.level == level] for level in _kernels.runnable()]
        _add_rows(table, [_together("worst of all", some) for some in of_level])
        table.title = None
        live.refresh()
    terminal.print()
    return findings


def _add_rows(table: Table, findings: list[Finding]) -> None:
    for number, finding in enumerate(findings):
        cells = [finding.kind if number == 0 else "", finding.level]
        for quantity, (ulp, n_classes, axis) in finding.worst.items():
            text = _text(ulp)
            within = ulp <= BOUNDS[finding.dtype][quantity]
            cells += [text if within else f"[bold]{text}[/]", f"{n_classes} {axis}"]
        table.add_row(*cells, "yes" if finding.met else "[bold]no[/]")
    table.add_section()


def _text(ulp: float) -> str:
    return f"{np.ceil(ulp * 100) / 100:.2f}"  # upwards: what is over a bound must look like it


def _legend() -> str:
    counts = ", ".join(map(str, CLASS_COUNTS))
    return (
        f"\n[bold]Errors at every level[/], for C = {counts} classes.\n"
        "loss: per row. gradient: off the target. target: the gradient's element there. Largest "
        "errors in ULP of the\nexact result (fastce.reference, in wide precision; 0.5 is perfect "
        "rounding), rounded up, beside their bounds.\n"
        "at C: the number of classes where that error stands, and the place of the class axis in "
        "memory (last where\nit stands at both).\n"
    )


def _verdict(findings: list[Finding]) -> str:
    n_met = sum(finding.met for finding in findings)
    n_rows = sum(finding.n_rows for finding in findings)
    n_same = n_rows - sum(finding.n_different for finding in findings)
    largest = max(findings, key=lambda finding: finding.share)
    return (
        f"[bold]within the bounds: {n_met} of {len(findings)} lines[/]\n"
        f"largest share of a bound: {largest}\n"
        f"loss alone, the same bits as with the gradient: {n_same:,} of {n_rows:,} rows"
    )
