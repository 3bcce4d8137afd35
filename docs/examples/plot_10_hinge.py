"""
Cross-entropy beside hinges: boundaries and outliers
====================================================

Two losses of the same scores. Cross-entropy never has enough: each example pulls at the boundary, if ever
less the surer it is. A hinge is content with a margin: what lies beyond it counts nothing, and the boundary
rests on the few examples at the margin and on the wrong side of it, the support vectors. Its square has no
kink, and minds distance.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

import fastce

rng = np.random.default_rng(3)
n = 120
points = np.vstack([rng.normal(size=(n, 2)) * 0.7 - [1.3, 0.3], rng.normal(size=(n, 2)) * 0.7 + [1.3, 0.3]])
labels = np.repeat([0, 1], n)
outliers = rng.normal(size=(6, 2)) * 0.25 + [-5.5, 0.8]  # far on the left, and of the class on the right
LIMITS = (-6.6, 3.8, -2.8, 3.4)

# %%
# With two classes, scores of -f/2 and f/2 make Crammer and Singer's hinge the usual one of f. All losses have
# the same signature, so one function fits them all: a straight boundary, with a little weight decay.

losses = {
    "cross-entropy": (fastce.cross_entropy_and_grad, {}),
    "hinge": (fastce.hinge_loss_and_grad, {"kind": "crammer_singer"}),
    "squared hinge": (fastce.hinge_loss_and_grad, {"kind": "crammer_singer", "p": 2}),
}
HALVES = np.array([-0.5, 0.5])


def design(xy):
    return np.column_stack([np.ones(len(xy)), xy])


def fit(xy, y, loss_and_grad, options):
    features = design(xy)

    def objective(w):
        loss, grad = loss_and_grad(np.outer(features @ w, HALVES), y, **options)
        return loss + 1e-3 * w[1:] @ w[1:], features.T @ (grad @ HALVES) + 2e-3 * w * [0, 1, 1]

    w = np.zeros(3)
    for _ in range(5):  # at a kink a line search may stop too soon
        w = minimize(objective, w, jac=True, method="L-BFGS-B").x
    return w


# %%
# What a point pulls with is the size of its gradient: the area of its dot. The dashed line is the boundary
# without the six outliers, the full one that with them.

figure, panels = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained", sharex=True, sharey=True)
xy, y = np.vstack([points, outliers]), np.append(labels, np.ones(len(outliers), int))
colours, side = np.where(y == 1, "#B2182B", "#0072B2"), np.array(LIMITS[:2])
for panel, (name, (loss_and_grad, options)) in zip(panels, losses.items(), strict=True):
    without, both = fit(points, labels, loss_and_grad, options), fit(xy, y, loss_and_grad, options)
    for w, style in (without, "--"), (both, "-"):
        panel.plot(side, -(w[0] + w[1] * side) / w[2], style, color="0.25", linewidth=1.8)
    grad = loss_and_grad(np.outer(design(xy) @ both, HALVES), y, reduction="none", **options)[1]
    pull = np.abs(grad @ HALVES)
    panel.scatter(*xy.T, s=5, c=colours, linewidths=0)
    panel.scatter(*xy.T, s=50 * pull, c=colours, alpha=0.35, linewidths=0)
    turned = abs(np.degrees(np.diff([np.arctan2(w[2], w[1]) for w in (without, both)]).item()))
    counted = np.mean(pull > 0)
    panel.set_title(f"{name}\nturned by {turned:.0f}°, {counted:.0%} of the points pull", fontsize=10)
    panel.set(xlim=LIMITS[:2], ylim=LIMITS[2:], xticks=[], yticks=[])
    print(f"{name:14} turned by {turned:.0f} degrees, {counted:.0%} of the points pull")
plt.show()

# %%
# On the wrong side cross-entropy and the hinge grow as a straight line: an outlier pulls with the same force,
# however far away it is. The square pulls in proportion to the distance, and six of them turn the boundary
# most. What each loss makes of a row, by how far the right score is ahead:

LINES = "#0072B2", "#E69F00", "#009E73"
lead = np.linspace(-3, 4, 281)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
scores = np.outer(lead, HALVES)
for colour, (name, (loss_and_grad, options)) in zip(LINES, losses.items(), strict=True):
    loss, grad = loss_and_grad(scores, np.ones(len(lead), int), reduction="none", **options)
    left.plot(lead, loss, color=colour, linewidth=2, label=name)
    right.plot(lead, -grad[:, 1], color=colour, linewidth=2, label=name)
left.set(xlabel="lead of the right score", ylabel="loss", ylim=(-0.2, 6))
right.set(xlabel="lead of the right score", ylabel="pull: minus the gradient", ylim=(-0.2, 6))
left.legend(frameon=False)
plt.show()
