"""
Digits in PyTorch: another loss in the same loop
================================================

A small network trained twice, by PyTorch's cross-entropy and by fastce's. The loop is the same but for the
module that is the criterion; so are the losses, to 1e-5. What a step of the criterion costs depends on the
batch: a small one is PyTorch's bookkeeping, a large one is arithmetic.
"""

from time import perf_counter

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import fastce
import fastce.torch

digits = load_digits()
pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
criteria = {"PyTorch": nn.CrossEntropyLoss(), "fastce": fastce.torch.CrossEntropyLoss()}

# %%
# The layers have no kinks, at which a last digit could part the two trainings.


def train(criterion, epochs=200):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(epochs):
        loss = criterion(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


losses = {name: train(criterion) for name, criterion in criteria.items()}
apart = (losses["PyTorch"] - losses["fastce"]).abs().max().item()
assert apart < 1e-5
last = ", ".join(f"{name} {values[-1]:.6f}" for name, values in losses.items())
print(f"last loss: {last}; never more than {apart:.0e} apart")

# %%
# The loss, and its gradient with respect to the logits, for batches of ten classes. Below some thousand rows
# most of the time is PyTorch's: it notes a graph in the forward pass and walks it in the backward pass,
# whoever computes the loss. The kernel alone, called with arrays, shows what is left of it.


def step(criterion, logits, target):
    return torch.autograd.grad(criterion(logits, target), logits)


def microseconds(function, *arguments, seconds=0.2):
    least, end = float("inf"), perf_counter() + seconds
    while (begin := perf_counter()) < end:
        function(*arguments)
        least = min(least, perf_counter() - begin)
    return least * 1e6


rows = [30, 300, 1797, 10_000, 100_000]
times = {name: [] for name in (*criteria, "the kernel alone")}
for n in rows:
    logits, target = torch.randn(n, 10, requires_grad=True), torch.randint(10, (n,))
    for name, criterion in criteria.items():
        times[name].append(microseconds(step, criterion, logits, target))
    arrays = logits.detach().numpy(), target.numpy()
    times["the kernel alone"].append(microseconds(fastce.cross_entropy_and_grad, *arrays))
for k, n in enumerate(rows):
    print(f"{n:6} rows:", ", ".join(f"{name} {values[k]:.0f} µs" for name, values in times.items()))

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.semilogy(losses["PyTorch"], label="PyTorch", linewidth=4, alpha=0.4)
left.semilogy(losses["fastce"], label="fastce", linewidth=1.2)
left.set(xlabel="step", ylabel="mean cross-entropy in nats")
for (name, values), style in zip(times.items(), ("o-", "o-", "o--"), strict=True):
    right.loglog(rows, values, style, label=name)
right.set(xlabel="rows of 10 logits", ylabel="microseconds for loss and gradient")
for axes in (left, right):
    axes.legend(frameon=False)
plt.show()
