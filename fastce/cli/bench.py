"""``python -m fastce bench``: time against a copy and other libraries, errors against bounds."""

import argparse
import json
import math
import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

import fastce
from fastce.cli.boosting import show_boosting
from fastce.cli.bounds import show_bounds
from fastce.cli.common import (
    UserError,
    console,
    new_table,
    require,
    still_live,
    three_digits,
    time_text,
)
from fastce.cli.goals import show_goals
from fastce.cli.machine import busy_cpus, cpu_name
from fastce.cli.measure import STREAM, Case, measure, random_batch
from fastce.cli.rivals import RIVALS

SHAPES = (
    *("1x10", "32x10", "256x1000", "1000000x2", "1000000x3", "1000000x10"),
    *("300000x32", "65536x100", "8192x1000", "1024x32000", "256x128256", "128x262144"),
)
QUICK_SHAPES = ("1x10", "32x10", "256x1000", "100000x3", "100000x10", "2048x1000", "128x32000")

BUSY = 0.1  # CPUs used by others, from which on a run warns


def run(args: argparse.Namespace) -> None:
    """Run the suites that the command line asks for."""
    if args.plot:
        require("bench", "matplotlib")
    shapes = [_shape(text) for text in args.shapes or (QUICK_SHAPES if args.quick else SHAPES)]
    for dtype in args.dtype:
        if dtype not in ("float32", "float64"):
            raise UserError(f"--dtype takes float32 and float64, not {dtype!r}")
    rivals = _chosen(args.rivals)
    rounds = args.rounds or (3 if args.quick else 10)
    n_threads = args.threads or fastce.get_num_threads()
    terminal = console()
    _show_machine(terminal, n_threads)
    if args.suite not in ("accuracy", "boosting"):
        _show_setting(terminal, rivals, rounds)
    if args.suite in ("peers", "all"):
        cases = _run_peers(terminal, shapes, args.dtype, rivals, rounds, n_threads)
        _show_summary(terminal, cases)
        _write(args, cases)
    if args.suite in ("goals", "all"):
        show_goals(terminal, rivals, rounds, n_threads)
    if args.suite in ("accuracy", "all"):
        show_bounds(terminal, n_threads)
    if args.suite == "boosting":
        show_boosting(terminal, rounds, n_threads)


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
        require("bench", RIVALS[name].module)
    return names or [name for name in known if RIVALS[name].installed]


def _show_machine(terminal: Console, n_threads: int) -> None:
    level = fastce.show_config(mode="dict")["level"]
    terminal.print(
        f"[bold]fastce[/] at level {level}, threads: {n_threads}, {cpu_name()}, "
        f"Python {platform.python_version()}"
    )


def _show_setting(terminal: Console, rivals: list[str], rounds: int) -> None:
    versions = [f"{name} {RIVALS[name].version}" for name in rivals]
    missing = [rival.name for rival in RIVALS.values() if not rival.installed]
    terminal.print(f"against {', '.join(versions) or 'a copy only'} (NumPy {np.__version__})")
    if missing:
        terminal.print(f"not installed: {', '.join(missing)}  (pip install 'fastce\\[bench]')")
    terminal.print(f"best of {rounds} interleaved rounds, one process, one timing at a time\n")
    if (busy := busy_cpus()) > BUSY:
        terminal.print(
            f"[bold]Warning:[/] other processes keep {busy:.1f} CPUs busy. Every figure below "
            "suffers, most of all those of libraries whose threads wait for each other.\n"
        )


def _run_peers(
    terminal: Console,
    shapes: list[tuple[int, int]],
    dtypes: list[str],
    rivals: list[str],
    rounds: int,
    n_threads: int,
) -> list[Case]:
    table = new_table(("shape", "dtype", "quantity"), ("fastce", "GB/s", "of copy", *rivals))
    cases: list[Case] = []
    with still_live(terminal, table) as live:
        for shape in shapes:
            for dtype in dtypes:
                table.caption = f"measuring {shape[0]}x{shape[1]} {dtype}"
                live.refresh()
                batch = random_batch(shape, dtype, n_threads)
                for case in measure(batch, rivals, rounds, terminal.print):
                    cases.append(case)
                    table.add_row(*_cells(case, rivals))
            table.add_section()
        table.caption = (
            "GB/s: logits read + gradient written. of copy: share of the speed at which as many "
            "threads copy (loss alone: read) the same bytes.\n"
            "Right of it: how many times fastce's time a library takes; the fastest one in bold."
        )
        live.refresh()
    return cases


def _cells(case: Case, rivals: list[str]) -> list[str]:
    share = case.seconds[STREAM] / case.fastce
    cells = [case.name, case.dtype, case.quantity, time_text(case.fastce)]
    cells += [three_digits(case.gigabytes_per_second), f"{share:.0%}"]
    for name in rivals:
        if name not in case.peers:
            cells.append("-")
            continue
        text = f"{three_digits(case.peers[name])}x"
        cells.append(f"[bold]{text}[/]" if case.peers[name] == case.best_peer else text)
    return cells


def _show_summary(terminal: Console, cases: list[Case]) -> None:
    if not cases[0].peers:
        return
    ratios = [case.best_peer for case in cases]
    worst = min(cases, key=lambda case: case.best_peer)
    name = min(worst.peers, key=worst.peers.get)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    terminal.print(
        f"\n[bold]best other library ÷ fastce: geometric mean {three_digits(mean)}, minimum "
        f"{three_digits(worst.best_peer)}[/] ({worst.name} {worst.dtype} {worst.quantity}: {name})"
    )


def _write(args: argparse.Namespace, cases: list[Case]) -> None:
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    if args.plot:
        from fastce.cli.plot import draw

        command = shlex.join(["python", "-m", "fastce", *sys.argv[1:]])
        draw(cases, Path(args.plot), f"{command}     {cpu_name()}")
