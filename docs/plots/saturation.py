"""Gradients of cross-entropy and of squared error as a sigmoid saturates on the wrong and the right side."""

import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's colours, told apart by every reader.
BLUE, ORANGE = "#0072B2", "#D55E00"

x = np.linspace(-12, 12, 481)
p, miss = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))  # miss = 1 - p, without the cancellation
curves = {
    "cross-entropy: $1 - p$": (miss, BLUE),
    "squared error: $2\\,(1 - p)\\,p\\,(1 - p)$": (2 * miss * p * miss, ORANGE),
}

figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
for axes, scale in zip(panels, ("linear", "log"), strict=True):
    for label, (size, colour) in curves.items():
        axes.plot(x, size, color=colour, linewidth=2.2, label=label)
    axes.set_yscale(scale)
    axes.set_title(f"{scale} scale", loc="left", fontsize=11)
    axes.set_xlabel("logit $x$ of an example of the positive class")
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("size of the gradient by $x$")
panels[0].annotate("sure and wrong:\nlearns at full speed", (-11.8, 0.93), va="top", color=BLUE)
panels[0].annotate("sure and wrong:\nhardly learns", (-11.8, 0.05), color=ORANGE)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
