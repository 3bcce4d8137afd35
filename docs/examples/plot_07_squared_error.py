r"""
Why not squared error?
======================

Squared error of probabilities looks like a loss for classifiers, too. Its gradient by the logits has a factor
:math:`p (1 - p)`, which vanishes where the model is sure, *also where it is sure and wrong*. Cross-entropy's
logarithm cancels that factor, and its gradient is the error itself. Here a classifier starts from confidently
wrong weights and has to get out.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import fastce

images, digits = load_digits(return_X_y=True)
images, digits = (images - images.mean(0)) / 16, digits
one_hot = np.eye(10)[digits]

# %%
# The start: weights of a model that was trained on other labels, each digit taken for the next.


def by_cross_entropy(logits):
    return fastce.cross_entropy_and_grad(logits, digits)[1]


def by_squared_error(logits):
    p = fastce.softmax(logits, axis=1)
    error = p - one_hot
    return 2 * p * (error - (error * p).sum(1, keepdims=True)) / len(p)


def descend(gradient, weights, n_steps=200, step=2.0):
    right = []
    for _ in range(n_steps):
        logits = images @ weights
        right.append(np.mean(logits.argmax(1) == digits))
        weights = weights - step * images.T @ gradient(logits)
    return right, logits


shifted = np.zeros((64, 10))
for _ in range(300):
    shifted -= 8 * images.T @ fastce.cross_entropy_and_grad(images @ shifted, (digits + 1) % 10)[1]

starts = {"from zero weights": np.zeros((64, 10)), "from sure and wrong ones": shifted}
losses = {"cross-entropy": (by_cross_entropy, "#0072B2"), "squared error": (by_squared_error, "#D55E00")}

# %%
# On the right is the reason: the size of a row's gradient against the probability that the model gives the
# true class.

figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
for (start, weights), panel in zip(starts.items(), panels, strict=False):
    for name, (gradient, colour) in losses.items():
        right, _ = descend(gradient, weights)
        panel.plot(right, color=colour, label=name, linewidth=2)
        print(f"{start}, {name}: {right[-1]:.1%} right after {len(right)} steps")
    panel.set(title=start, xlabel="step of gradient descent", ylim=(0, 1))
panels[0].set_ylabel("share of digits that is right")
panels[0].legend(frameon=False, loc="lower right")

logits = images @ shifted
p_true = fastce.softmax(logits, axis=1)[np.arange(len(digits)), digits]
for name, (gradient, colour) in losses.items():
    size = len(digits) * np.linalg.norm(gradient(logits), axis=1)
    panels[2].loglog(p_true, size, ".", color=colour, markersize=3, label=name)
panels[2].set(
    title="gradients of the wrong start",
    xlabel="probability of the true class",
    ylabel="size of a row's gradient",
)
plt.show()
