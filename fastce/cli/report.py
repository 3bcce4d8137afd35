"""What a run of the peers suite found, and on what: kept in a file, shown as a table."""

import json
import math
import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import fastce
from fastce.cli.common import new_table, three_digits, time_text
from fastce.cli.machine import cpu_name
from fastce.cli.measure import STREAM, Case
from fastce.cli.rivals import RIVALS

CAPTION = (
    "GB/s: logits read + gradient written. of copy: share of the speed at which as many "
    "threads copy (loss alone: read) the same bytes.\n"
    "Right of it: how many times fastce's time a library takes."
)


@dataclass(frozen=True)
class Run:
    """The times of a run, with the machine, the versions and the day."""

    processor: str
    level: str
    threads: int
    rounds: int
    date: str
    versions: dict[str, str]
    cases: list[Case]

    @classmethod
    def of_now(cls, rivals: list[str], rounds: int, n_threads: int) -> "Run":
        """A run on this machine that has no times yet."""
        own = {"fastce": fastce.__version__, "Python": platform.python_version(), "NumPy": np.__version__}
        versions = own | {name: RIVALS[name].version for name in rivals}
        level = fastce.show_config(mode="dict")["level"]
        return cls(cpu_name(), level, n_threads, rounds, date.today().isoformat(), versions, [])

    @classmethod
    def read(cls, path: Path) -> "Run":
        """The run that `write` kept in a file."""
        found = json.loads(path.read_text(encoding="utf-8"))
        cases = [Case(**{**case, "shape": tuple(case["shape"])}) for case in found.pop("cases")]
        return cls(cases=cases, **found)

    def write(self, path: Path) -> None:
        """Keep everything in a file of JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def rivals(self) -> list[str]:
        """The other libraries, in the order of their columns."""
        return [name for name in self.versions if name not in ("fastce", "Python", "NumPy")]

    def show_machine(self, terminal: Console) -> None:
        """Print what it ran on."""
        terminal.print(
            f"[bold]fastce[/] {self.versions['fastce']} at level {self.level}, threads: {self.threads}, "
            f"{self.processor}, Python {self.versions['Python']}, {self.date}"
        )

    def show_setting(self, terminal: Console) -> None:
        """Print what was compared, and how."""
        others = ", ".join(f"{name} {self.versions[name]}" for name in self.rivals)
        terminal.print(f"against {others or 'a copy only'} (NumPy {self.versions['NumPy']})")
        terminal.print(f"best of {self.rounds} interleaved rounds, one process, one timing at a time\n")

    def new_table(self) -> Table:
        """The table without rows."""
        return new_table(("shape", "dtype", "quantity"), ("fastce", "GB/s", "of copy", *self.rivals))

    def cells(self, case: Case) -> list[str]:
        """A row of the table."""
        share = case.seconds[STREAM] / case.fastce
        cells = [case.name, case.dtype, case.quantity, time_text(case.fastce)]
        cells += [three_digits(case.gigabytes_per_second), f"{share:.0%}"]
        for name in self.rivals:
            if name not in case.peers:
                cells.append("-")
                continue
            text = f"{three_digits(case.peers[name])}x"
            cells.append(f"[bold]{text}[/]" if case.peers[name] == case.best_peer else text)
        return cells

    def show_summary(self, terminal: Console) -> None:
        """Print how far the fastest of the others is away."""
        if not self.cases[0].peers:
            return
        worst = min(self.cases, key=lambda case: case.best_peer)
        name = min(worst.peers, key=worst.peers.get)
        terminal.print(
            f"\n[bold]best other library ÷ fastce: geometric mean {three_digits(self.mean_of_best())}, "
            f"minimum {three_digits(worst.best_peer)}[/] "
            f"({worst.name} {worst.dtype} {worst.quantity}: {name})"
        )

    def mean_of_best(self) -> float:
        """The geometric mean, over the cases, of the fastest other library's time by fastce's."""
        return math.exp(sum(math.log(case.best_peer) for case in self.cases) / len(self.cases))

    def show(self, terminal: Console) -> None:
        """Print all of it."""
        self.show_machine(terminal)
        self.show_setting(terminal)
        table = self.new_table()
        for case in self.cases:
            table.add_row(*self.cells(case))
        table.caption = CAPTION
        terminal.print(table)
        self.show_summary(terminal)
