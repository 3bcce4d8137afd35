"""
Label smoothing and calibration: do 90 % mean 90 %?
===================================================

A model that is trained until its training loss is near 0 is surer than it should be. Smoothed labels ask for
a little less than certainty; a temperature, fitted on held-out data, divides the logits by one number.
Reliability plots compare what a model claims with how often it is right.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize, minimize_scalar

import fastce

rng = np.random.default_rng(5)
n_classes, n_features = 10, 24
centres = 0.62 * rng.normal(size=(n_classes, n_features))


def draw(n):
    labels = rng.integers(n_classes, size=n)
    return centres[labels] + rng.normal(size=(n, n_features)), labels


x, y = draw(500)
x_held, y_held = draw(3000)
x_test, y_test = draw(20000)


def fit(**options):
    def objective(flat):
        weights = flat.reshape(n_features, n_classes)
        loss, grad = fastce.cross_entropy_and_grad(x @ weights, y, **options)
        return loss + 1e-4 * flat @ flat, (x.T @ grad).ravel() + 2e-4 * flat

    start = np.zeros(n_features * n_classes)
    return minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x.reshape(
        n_features, -1
    )


# %%
# The temperature minimises the loss of the held-out rows; ``temperature`` is an option of the loss, so
# nothing has to be divided.

plain, smoothed = fit(), fit(label_smoothing=0.1)
held = x_held @ plain
temperature = minimize_scalar(
    lambda t: fastce.cross_entropy(held, y_held, temperature=t), bounds=(0.1, 10), method="bounded"
).x
models = {
    "hard labels": x_test @ plain,
    "label_smoothing=0.1": x_test @ smoothed,
    f"hard labels, temperature {temperature:.2f}": x_test @ plain / temperature,
}

# %%
# Bars below the diagonal: surer than right. The calibration error is the mean distance from it.

figure, panels = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained", sharey=True)
edges = np.linspace(0, 1, 11)
for (name, logits), panel in zip(models.items(), panels, strict=True):
    p = fastce.softmax(logits, axis=1)
    sure, right = p.max(1), p.argmax(1) == y_test
    which = np.minimum(np.digitize(sure, edges) - 1, 9)
    rows = np.bincount(which, minlength=10)
    filled = rows > 0
    claimed = np.bincount(which, sure, minlength=10)[filled] / rows[filled]
    correct = np.bincount(which, right, minlength=10)[filled] / rows[filled]
    error = np.sum(rows[filled] * np.abs(claimed - correct)) / len(sure)
    panel.bar(edges[:-1][filled], correct, width=0.1, align="edge", color="#56B4E9", edgecolor="white")
    panel.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
    panel.plot(claimed, correct, "o", color="#D55E00", markersize=5)
    loss = fastce.cross_entropy(logits, y_test)
    panel.set_title(f"{name}\nloss {loss:.3f}, calibration error {error:.3f}", fontsize=10)
    panel.set(xlabel="probability of the predicted class", xlim=(0, 1), ylim=(0, 1))
    print(f"{name:32} loss {loss:.3f}, {right.mean():.1%} right, calibration error {error:.3f}")
panels[0].set_ylabel("share that is right")
plt.show()
