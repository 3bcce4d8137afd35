"""
A language model: trained, scored, sampled from
===============================================

A small model of text, from its first gradient to its held-out bits per character and to samples of it, with
NumPy and fastce alone. The text is what Python says about itself: the topics of its ``help()``, half a
megabyte of English with code in it, which every installation has.
"""

import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np

import fastce
from fastce.cli import main
from fastce.inference import sample, token_logprobs

rng = np.random.default_rng(0)
text = "\n\n".join(topics[name] for name in sorted(topics))
alphabet = sorted(set(text))
n_chars, n_context = len(alphabet), 8
number = {char: i for i, char in enumerate(alphabet)}
tokens = np.array([number[char] for char in text], np.int16)
split = int(0.95 * len(tokens))
print(f"{len(tokens):,} characters, {n_chars} different ones")

# %%
# The model sees the last eight characters, each as a vector that is learned, and has one hidden layer:
# :math:`h = \tanh(W [v_{t-8}, \dots, v_{t-1}] + b)`, logits :math:`H h + c`.

n_vector, n_hidden = 16, 128


def normal(*shape):
    return rng.normal(scale=shape[-1] ** -0.5, size=shape).astype(np.float32)


model = {
    "vectors": normal(n_chars, n_vector),
    "layer": normal(n_hidden, n_context * n_vector),
    "layer_bias": np.zeros(n_hidden, np.float32),
    "head": normal(n_chars, n_hidden),
    "head_bias": np.zeros(n_chars, np.float32),
}


def hidden_states(context):
    inputs = model["vectors"][context].reshape(len(context), -1)
    return inputs, np.tanh(inputs @ model["layer"].T + model["layer_bias"])


def contexts(positions):
    return tokens[positions[:, None] + np.arange(-n_context, 0)]


# %%
# Training: the gradient with respect to the logits is one call, into the memory of the logits themselves;
# what comes before them is the chain rule. The steps are Adam's.

n_steps, n_batch = 600, 512
momentum = {name: np.zeros_like(a) for name, a in model.items()}
square = {name: np.zeros_like(a) for name, a in model.items()}
losses = []
for step in range(n_steps):
    positions = rng.integers(n_context, split, n_batch)
    context = contexts(positions)
    inputs, hidden = hidden_states(context)
    logits = hidden @ model["head"].T + model["head_bias"]
    loss, by_logits = fastce.cross_entropy_and_grad(logits, tokens[positions], out=logits)
    losses.append(loss)
    by_sum = (by_logits @ model["head"]) * (1 - hidden**2)
    by_vectors = np.zeros_like(model["vectors"])
    np.add.at(by_vectors, context, (by_sum @ model["layer"]).reshape(*context.shape, n_vector))
    grads = {
        "vectors": by_vectors,
        "layer": by_sum.T @ inputs,
        "layer_bias": by_sum.sum(0),
        "head": by_logits.T @ hidden,
        "head_bias": by_logits.sum(0),
    }
    rate = 4e-3 * (1 - step / n_steps) + 1e-4
    for name, grad in grads.items():
        momentum[name] += 0.1 * (grad - momentum[name])
        square[name] += 0.01 * (grad**2 - square[name])
        unbias = (1 - 0.9 ** (step + 1)) / np.sqrt(1 - 0.99 ** (step + 1))
        model[name] -= rate / unbias * momentum[name] / (np.sqrt(square[name]) + 1e-8)

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
smooth = np.convolve(losses, np.ones(25) / 25, mode="valid") / np.log(2)
axes.plot(np.arange(len(smooth)) + 25, smooth, color="#0072B2")
axes.set_xlabel("steps")
axes.set_ylabel("bits per character")
axes.set_title("training, mean of 25 batches", loc="left")

# %%
# Scoring, from the command line: hidden states of the text that was held out, the head, and the characters
# that came. Here a token is a character, so bits per token are bits per character.

folder = Path(tempfile.mkdtemp())
held_out = np.arange(split, len(tokens))
np.save(folder / "hidden.npy", hidden_states(contexts(held_out))[1])
np.save(folder / "characters.npy", tokens[held_out])
np.savez(folder / "model.npz", head=model["head"], bias=model["head_bias"])
command = f"--hidden {folder}/hidden.npy --head {folder}/model.npz:head --bias {folder}/model.npz:bias"
status = main(["score", *command.split(), f"{folder}/characters.npy", "--output", f"{folder}/scores.npz"])

# %%
# Where is it sure, and where not? The entropy of each row, and the rank of what came.

scores = np.load(folder / "scores.npz")
part = slice(2000, 2070)
surprise = -scores["logprob"][part] / np.log(2)
figure, axes = plt.subplots(figsize=(11, 2.8), layout="constrained")
axes.bar(np.arange(len(surprise)), surprise, color="#56B4E9", label="bits that the character took")
axes.plot(scores["entropy"][part] / np.log(2), color="#D55E00", label="entropy before it came")
axes.set_xticks(np.arange(len(surprise)), [alphabet[i].replace("\n", "⏎") for i in scores["token"][part]])
axes.tick_params(length=0)
axes.set_ylabel("bits")
legend = axes.legend(frameon=False)

# %%
# Samples: one token after the other, from the nucleus of the distribution. One seed, one text, on any number
# of threads.


def continued(start, n, **filters):
    """A text, n characters of which are drawn, and the mean bits of these."""
    generator, written, bits = np.random.default_rng(1), [number[char] for char in start], 0.0
    for _ in range(n):
        hidden = hidden_states(np.array([written[-n_context:]]))[1]
        logits = hidden @ model["head"].T + model["head_bias"]
        drawn = sample(logits, rng=generator, **filters)
        bits -= float(token_logprobs(logits, drawn.tokens).logprob[0]) / np.log(2)
        written.append(int(drawn.tokens[0]))
    return "".join(alphabet[i] for i in written), bits / n


for filters in ({}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 0}):
    written, bits = continued("The object ", 160, **filters)
    print(f"--- {filters}: {bits:.2f} bits per character\n{written}\n")
