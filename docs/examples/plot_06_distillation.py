"""
Soft labels: a small model learns from a large one
==================================================

A target need not be one class. Probabilities as targets say how much an example resembles each of them, and a
small model (the student) learns more from a large one's probabilities than from the labels alone.
Floating-point targets of the logits' shape are such probabilities; ``temperature`` softens the student's, as
Hinton, Vinyals and Dean (2015) have it.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier

import fastce

images, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, digits = images[order] / 16, digits[order]
few, many, test = slice(0, 60), slice(60, 1000), slice(1000, None)

# %%
# The teacher is a forest that has seen 940 labelled digits. It gives its opinion of sixty others, without
# their labels.

teacher = ExtraTreesClassifier(200, random_state=0, n_jobs=1).fit(images[many], digits[many])
opinions = teacher.predict_proba(images[few])


def student(targets, temperature=1.0):
    """Softmax regression of the sixty images, whatever their targets are."""

    def objective(flat):
        weights = flat.reshape(64, 10)
        loss, grad = fastce.cross_entropy_and_grad(images[few] @ weights, targets, temperature=temperature)
        return loss + 1e-3 * flat @ flat, (images[few].T @ grad + 2e-3 * weights).ravel()

    return minimize(objective, np.zeros(640), jac=True, method="L-BFGS-B").x.reshape(64, 10)


# %%
# A temperature T of the teacher is the power 1/T of its probabilities.

softened = fastce.softmax(np.log(opinions + 1e-3) / 2, axis=1)
students = {
    "60 labels": student(digits[few]),
    "60 opinions": student(opinions),
    "60 opinions, temperature 2": student(softened, temperature=2.0),
}
scores = {name: np.mean((images[test] @ w).argmax(1) == digits[test]) for name, w in students.items()}
scores["the teacher itself"] = teacher.score(images[test], digits[test])
for name, score in scores.items():
    print(f"{name:28} {score:.1%} of unseen digits right")

# %%
# What the opinions hold and labels do not: this digit also looks like some other.

doubtful = np.argsort(opinions.max(1))[:4]
figure = plt.figure(figsize=(10, 4.4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1.2, 1])
panels = left.subplots(2, 4, height_ratios=[1, 1])
for index, (picture, bars) in zip(doubtful, panels.T, strict=True):
    picture.imshow(images[few][index].reshape(8, 8), cmap="gray_r")
    picture.set(xticks=[], yticks=[], title=f"labelled {digits[few][index]}")
    bars.bar(range(10), opinions[index], color="#56B4E9")
    bars.bar(digits[few][index], opinions[index, digits[few][index]], color="#0072B2")
    bars.set(xticks=range(0, 10, 2), ylim=(0, 1), yticks=[])
panels[1, 0].set_ylabel("opinion")
axes = right.subplots()
positions = range(len(scores))
axes.barh(positions, scores.values(), color=["#999999", "#56B4E9", "#0072B2", "#E69F00"])
for position, score in zip(positions, scores.values(), strict=True):
    axes.text(score - 0.004, position, f"{score:.1%}", va="center", ha="right", color="white", fontsize=10)
axes.set(yticks=positions, yticklabels=scores, xlim=(0.7, 1), xlabel="share of unseen digits right")
axes.invert_yaxis()
plt.show()
