"""
The last digits: how wrong losses are where a model is sure
===========================================================

The surer a model is, the smaller its loss, and the fewer digits of it survive the usual formula
``logsumexp(x) - x[y]``: the logarithm is close to the logit that is taken from it. Trained models are sure of
most of their rows, and from their losses come perplexities, sums over long sequences, and what is distilled
or filtered. This compares losses and gradients in float32 with the exact ones. PyTorch and JAX need not be
installed for it: what they compute on a CPU is a log-softmax and a softmax, written out in NumPy here.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import logsumexp, softmax

import fastce

margins = np.linspace(0, 40, 400)
logits = np.zeros((len(margins), 10), np.float32)
logits[:, 0] = margins
labels = np.zeros(len(margins), int)
rows = np.arange(len(margins))

# %%
# The exact loss: the same logits in float64, with the label's term left out of the sum.

wide = logits.astype(np.float64)
rest = np.exp(wide[:, 1:] - wide[:, :1]).sum(1)
exact = np.log1p(rest)


def shifted(x):
    z = x - x.max(1, keepdims=True)
    return z, np.exp(z)


def naive(x):
    _, e = shifted(x)
    return -np.log(e[rows, labels] / e.sum(1))


def frameworks(x):
    """-(z - log(sum(exp(z))))[y], z = x - max(x), of F.cross_entropy and jax.nn.log_softmax."""
    z, e = shifted(x)
    return np.log(e.sum(1)) - z[rows, labels]


loss, gradient = fastce.cross_entropy_and_grad(logits, labels, reduction="none")
formulas = {
    "-log of the softmax": (naive(logits), "#999999", "s"),
    "SciPy's logsumexp": (logsumexp(logits, axis=1) - logits[:, 0], "#56B4E9", "D"),
    "PyTorch's, JAX's formula": (frameworks(logits), "#E69F00", "^"),
    "fastce.cross_entropy": (loss, "#0072B2", "o"),
}

# %%
# Relative errors, where 1 means that nothing is right. Beyond a margin of about 18 the usual formulas return
# 0.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
for name, (losses, colour, marker) in formulas.items():
    error = np.abs(losses - exact) / exact
    left.semilogy(margins[::8], np.maximum(error, 2e-9)[::8], marker, color=colour, markersize=5, label=name)
    positive = losses > 0
    right.semilogy(
        margins[positive], losses[positive], color=colour, linewidth=2, alpha=0.4 if "fastce" in name else 1
    )
    print(f"{name:25} largest relative error {error.max():.1e}, zeros {np.sum(losses == 0)} of {len(losses)}")
left.axhline(2.0**-23, color="0.6", linestyle="--", linewidth=1)
left.text(20, 2.0**-23 * 1.5, "1 ULP of float32", color="0.4", fontsize=9)
left.set(xlabel="margin of the right class", ylabel="relative error of the loss", ylim=(1e-9, 4))
right.set(xlabel="margin of the right class", ylabel="loss (a curve ends where it becomes 0)")
figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
plt.show()

# %%
# The right class's gradient is :math:`p_y - 1`, and autograd computes it so. It vanishes with the loss, and a
# model that is sure stops learning from the row; here it is the sum of the other classes' exponentials over
# that of all, with its digits.

exact_gradient = -rest / (1 + rest)
gradients = {
    "softmax(x)[y] - 1, autograd's": (softmax(logits, axis=1)[:, 0] - 1, "#E69F00", "^"),
    "fastce.cross_entropy_and_grad": (gradient[:, 0], "#0072B2", "o"),
}
figure, panel = plt.subplots(figsize=(7, 4.2), layout="constrained")
for name, (values, colour, marker) in gradients.items():
    error = np.abs(values / exact_gradient - 1)
    panel.semilogy(margins[::8], np.maximum(error, 2e-9)[::8], marker, color=colour, markersize=5, label=name)
    print(f"{name:30} largest relative error {error.max():.1e}, zeros {np.sum(values == 0)} of {len(values)}")
panel.axhline(2.0**-23, color="0.6", linestyle="--", linewidth=1)
panel.text(20, 2.0**-23 * 1.5, "1 ULP of float32", color="0.4", fontsize=9)
panel.set(xlabel="margin of the right class", ylabel="relative error of its gradient", ylim=(1e-9, 4))
panel.legend(frameon=False)
plt.show()
