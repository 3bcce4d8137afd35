"""How far above the minimum a fit's objective is, against its time: tools/million_rows.py measured it."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's
MARKERS = "osD^v"

measured = json.loads(Path("million_rows.json").read_text())  # the plot directive runs this in its folder
least = min(loss for points in measured["curves"].values() for _, loss in points)
figure, axes = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
for (name, points), colour, marker in zip(measured["curves"].items(), COLOURS, MARKERS, strict=False):
    seconds, losses = zip(*points, strict=True)
    above = [max(loss / least - 1, 1e-9) for loss in losses]
    label = name if name in ("fastce", "scikit-learn-intelex") else f"scikit-learn, {name}"
    axes.plot(seconds, above, f"{marker}-", color=colour, label=label)
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlabel("processor seconds of a fit, of all its threads together")
axes.set_ylabel("objective above the least one,\nby it (1e-9: at it)")
n_rows, n_features, n_classes = measured["shape"]
axes.set_title(
    f"{n_rows:,} rows, {n_features} features, {n_classes} classes, float32; {measured['processor']}",
    loc="left",
    fontsize=10,
)
axes.grid(color="0.92")
axes.set_axisbelow(True)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
