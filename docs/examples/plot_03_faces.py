"""
Embeddings like those of faces: ArcFace, angles drawn
=====================================================

Recognition of people who were not in the training set compares angles between embeddings. Cross-entropy only
asks that the right class wins; :func:`fastce.margin_cross_entropy` asks that it wins by an angle, so that the
embeddings of a person come closer together. In two dimensions the angles can be drawn.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastce

rng = np.random.default_rng(0)
n_people, n_images, n_features = 8, 60, 32
people = np.repeat(np.arange(n_people), n_images)
means = rng.normal(size=(n_people, n_features))
faces, unseen = (means[people] + 1.1 * rng.normal(size=(len(people), n_features)) for _ in range(2))


def normalised(a):
    length = np.linalg.norm(a, axis=1, keepdims=True)
    return a / length, length


def through_norm(grad, unit, length):
    """The gradient by a vector from that by its direction."""
    return (grad - (grad * unit).sum(1, keepdims=True) * unit) / length


# %%
# A small network from features to the plane, whose output and class centres are normalised: their products
# are cosines. Adam, in six lines, trains it.


def train(margin, n_steps=200):
    start = np.random.default_rng(1)
    layers = [0.2 * start.normal(size=shape) for shape in ((n_features, 64), (64, 2), (n_people, 2))]
    first, second = [np.zeros_like(a) for a in layers], [np.zeros_like(a) for a in layers]
    for step in range(1, n_steps + 1):
        hidden = np.maximum(faces @ layers[0], 0)
        points, length = normalised(hidden @ layers[1])
        centres, size = normalised(layers[2])
        cosine = points @ centres.T
        loss, grad = fastce.margin_cross_entropy_and_grad(cosine, people, scale=12, margin2=margin)
        by_points = through_norm(grad @ centres, points, length)
        by_hidden = (by_points @ layers[1].T) * (hidden > 0)
        gradients = faces.T @ by_hidden, hidden.T @ by_points, through_norm(grad.T @ points, centres, size)
        for layer, m, v, g in zip(layers, first, second, gradients, strict=True):
            m += 0.1 * (g - m)
            v += 0.01 * (g * g - v)
            layer -= 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    return normalised(np.maximum(unseen @ layers[0], 0) @ layers[1])[0], centres, loss


# %%
# Embeddings of images that were not trained on. Without a margin (left) those of a person fill their sector;
# a margin of 0.3 rad pulls them towards their centre.

figure, panels = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
for margin, panel in zip((0.0, 0.3), panels, strict=True):
    points, centres, loss = train(margin)
    angle = np.arccos(np.clip((points * centres[people]).sum(1), -1, 1))
    jitter = 1 + 0.05 * rng.normal(size=(len(points), 1))
    panel.scatter(*(points * jitter).T, c=people, cmap="tab10", vmin=0, vmax=9, s=9)
    for person, (cx, cy) in enumerate(centres):
        panel.plot([0, cx], [0, cy], color=plt.cm.tab10(person / 9), linewidth=2)
    panel.set(aspect="equal", xticks=[], yticks=[], xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    panel.spines[:].set_visible(False)
    spread = np.degrees(np.sqrt(np.mean(angle**2)))
    title = "no margin" if margin == 0 else f"margin {margin} rad (ArcFace)"
    panel.set_title(f"{title}: {spread:.1f}° from a face to its centre (r.m.s.)", fontsize=10)
    print(f"{title}: loss {loss:.3f}, {spread:.1f} degrees")
plt.show()
