"""``python -m fastce bench``: time against a copy and other libraries, errors against bounds."""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

import fastce
from fastce.cli.boosting import show_boosting
from fastce.cli.bounds import show_bounds
from fastce.cli.common import PICTURES, UserError, console, require, still_live, wanted
from fastce.cli.goals import show_goals
from fastce.cli.machine import busy_cpus
from fastce.cli.measure import measure, random_batch
from fastce.cli.report import CAPTION, Run
from fastce.cli.rivals import RIVALS

SHAPES = (
    *("1x10", "32x10", "256x1000", "1000000x2", "1000000x3", "1000000x10"),
    *("300000x32", "65536x100", "8192x1000", "1024x32000", "256x128256", "128x262144"),
)
QUICK_SHAPES = ("1x10", "32x10", "256x1000", "100000x3", "100000x10", "2048x1000", "128x32000")

BUSY = 0.1  # CPUs used by others, from which on a run warns


def run(args: argparse.Namespace) -> None:
    """Run the suites that the command line asks for."""
    if wanted("--plot", args.plot, PICTURES):
        require("bench", "matplotlib")
    wanted("--json", args.json, (".json",))
    shapes = [_shape(text) for text in args.shapes or (QUICK_SHAPES if args.quick else SHAPES)]
    dtypes = args.dtype or ["float32"]
    for dtype in dtypes:
        if dtype not in ("float32", "float64"):
            raise UserError(f"--dtype takes float32 and float64, not {dtype!r}")
    rivals = _chosen(args.rivals)
    rounds = args.rounds or (3 if args.quick else 10)
    n_threads = args.threads or fastce.get_num_threads()
    terminal = console()
    run = Run.of_now(rivals, rounds, n_threads)
    run.show_machine(terminal)
    if args.suite not in ("accuracy", "boosting", "estimators"):
        run.show_setting(terminal)
        _warn(terminal)
    if args.suite in ("peers", "all"):
        _run_peers(terminal, shapes, dtypes, run)
        run.show_summary(terminal)
        _write(args, run)
    if args.suite in ("goals", "all"):
        show_goals(terminal, rivals, rounds, n_threads)
    if args.suite in ("accuracy", "all"):
        show_bounds(terminal, n_threads)
    if args.suite == "boosting":
        show_boosting(terminal, rounds, n_threads)
    if args.suite == "estimators":
        from fastce.cli.estimators import show_estimators

        show_estimators(terminal, args.rounds or 3, n_threads, args.only, args.quick)
    if args.suite == "torch":
        require("torch", "torch")
        from fastce.cli.torch_steps import show_torch

        show_torch(terminal, rounds, n_threads, args.only)


def _shape(text: str) -> tuple[int, int]:
    try:
        rows, classes = map(int, text.split("x"))
        if rows < 1 or classes < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"a shape reads like 8192x1000 (rows x classes), not {text!r}") from None
    return rows, classes


def _chosen(names: list[str] | None) -> list[str]:
    """Return the rivals to measure: by default all that are installed."""
    if names == ["none"]:
        return []
    known = [name for name in RIVALS if name != "fastce"]
    for name in names or ():
        if name not in known:
            raise UserError(f"no rival {name!r}: choose from {', '.join(known)}, or none")
        require("bench,torch", RIVALS[name].module)
    return names or [name for name in known if RIVALS[name].installed]


def _warn(terminal: Console) -> None:
    missing = [rival.name for rival in RIVALS.values() if not rival.installed]
    if missing:
        terminal.print(f"not installed: {', '.join(missing)}  (pip install 'fastce\\[bench,torch]')\n")
    if (busy := busy_cpus()) > BUSY:
        terminal.print(
            f"[bold]Warning:[/] other processes keep {busy:.1f} CPUs busy. Every figure below "
            "suffers, most of all those of libraries whose threads wait for each other.\n"
        )


def _run_peers(terminal: Console, shapes: list[tuple[int, int]], dtypes: list[str], run: Run) -> None:
    """Measure, and add the cases to the run."""
    table = run.new_table()
    with still_live(terminal, table) as live:
        for shape in shapes:
            for dtype in dtypes:
                table.caption = f"measuring {shape[0]}x{shape[1]} {dtype}"
                live.refresh()
                batch = random_batch(shape, dtype, run.threads)
                for case in measure(batch, run.rivals, run.rounds, terminal.print):
                    run.cases.append(case)
                    table.add_row(*run.cells(case))
        table.caption = CAPTION
        live.refresh()


def _write(args: argparse.Namespace, run: Run) -> None:
    if args.json:
        run.write(Path(args.json))
    if args.plot:
        from fastce.cli.plot import draw

        command = shlex.join(["python", "-m", "fastce", *sys.argv[1:]])
        draw(run.cases, Path(args.plot), f"{command}     {run.processor}")
