"""The plot of scored tokens: losses, the perplexity as it settles, reliability of the top probability."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's
BINS = 15


def draw(logprob: np.ndarray, rank: np.ndarray, top_logprob: np.ndarray, path: Path, caption: str) -> None:
    """Write a picture of three panels.

    Parameters
    ----------
    logprob, rank : ndarray
        Of each token.
    top_logprob : ndarray
        That of the most probable token in its place.
    path : Path
        The picture's file; its last suffix is the format.
    caption : str
        Small print below the panels.
    """
    figure, (losses, running, reliability) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    loss = -logprob.astype(np.float64)
    _draw_losses(losses, loss[np.isfinite(loss)])
    _draw_running(running, loss)
    _draw_reliability(reliability, np.exp(top_logprob.astype(np.float64)), rank == 1)
    for axes in (losses, running, reliability):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, -0.01, caption, fontsize=8.5, color="0.35", family="monospace", va="top")
    try:
        figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")
    finally:
        plt.close(figure)


def _draw_losses(axes: plt.Axes, loss: np.ndarray) -> None:
    axes.hist(loss, bins=60, color=BLUE)
    if loss.size:
        axes.axvline(loss.mean(), color=ORANGE, label=f"mean {loss.mean():.3f}")
        axes.axvline(np.median(loss), color="black", linestyle=":", label=f"median {np.median(loss):.3f}")
        axes.legend(frameon=False)
    axes.set_title("losses of the tokens", loc="left", fontweight="bold")
    axes.set_xlabel("-log p (nats)")
    axes.set_ylabel("tokens")


def _draw_running(axes: plt.Axes, loss: np.ndarray) -> None:
    n = np.arange(1, loss.size + 1)
    mean = np.cumsum(loss) / n
    with np.errstate(invalid="ignore"):  # from an infinite loss on there is no error
        error = np.sqrt(np.maximum(np.cumsum(loss**2) / n - mean**2, 0) / np.maximum(n - 1, 1))
    shown = np.unique(np.geomspace(min(10, loss.size), loss.size, 400).astype(int)) - 1
    with np.errstate(over="ignore"):
        middle, low, high = (np.exp(a[shown]) for a in (mean, mean - error, mean + error))
    axes.fill_between(shown + 1, low, high, color=BLUE, alpha=0.2, linewidth=0, label="± standard error")
    axes.plot(shown + 1, middle, color=BLUE, label=f"perplexity {middle[-1]:.3f}")
    axes.set_xscale("log")
    axes.legend(frameon=False)
    axes.set_title("running perplexity", loc="left", fontweight="bold")
    axes.set_xlabel("tokens so far")


def _draw_reliability(axes: plt.Axes, confidence: np.ndarray, right: np.ndarray) -> None:
    use = np.isfinite(confidence)
    confidence, right = confidence[use], right[use]
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bins closed on the right
    count = np.bincount(which, minlength=BINS)
    some = count > 0
    sure, accuracy = (
        np.bincount(which, weights=a, minlength=BINS)[some] / count[some] for a in (confidence, right)
    )
    error = float((count[some] * abs(sure - accuracy)).sum() / max(count.sum(), 1))
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    axes.plot(sure, accuracy, color=BLUE)
    axes.scatter(sure, accuracy, s=15 + 250 * count[some] / count.max(), color=BLUE, alpha=0.7, linewidth=0)
    axes.set_title("reliability of the top probability", loc="left", fontweight="bold")
    axes.set_xlabel("probability of the most probable token")
    axes.set_ylabel("how often it came")
    axes.text(0.03, 0.95, f"calibration error {error:.3f}", transform=axes.transAxes, va="top")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
