"""What the commands share: errors for the user, optional dependencies, the console, units."""

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

PICTURES = (".png", ".pdf", ".svg")  # files that are drawn
PIPE_WIDTH = 140  # wide enough that no table is truncated where the output is not a terminal


class UserError(Exception):
    """Something that the user can put right; shown as one line, without a traceback."""


def require(extra: str, *modules: str) -> None:
    """Raise `UserError` with the command that installs what is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"needs {', '.join(missing)}: run  pip install 'fastce[{extra}]'")


def wanted(option: str, name: str | None, endings: Iterable[str]) -> Path | None:
    """A file to be written at the end, if any: what can be wrong with it is said before the work."""
    if not name:
        return None
    path = Path(name)
    if path.suffix not in endings:
        raise UserError(f"{option} is {name}; expected a file ending in {', '.join(endings)}")
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{option} is {name}; expected a file in a folder that can be written to")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{option} is {name}, which is read-only; expected a file that can be written to")
    return path


def check_only(only: str, names: list[str]) -> None:
    """Raise `UserError` where the text of ``--only`` is in no name."""
    if not any(only in name for name in names):
        raise UserError(f"--only is {only}; expected a part of one of: {'; '.join(dict.fromkeys(names))}")


def console() -> "Console":
    """Return a console for stdout: the terminal's width, or `PIPE_WIDTH` in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def new_table(texts: Iterable[str], numbers: Iterable[str]) -> "Table":
    """Return a table of text columns and then number columns; narrow terminals fold, not cut."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, overflow="fold", justify="right")
    return table


def still_live(terminal: "Console", table: "Table") -> "Live":
    """Return a live view of a table that grows while clocks run.

    It is redrawn only when its ``refresh`` is called: a refreshing thread would disturb the clocks.
    In a pipe the table is printed once, at the end.
    """
    from rich.live import Live

    return Live(table, console=terminal, auto_refresh=False)


def time_text(seconds: float) -> str:
    """Return seconds with three digits and a unit, such as ``4.31 ms``."""
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    unit, name = next((u for u in units if seconds >= 0.9995 * u[0]), (1e-9, "ns"))
    return f"{three_digits(seconds / unit)} {name}"


def three_digits(value: float) -> str:
    """Return a positive number with three significant digits, large ones in full."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
