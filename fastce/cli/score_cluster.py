"""``python -m fastce score --scheduler``: many files of logits, a task of a dask cluster for each."""

import argparse
import time
from typing import Any

from fastce.cli import score
from fastce.cli.common import UserError, require


def run(args: argparse.Namespace) -> None:
    """Score pairs of files where the workers are, which see the same folders, and print what came of it."""
    require("dask", "distributed")
    from distributed import Client

    for name in ("hidden", "head", "bias", "output", "plot", "threads"):
        if getattr(args, name):
            raise UserError(
                f"--{name} is given with --scheduler; expected LOGITS and TOKENS of each task alone"
            )
    if not args.files or len(args.files) % 2:
        raise UserError(f"{len(args.files)} files given; expected LOGITS and TOKENS of each task in turn")
    options = vars(args) | {"scheduler": None, "threads": 1}
    pairs = zip(args.files[::2], args.files[1::2], strict=True)
    tasks = [argparse.Namespace(**options | {"files": list(pair)}) for pair in pairs]
    totals, n_read, start = score.Totals(), 0, time.perf_counter()
    try:
        client = Client(args.scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"no scheduler at {args.scheduler}: {error}") from None
    with client:
        for of_files, n_bytes in client.gather(client.map(totals_of, tasks, pure=False)):
            totals.merge(of_files)  # in the order of the files, wherever they were scored
            n_read += n_bytes
    seconds = time.perf_counter() - start
    lines = [("tasks", f"{len(tasks):,}"), *totals.lines(args.bytes)]
    score.print_summary(lines, n_read, seconds)


def totals_of(args: Any) -> tuple[score.Totals, int]:
    """Of one pair of files, and the bytes of its logits; what a worker does."""
    source, head, bias, tokens = score._arrays(args)
    totals = score.Totals()
    for _, _, of_block in score._scores(args, source, head, bias, tokens):
        totals.merge(of_block)
    return totals, source.nbytes
