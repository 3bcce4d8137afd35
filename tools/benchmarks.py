"""Write the README's table and plot, and the tables of docs/benchmarks.md, from the runs in docs/benchmarks.

    python tools/benchmarks.py [--check]

A run is a file that `python -m fastce bench --dtype float32 --json docs/benchmarks/PROCESSOR.json` wrote on
some machine. The README shows the one that README_RUN names. `--check` writes nothing and fails where a page
does not show what its file has.
"""

import argparse
import io
import re
import sys
from pathlib import Path

from rich.console import Console

from fastce.cli.common import PIPE_WIDTH, three_digits, time_text
from fastce.cli.measure import STREAM
from fastce.cli.report import Run

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "docs" / "benchmarks"
README_RUN = "amd-epyc-zen3.json"
COMMAND = "python -m fastce bench --dtype float32"


def printed(run: Run) -> str:
    """What `bench` prints of it into a pipe."""
    text = io.StringIO()
    run.show(Console(file=text, width=PIPE_WIDTH, highlight=False))
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def section(name: str, run: Run) -> str:
    """A heading and a table for the page of all machines."""
    numbers = run.versions | {"numpy": ""}  # which is NumPy, as a rival
    versions = ", ".join(f"{library} {number}" for library, number in numbers.items() if number)
    lines = [
        f"## {run.processor}, {run.threads} threads, level {run.level}",
        "",
        f"{run.date}, best of {run.rounds} rounds; {versions}. The fastest other library takes",
        f"{three_digits(run.mean_of_best())} times fastce's time in the geometric mean of these cases.",
        f"All times: {{download}}`benchmarks/{name}`.",
        "",
        "| shape | quantity | fastce | GB/s | of copy | fastest other | takes |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for case in run.cases:
        best = min(case.peers, key=case.peers.get)
        lines.append(
            f"| {case.name.replace('x', '×')} {case.dtype} | {case.quantity} | {time_text(case.fastce)} "
            f"| {three_digits(case.gigabytes_per_second)} | {case.seconds[STREAM] / case.fastce:.0%} "
            f"| {best} | {three_digits(case.best_peer)}× |"
        )
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """The text that each page should have."""
    readme = ROOT / "README.md"
    table = f"```text\n{printed(Run.read(RUNS / README_RUN))}\n```"
    text, count = re.subn(r"```text\nfastce .*?\n```", lambda _: table, readme.read_text(), flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{readme} has {count} tables of a run; expected one")
    page = ROOT / "docs" / "benchmarks.md"
    head = page.read_text().partition("<!-- runs -->")[0]
    runs = [section(path.name, Run.read(path)) for path in sorted(RUNS.glob("*.json"))]
    return {readme: text, page: head + "<!-- runs -->\n\n" + "\n\n".join(runs) + "\n"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a page is not what it should be")
    check = parser.parse_args().check
    run = Run.read(RUNS / README_RUN)
    stale = {path: text for path, text in pages().items() if path.read_text() != text}
    for path, text in stale.items():
        if not check:
            path.write_text(text)
        verdict = "is not what its run says: python tools/benchmarks.py" if check else "written"
        print(f"{path.relative_to(ROOT)} {verdict}")
    if not check:
        from fastce.cli.plot import draw  # needs Matplotlib

        draw(run.cases, ROOT / "docs" / "benchmark.png", f"{COMMAND}     {run.processor}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
