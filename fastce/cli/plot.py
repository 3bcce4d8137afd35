"""The plot of a benchmark run: every library's time as a multiple of fastce's."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from fastce.cli.measure import GRAD, STREAM, Case

# Okabe and Ito's colours, told apart by every reader; a shape of its own for each as well.
STYLES = {
    "numpy": ("#999999", "s"),
    "scipy": ("#56B4E9", "D"),
    "scikit-learn": ("#E69F00", "^"),
    "torch": ("#D55E00", "o"),
    "jax": ("#CC79A7", "v"),
    "numba": ("#009E73", "P"),
}


def draw(cases: list[Case], path: Path, caption: str) -> None:
    """Write a picture with a panel per quantity and dtype.

    Parameters
    ----------
    cases : list of Case
        What `fastce.cli.measure.measure` returned.
    path : Path
        The picture's file; its suffix is the format.
    caption : str
        Small print below the panels: the command and the machine.
    """
    quantities = list(dict.fromkeys(case.quantity for case in cases))
    dtypes = list(dict.fromkeys(case.dtype for case in cases))
    names = list(dict.fromkeys(case.name for case in cases))
    figure, panels = plt.subplots(
        len(dtypes),
        len(quantities),
        figsize=(12, 1.6 + len(dtypes) * (1.0 + 0.38 * len(names))),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for dtype, row in zip(dtypes, panels, strict=True):
        for quantity, axes in zip(quantities, row, strict=True):
            some = [case for case in cases if (case.dtype, case.quantity) == (dtype, quantity)]
            _draw_panel(axes, some)
            title = "loss + gradient, out given" if quantity == GRAD else quantity
            axes.set_title(f"{title}, {dtype}", loc="left", fontsize=12, fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("time as a multiple of fastce's (log scale; further right is slower)")
    for axes in panels[:, 0]:
        axes.set_ylabel("rows × classes")
    handles = {h.get_label(): h for h in panels[0, 0].lines if not h.get_label().startswith("_")}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=8, frameon=False)
    figure.text(0.01, -0.01, caption, fontsize=8.5, color="0.35", family="monospace", va="top")
    try:
        figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")
    finally:
        plt.close(figure)


def _draw_panel(axes: plt.Axes, cases: list[Case]) -> None:
    heights = range(len(cases))
    axes.axvline(1, color="black", linewidth=2, label="fastce")
    for name, (colour, marker) in STYLES.items():
        points = [
            (c.peers[name], y) for y, c in zip(heights, cases, strict=True) if name in c.peers
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, color=colour, markersize=8, markeredgecolor="white", label=name)
    stream = [case.seconds[STREAM] / case.fastce for case in cases]
    axes.plot(stream, heights, "|", color="black", markersize=14, label="copy (loss: read)")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.set_yticks(heights, [case.name.replace("x", "×") for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.grid(axis="x", which="major", color="0.88")
    axes.grid(axis="y", color="0.94")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
