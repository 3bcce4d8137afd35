"""
A map of pixels: classes on axis 1, labels that do not count
============================================================

Segmentation has logits of shape (N, C, H, W): a class for each pixel, with the classes on axis 1. ``axis=1``
says so, and nothing is transposed or copied. Pixels whose class nobody could tell, as along the borders of
objects, are labelled 255 and left out by ``ignore_index``.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter

import fastce

rng = np.random.default_rng(3)
n_classes, height, width = 4, 96, 128
names = "water", "field", "wood", "rock"

# %%
# A landscape: the class of a pixel is the largest of four smooth fields. A camera sees each class in a colour
# of its own, with noise.

fields = np.stack([gaussian_filter(rng.normal(size=(height, width)), 9) for _ in range(n_classes)])
truth = fields.argmax(0)
colours = np.array([[0.2, 0.4, 0.75], [0.8, 0.75, 0.35], [0.2, 0.5, 0.25], [0.55, 0.5, 0.5]])
photo = np.clip(colours[truth] + rng.normal(scale=0.3, size=(height, width, 3)), 0, 1)

first, second = np.sort(fields, axis=0)[[-1, -2]]
labels = np.where(first - second < 0.008, 255, truth).astype(np.uint8)[None]  # borders: 255

# %%
# Features of a pixel: its colour and the colours around it, at three scales. A linear classifier of them is a
# convolution by 1 x 1, and its gradient two products.

blurred = [gaussian_filter(photo, (scale, scale, 0)) for scale in (0, 1, 2, 4)]
features = np.concatenate([*blurred, np.ones((height, width, 1))], axis=2).reshape(-1, 13).T[None]
features = features.astype(np.float32)
weights = np.zeros((n_classes, features.shape[1]), np.float32)
logits = np.empty((1, n_classes, height, width), np.float32)
history = []
for _ in range(150):
    np.matmul(weights, features, out=logits.reshape(1, n_classes, -1))
    loss, grad = fastce.cross_entropy_and_grad(logits, labels, axis=1, ignore_index=255, out=logits)
    weights -= 4 * grad.reshape(n_classes, -1) @ features[0].T
    history.append(loss)
np.matmul(weights, features, out=logits.reshape(1, n_classes, -1))
counted = labels != 255
right = np.mean(logits.argmax(1)[counted] == labels[counted])
print(f"loss {history[0]:.3f} -> {history[-1]:.3f}, {right:.1%} of {counted.sum()} labelled pixels right")

# %%
# ``reduction="none"`` gives a loss for each pixel, which is a map as well. Ignored pixels have exactly 0.

losses = fastce.cross_entropy(logits, labels, axis=1, ignore_index=255, reduction="none")[0]
shown = np.ma.masked_equal(labels[0], 255)

figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
panels[0, 0].imshow(photo)
panels[0, 0].set_title("photo")
palette = plt.matplotlib.colors.ListedColormap(colours)
palette.set_bad("white")
panels[0, 1].imshow(shown, cmap=palette, vmin=0, vmax=3, interpolation="nearest")
panels[0, 1].set_title("labels; white: 255, does not count")
panels[1, 0].imshow(logits[0].argmax(0), cmap=palette, vmin=0, vmax=3, interpolation="nearest")
panels[1, 0].set_title(f"prediction, {right:.0%} right")
picture = panels[1, 1].imshow(losses, cmap="magma", vmax=2)
panels[1, 1].set_title("loss of each pixel in nats")
figure.colorbar(picture, ax=panels[1, 1], shrink=0.85)
handles = [
    plt.matplotlib.patches.Patch(color=colour, label=name)
    for colour, name in zip(colours, names, strict=True)
]
figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
for panel in panels.flat:
    panel.set(xticks=[], yticks=[])
plt.show()
