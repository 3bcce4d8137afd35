"""What to do about an argument that is refused: the last part of an error's message, ": ..." or nothing.

Called once an error is certain, so nothing here has to be quick, and nothing here may fail.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np


def kind_of(given: Any) -> str:
    """The name of a type, with its library's."""
    kind, library = type(given), type(given).__module__.partition(".")[0]
    return kind.__name__ if library == "builtins" else f"{library}.{kind.__name__}"


def shown(given: Any) -> str:
    """Its repr, if it has one: an int of thousands of digits has none."""
    try:
        return repr(given)
    except Exception:
        return f"{'an' if isinstance(given, int) else 'a'} {kind_of(given)} without a repr"


def retold(error: Exception, *changes: tuple[str, str]) -> Exception:
    """The error of a function by whose names the caller's arguments are not known.

    changes: patterns of its message, and what to say instead.
    """
    message = str(error)
    for pattern, text in changes:
        message = re.sub(pattern, text, message)
    return error if message == str(error) else type(error)(message)


def to_read(given: Any) -> str:
    """Of what does not become an array."""
    if isinstance(given, list | tuple):
        if given and kind_of(given[0]).startswith("torch."):
            return ": join tensors with torch.stack" + to_read(given[0]).replace(": ", ", and ", 1)
        return ": expected lists of one length on each level"
    if not kind_of(given).startswith("torch."):
        return ": convert it with the method that its library has for it"
    if given.requires_grad:
        return (
            ": give .detach(), without its graph, and hand the gradient that fastce returns "
            "to .backward(gradient=torch.from_numpy(grad))"
        )
    dtype = str(given.dtype)
    if given.is_nested:
        return ": join its rows with torch.cat(given.unbind())"
    if str(given.layout) != "torch.strided":
        return ": make it dense with .to_dense()"
    if given.is_meta:
        return ": it has a shape but no numbers; give a tensor that has memory"
    if given.is_conj():
        return ": give .resolve_conj(), with its numbers conjugated"
    if given.is_neg():
        return ": give .resolve_neg(), with its numbers negated"
    if dtype.startswith("torch.q"):
        return ": give .dequantize(), its numbers"
    if dtype.startswith("torch.float8"):
        return ": give .float(), a copy"
    if dtype == "torch.bfloat16":
        return (
            ": give .view(torch.int16).numpy().view(ml_dtypes.bfloat16), the same memory, or .float(), a copy"
        )
    return ": copy it to the CPU with .cpu()"


def to_convert(a: np.ndarray, labels: bool = False) -> str:
    """Of an array of a dtype that is not taken."""
    numbers, kind = "int" if labels else "float", a.dtype.kind
    alone = a.item() if a.ndim == 0 else None  # NumPy keeps what it does not know in an array of no axes
    if isinstance(alone, Mapping):
        return ": list its values in the order of the classes, [given[c] for c in range(C)]"
    if hasattr(alone, "toarray"):
        return ": make a sparse array dense with .toarray()"
    if kind == "U" and alone == "balanced":
        return ": that is len(target) / (C * numpy.bincount(target, minlength=C))"
    if kind == "O" and a.ndim == 0:
        return f": {'None' if alone is None else 'a ' + kind_of(alone)} holds no numbers; give an array"
    if kind == "c":
        return ": losses are of real numbers; take .real or numpy.abs of it"
    if kind == "b":
        return ": use .astype(int) if the classes are 0 and 1, or .argmax(axis) if these are one-hot rows"
    if kind in "US" or (kind == "O" and any(isinstance(item, str | bytes) for item in a.flat[:100])):
        return (
            ": numpy.unique(names, return_inverse=True)[1] numbers the classes"
            if labels
            else ": leave out what is text, or convert numbers in text with .astype(float)"
        )
    if labels and kind in "Of":
        missing = any(item is None or item != item for item in a.flat)
        first = "give missing ones the number of ignore_index, then " if missing else ""
        if kind == "O":
            return f": {first}use .astype(int)"
        return f": {first}use .astype(int), or .argmax(axis) if these are rows of probabilities"
    return f": convert it with .astype({numbers})"


def to_fit_rows(shape: tuple, logits: tuple, axis: int, name: str) -> str:
    """Of labels or weights that are not one for each row of logits."""
    rows = logits[:axis] + logits[axis + 1 :]
    if name == "target" and shape == logits:
        return (
            f": one-hot rows become class indices with .argmax({axis}); as probabilities, which "
            "cross_entropy takes, they need a floating dtype, .astype(float)"
        )
    if shape == (*rows[:axis], 1, *rows[axis:]):
        return f": take the axis of length 1 away with .squeeze({axis})"
    if name == "sample_weight" and shape == (logits[axis],):
        return ": weights of the classes are called weight"
    for other in range(len(logits)):
        if shape == logits[:other] + logits[other + 1 :]:
            return f": use axis={other} if the classes are there"
    return ""


def to_fit_classes(shape: tuple, logits: tuple, n_classes: int) -> str:
    """Of class weights of another shape than (C,)."""
    axes = [axis for axis, length in enumerate(logits) if length == n_classes]
    if any(shape == logits[:axis] + logits[axis + 1 :] for axis in axes):
        return ": weights of the rows are called sample_weight"
    return ": use .reshape(-1)" if np.prod(shape) == n_classes else ""


def to_be_labels(target: np.ndarray, logits: tuple) -> str:
    """Of floating-point targets that don't have the logits' shape."""
    if target.shape[:-1] == logits:
        return ": the logits come first, then the target"
    return to_convert(target, labels=True) if target.ndim == len(logits) - 1 else ""


def to_broadcast(shape: tuple, logits: tuple, name: str, integers: bool) -> str:
    """Of an array that does not broadcast to the logits."""
    if shape != logits and np.prod(shape) == np.prod(logits):
        return f": use .reshape{logits}"
    fitting = [dim for dim, length in enumerate(logits) if shape == (length,)]
    if name == "target" and integers and fitting:
        columns = f"numpy.eye({logits[-1]})[target]"
        return f": class indices become targets with {columns}; cross_entropy takes them as they are"
    if fitting and name != "target":
        inner = (1,) * (len(logits) - fitting[0] - 1)
        return f": use .reshape{(*shape, *inner)} if it belongs to axis {fitting[0]}"
    return ""


def to_be_class(label: int, n_classes: int) -> str:
    """Of a label that is no class."""
    if label == n_classes:
        alone = (
            ", and the losses of a single logit are binary_cross_entropy_with_logits"
            if n_classes == 1
            else ""
        )
        return f": the first class is 0{alone}"
    if label in (-1, 255):
        return f": use ignore_index={label} if it marks what does not count"
    return ""


def to_be_inside(name: str, value: float) -> str:
    """Of a probability that is none."""
    if name == "target" and value in (-1, 2):
        return f": of labels {'-1 and 1 take (target + 1) / 2' if value == -1 else '1 and 2 take target - 1'}"
    if name == "probs" and value != value:
        return ""
    return (
        ": logits are no probabilities; softmax and the losses of logits take them" if name == "probs" else ""
    )
