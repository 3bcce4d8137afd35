"""
Rare classes: weights, focal loss, and what each does to the boundary
=====================================================================

One example in twenty is of the class that matters. A classifier that minimises the mean loss gives the rare
class little room, since it decides for whatever is more probable. Two remedies, each with its own effect:

- class ``weight``: errors on a class count more, as if it were as frequent;
- the focal loss: examples that are right and sure count less, of both classes.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

import fastce

rng = np.random.default_rng(7)
n_common, n_rare = 1900, 100
common = rng.normal(size=(n_common, 2)) * [1.5, 1.0]
rare = rng.normal(size=(n_rare, 2)) * [0.7, 0.5] + [1.6, 1.5]
points, labels = np.vstack([common, rare]), np.repeat([0, 1], [n_common, n_rare])


def features(xy):
    """Polynomials up to the second degree, for a curved boundary."""
    x, y = xy.T
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)


design = features(points)

# %%
# All of these have the same signature but for the option, so one function fits them all.


def fit(loss_and_grad, **options):
    def objective(flat):
        weights = flat.reshape(-1, 2)
        loss, grad = loss_and_grad(design @ weights, labels, **options)
        return loss + 1e-4 * flat @ flat, (design.T @ grad + 2e-4 * weights).ravel()

    return minimize(objective, np.zeros(2 * design.shape[1]), jac=True, method="L-BFGS-B").x.reshape(-1, 2)


balanced = len(labels) / (2 * np.bincount(labels))
models = {
    "cross-entropy": fit(fastce.cross_entropy_and_grad),
    f"weight = [{balanced[0]:.2f}, {balanced[1]:.0f}]": fit(fastce.cross_entropy_and_grad, weight=balanced),
    "focal, gamma = 2": fit(fastce.focal_loss_and_grad, gamma=2.0),
    "focal, gamma = 2, and weight": fit(fastce.focal_loss_and_grad, gamma=2.0, weight=balanced),
}

# %%
# Weights move the boundary to where the classes would be equally probable if they were equally frequent:
# nearly all of the rare class is found, at the price of false alarms. The focal loss leaves the boundary
# about where it was and flattens the probabilities around it, which is why it is usually used with weights.

grid = np.stack(np.meshgrid(np.linspace(-4.5, 4.5, 241), np.linspace(-3.2, 3.8, 201)), axis=-1)
figure, panels = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained", sharex=True, sharey=True)
for (name, weights), panel in zip(models.items(), panels.flat, strict=True):
    p = fastce.softmax(features(grid.reshape(-1, 2)) @ weights, axis=1)[:, 1].reshape(grid.shape[:2])
    picture = panel.contourf(
        grid[..., 0], grid[..., 1], p, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.55
    )
    panel.contour(grid[..., 0], grid[..., 1], p, levels=[0.5], colors="black", linewidths=2)
    panel.scatter(*common.T, s=4, color="#0072B2", alpha=0.5, linewidths=0)
    panel.scatter(*rare.T, s=10, color="#B2182B", linewidths=0)
    decided = (design @ weights).argmax(1)
    found, alarms = np.mean(decided[labels == 1]), np.sum(decided[labels == 0])
    panel.set_title(f"{name}\n{found:.0%} of the rare found, {alarms} false alarms", fontsize=10)
    panel.set(xticks=[], yticks=[], xlim=(-4.5, 4.5), ylim=(-3.2, 3.8))
    print(f"{name:28} found {found:.0%}, false alarms {alarms}")
figure.colorbar(picture, ax=panels, shrink=0.7, label="probability of the rare class; black: 1/2")
plt.show()
