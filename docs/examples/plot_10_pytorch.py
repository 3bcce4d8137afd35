"""
Digits in PyTorch: another loss in the same loop
================================================

A small network trained twice, by PyTorch's cross-entropy and by fastce's. The loop is the same but for the
module that is the criterion; so are the losses, to 1e-5.
"""

from time import perf_counter

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import fastce.torch

digits = load_digits()
pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)

# %%
# What is timed is the part of the criterion: the loss, and its gradient with respect to the logits. That of
# the layers is the same on both sides. They have no kinks, at which a last digit could part the two
# trainings.


def train(criterion, epochs=200):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses, seconds = [], []
    for _ in range(epochs):
        outputs = model(pixels)
        logits = outputs.detach().requires_grad_()
        begin = perf_counter()
        loss = criterion(logits, labels)
        loss.backward()
        seconds.append(perf_counter() - begin)
        optimizer.zero_grad()
        outputs.backward(logits.grad)
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), sorted(seconds)[epochs // 2]


train(nn.CrossEntropyLoss(), 10)  # the first calls of a process start its threads
theirs, their_seconds = train(nn.CrossEntropyLoss())
ours, our_seconds = train(fastce.torch.CrossEntropyLoss())
apart = (ours - theirs).abs().max().item()
assert apart < 1e-5
print(f"last loss: PyTorch {theirs[-1]:.6f}, fastce {ours[-1]:.6f}; never more than {apart:.0e} apart")
print(f"loss and gradient of a step: PyTorch {their_seconds * 1e6:.0f} µs, fastce {our_seconds * 1e6:.0f} µs")

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.semilogy(theirs, label="PyTorch", linewidth=4, alpha=0.4)
left.semilogy(ours, label="fastce", linewidth=1.2)
left.set(xlabel="step", ylabel="mean cross-entropy in nats")
left.legend(frameon=False)
right.barh(["PyTorch", "fastce"], [their_seconds * 1e6, our_seconds * 1e6], color=["tab:blue", "tab:orange"])
right.set(xlabel="microseconds for loss and gradient of 1797 × 10 logits")
right.invert_yaxis()
plt.show()
