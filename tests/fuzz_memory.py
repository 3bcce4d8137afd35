"""Arrays within more memory than they take: laid out in every way, and watched."""

from typing import NamedTuple

import numpy as np

GUARD = 64  # bytes on either side of an array
FILL = 0xFF  # of every byte that is not an array's: NaN, and a label of -1 or too large

PERMUTED, REVERSED, STRIDED, UNALIGNED, SWAPPED, READ_ONLY, BROADCAST = (1 << k for k in range(7))


class Memory(NamedTuple):
    """An array within more memory than it takes."""

    a: np.ndarray
    raw: np.ndarray  # its bytes, and what is around and between them

    def like(self, raw, dtype=None):
        """The same places of other memory."""
        if self.a.size == 0:
            return np.empty(self.a.shape, dtype or self.a.dtype)
        offset = self.a.__array_interface__["data"][0] - self.raw.__array_interface__["data"][0]
        return np.ndarray(self.a.shape, dtype or self.a.dtype, raw, offset, self.a.strides)

    def copied(self):
        raw = self.raw.copy()
        return Memory(self.like(raw), raw)

    def is_whole_outside(self):
        """Whether no byte that is not the array's was written."""
        raw = self.raw.copy()
        size = self.a.itemsize
        self.like(raw, f"u{size}")[...] = 256**size - 1
        return bool((raw == FILL).all())


def in_memory(rng, a, how):
    """`a` laid out as the bits of `how` say. Broadcast, it has other values: the first along some axis."""
    a = np.asarray(a)
    if how & SWAPPED and a.dtype.name != "bfloat16":
        a = a.astype(a.dtype.newbyteorder())
    axis = int(rng.integers(a.ndim)) if a.ndim and a.size and how & BROADCAST else None
    shape = a.shape
    if axis is not None:
        a = a.take([0], axis=axis)
    order = rng.permutation(a.ndim) if how & PERMUTED else np.arange(a.ndim)
    step = rng.integers(1, 4, a.ndim) if how & STRIDED else np.ones(a.ndim, int)
    sign = rng.choice([-1, 1], a.ndim) if how & REVERSED else np.ones(a.ndim, int)
    taken = [a.shape[k] * int(step[k]) for k in order]
    start = GUARD + bool(how & UNALIGNED)
    raw = np.full(start + int(np.prod(taken)) * a.itemsize + GUARD, FILL, np.uint8)
    view = raw[start : raw.size - GUARD].view(a.dtype).reshape(taken).transpose(np.argsort(order))
    view = view[(..., *(slice(None, None, s) for s in (step * sign).tolist()))]
    view[...] = a
    if axis is not None:
        view = np.broadcast_to(view, shape)
    if how & READ_ONLY:
        view.flags.writeable = False
    return Memory(view, raw)
