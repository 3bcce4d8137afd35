"""
Handwritten digits: a classifier in one call
============================================

A softmax regression is a matrix :math:`W`: the logits of an image are :math:`W x`, and training looks for the
:math:`W` whose cross-entropy is least. SciPy's optimiser asks for the loss and its gradient; fastce gives
both in one call, and the chain rule through the linear layer is one matrix product.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastce

images, digits = load_digits(return_X_y=True)
images = np.hstack([images / 16, np.ones((len(images), 1))])  # pixels in [0, 1], and a constant for the bias
x, x_test, y, y_test = train_test_split(images, digits, test_size=0.3, random_state=0)

# %%
# The loss as a function of the weights. `grad` is one array for all iterations: making a new one each time
# costs as much as the computation.

grad = np.empty((len(x), 10))
history = []


def loss_and_gradient(flat):
    weights = flat.reshape(10, -1)
    loss, _ = fastce.cross_entropy_and_grad(x @ weights.T, y, out=grad)
    history.append((loss, fastce.cross_entropy(x_test @ weights.T, y_test)))
    return loss + 5e-5 * flat @ flat, (grad.T @ x + 1e-4 * weights).ravel()


result = minimize(
    loss_and_gradient, np.zeros(10 * x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 60}
)
weights = result.x.reshape(10, -1)
accuracy = np.mean((x_test @ weights.T).argmax(1) == y_test)
print(f"{len(history)} evaluations, {accuracy:.1%} of unseen digits right")

# %%
# The loss of every unseen image shows what the average hides: a few images, most of them hard for people too,
# carry most of it.

losses = fastce.cross_entropy(x_test @ weights.T, y_test, reduction="none")
hardest = np.argsort(losses)[::-1][:5]

figure = plt.figure(figsize=(10, 5.2), layout="constrained")
curves, pictures = figure.subfigures(1, 2, width_ratios=[1, 1.25])
axes = curves.subplots()
for values, label in zip(np.transpose(history), ("training", "unseen"), strict=True):
    axes.semilogy(values, label=label, linewidth=2)
axes.set(xlabel="evaluation", ylabel="mean cross-entropy in nats")
axes.legend(frameon=False)
panels = pictures.subplots(3, 5)
for digit, panel in enumerate(panels[:2].flat):
    panel.imshow(weights[digit, :64].reshape(8, 8), cmap="RdBu_r", vmin=-4, vmax=4)
    panel.set_title(f"for a {digit}", fontsize=9)
for index, panel in zip(hardest, panels[2], strict=True):
    panel.imshow(x_test[index, :64].reshape(8, 8), cmap="gray_r")
    panel.set_title(f"a {y_test[index]}: {losses[index]:.1f} nats", fontsize=9)
for panel in panels.flat:
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
pictures.suptitle("weights of the classes, and the five hardest images", fontsize=10)
plt.show()
