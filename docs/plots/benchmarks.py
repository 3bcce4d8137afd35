"""The fastest other library's time as a multiple of fastce's, over shapes: one mark for each processor."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from fastce.cli.report import Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
MARKERS = "osD^vP"

# The plot directive runs this in the folder of the file.
runs = [Run.read(path) for path in sorted(Path("../benchmarks").glob("*.json"))]
quantities = list(dict.fromkeys(case.quantity for run in runs for case in run.cases))
figure, panels = plt.subplots(1, len(quantities), figsize=(10, 4.6), layout="constrained", sharey=True)
for quantity, axes in zip(quantities, panels, strict=True):
    for run, colour, marker in zip(runs, COLOURS, MARKERS, strict=False):
        cases = [case for case in run.cases if case.quantity == quantity]
        names = [case.name.replace("x", "×") for case in cases]
        label = f"{run.processor}, {run.threads} threads, {run.level}"
        axes.plot([case.best_peer for case in cases], names, marker, color=colour, markersize=7, label=label)
    axes.axvline(1, color="black", linewidth=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter("")
    axes.set_title(quantity, loc="left", fontsize=11)
    axes.set_xlabel("fastest other library's time by fastce's")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
panels[0].invert_yaxis()
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
