"""``python -m fastce demo``: train on real data, then compare digits and time."""

import argparse
from collections.abc import Iterator
from time import perf_counter

import numpy as np
from rich.console import Console

import fastce
from fastce.cli.accuracy import Truth, truth
from fastce.cli.arrays import load_batch
from fastce.cli.common import console, new_table, three_digits, time_text
from fastce.cli.rivals import RIVALS, Batch
from fastce.cli.timing import interleaved

PENALTY = 100  # scikit-learn's C: the larger, the surer the model
CONFIDENT = 0.01  # a loss below which the usual formula visibly loses digits
COMPARED = ("fastce", "scipy", "numpy")


def run(args: argparse.Namespace) -> None:
    """Train and compare, or compare on the user's arrays."""
    terminal = console()
    n_threads = args.threads or fastce.get_num_threads()
    if args.files:
        logits, labels = load_batch(args.files, terminal.print)
        every_dtype = [logits]
    else:
        logits, labels = _train(terminal)
        every_dtype = [logits, logits.astype(np.float64)]
    batches = [Batch(logits, labels, n_threads=n_threads) for logits in every_dtype]
    # The rivals' warnings (overflow, nan) belong to the user's logits, not to this table.
    with np.errstate(all="ignore"):
        _compare(terminal, batches, args.rounds)


def _train(terminal: Console) -> tuple[np.ndarray, np.ndarray]:
    """Fit a softmax regression to handwritten digits and return the training set's logits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from fastce.sklearn import LogisticRegression

    pixels, digits = load_digits(return_X_y=True)
    x, x_held_out, y, y_held_out = train_test_split(
        (pixels / 16).astype(np.float32), digits, test_size=0.2, random_state=0, stratify=digits
    )
    terminal.print(
        f"[bold]1. Training[/] a softmax regression: {len(x)} handwritten digits of 8x8 pixels, "
        f"10 classes, float32.\n   fastce.sklearn.LogisticRegression(C={PENALTY:g}).fit(pixels, digits)"
    )
    model = LogisticRegression(C=PENALTY)
    begin = perf_counter()
    model.fit(x, y)
    seconds = perf_counter() - begin
    right = model.score(x_held_out, y_held_out)
    terminal.print(
        f"   {model.n_iter_[0]} iterations in {time_text(seconds)}\n\n"
        f"   Accuracy on {len(x_held_out)} digits held out: [bold]{right:.1%}[/]\n\n"
        "[bold]2. The same loss and gradient by three libraries[/], for the logits just trained."
    )
    return model.decision_function(x), y


def _compare(terminal: Console, batches: list[Batch], rounds: int) -> None:
    """Print time and errors of every compared library; batches differ in dtype alone."""
    rows, classes = batches[0].logits.shape
    terminal.print(f"\n{rows} rows x {classes} classes, threads: {batches[0].n_threads}")
    table = new_table(
        ("dtype", "library"),
        ("loss", "", "loss + gradient", "", "loss off by", "gradient off by"),
    )
    truths = [truth(batch) for batch in batches]
    for batch, exact in zip(batches, truths, strict=True):
        for cells in _rows(batch, exact, rounds):
            table.add_row(*cells)
        table.add_section()
    terminal.print(table)
    terminal.print(_legend(truths[0], rows, rounds))
    if truths[0].losses[truths[0].surest] < CONFIDENT:
        terminal.print(_surest(truths[0]))


def _rows(batch: Batch, exact: Truth, rounds: int) -> Iterator[tuple[str, ...]]:
    """Measure one batch and yield a table row for each library."""
    prepared = {name: RIVALS[name].prepare(batch) for name in COMPARED}
    losses = interleaved({name: calls.loss for name, calls in prepared.items()}, rounds)
    gradients = interleaved({name: calls.loss_and_grad for name, calls in prepared.items()}, rounds)
    for name in COMPARED:
        errors = exact.errors(name)
        yield (
            str(batch.logits.dtype),
            f"[bold]{name}[/]" if name == "fastce" else name,
            time_text(losses[name]),
            f"{three_digits(losses[name] / losses['fastce'])}x",
            time_text(gradients[name]),
            f"{three_digits(gradients[name] / gradients['fastce'])}x",
            _ulp(errors.loss),
            _ulp(errors.gradient),
        )


def _ulp(error: float) -> str:
    return f"{error:.2f} ULP" if error < 1000 else f"{error:.1e} ULP"


def _legend(exact: Truth, n_rows: int, rounds: int) -> str:
    n_checked = len(exact.losses)
    which = "every row" if n_checked == n_rows else f"{n_checked} of {n_rows} rows, evenly chosen"
    return (
        f"time: of the mean loss (and its gradient, into a given array), best of {rounds} "
        "interleaved rounds.\n"
        f"off by: the largest error over {which}, of the loss per row and of every gradient "
        "element, against\n   fastce.reference in wide precision. 1 ULP is the gap between two "
        "neighbouring floats: 0.5 is perfect rounding."
    )


def _surest(exact: Truth) -> str:
    row = exact.surest
    logits = exact.batch.logits[row].astype(np.float64)
    label = exact.batch.labels[row]
    lead = logits[label] - np.delete(logits, label).max(initial=-np.inf)
    given = ", ".join(f"{name} {exact.errors(name).surest_loss:.7g}" for name in COMPARED)
    return (
        f"Where digits go ({exact.batch.logits.dtype}): in the row with the smallest loss the "
        f"right class leads by {lead:.1f}.\n"
        f"   Its loss is {float(exact.losses[row]):.7g}; {given}.\n"
        "   The usual formula subtracts two nearly equal numbers there; fastce never does.\n"
    )
