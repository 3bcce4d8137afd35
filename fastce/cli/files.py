"""Arrays in files, block by block: .npy and .safetensors, mapped. archives.py has those in .npz."""

import mmap
from collections.abc import Iterator
from math import prod
from operator import index
from pathlib import Path

import numpy as np

from fastce.cli.common import UserError, require

BLOCK_BYTES = 16 * 2**20
BLOCK_ROWS = 2**17  # what is counted of so many stays in cache
PAGE = mmap.ALLOCATIONGRANULARITY
# Names of the dtypes of safetensors; bfloat16 is none of NumPy's.
SAFETENSORS = {
    **{f"F{8 * n}": f"<f{n}" for n in (2, 4, 8)},
    **{f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
    "BF16": "<V2",
    "BOOL": "|b1",
}


class Array:
    """An array in a file.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    nbytes : int
    """

    def __init__(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        if dtype.kind == "V" and dtype.itemsize == 2:  # what numpy.save makes of bfloat16
            require("score", "ml_dtypes")
            import ml_dtypes

            dtype = np.dtype(ml_dtypes.bfloat16)
        self.name, self.dtype, self.shape = name, dtype, shape
        self.nbytes = dtype.itemsize * prod(shape)

    @property
    def n_rows(self) -> int:
        """How many rows there are of the last axis."""
        return prod(self.shape[:-1])

    def whole(self) -> np.ndarray:
        """All of it."""
        blocks = [block for _, block in self.blocks(max(self.n_rows, 1))]
        return blocks[0].reshape(self.shape)

    def rows_at_once(self) -> int:
        """How many rows make a block."""
        return min(BLOCK_ROWS, max(1, BLOCK_BYTES // max(1, self.dtype.itemsize * self.shape[-1])))

    def blocks(self, n: int) -> Iterator[tuple[int, np.ndarray]]:
        """The number of the first row and the rows of one block of n rows after the other; of no rows, one
        block without any."""
        raise NotImplementedError

    def drop(self, first: int, n: int) -> None:
        """Say that n rows, from the one that is named, are not needed any more."""


class Mapped(Array):
    """An array that lies in a file as it is: mapped, a block asked of the disk when it is handed out."""

    def __init__(
        self, name: str, path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, fortran: bool
    ) -> None:
        super().__init__(name, dtype, shape)
        if path.stat().st_size < offset + self.nbytes:
            raise UserError(
                f"{name} ends early: {path.stat().st_size} bytes, expected {offset + self.nbytes}"
            )
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._offset, self._fortran = offset, fortran
        self._array = np.frombuffer(self._map, self.dtype, prod(shape), offset)

    def whole(self) -> np.ndarray:
        return self._array.reshape(self.shape, order="F" if self._fortran else "C")

    def blocks(self, n: int) -> Iterator[tuple[int, np.ndarray]]:
        whole = self.whole()
        if self._fortran and whole.ndim > 2:
            raise UserError(
                f"{self.name} is in Fortran order with {whole.ndim} axes; expected C order or 2 axes"
            )
        rows = whole.reshape(self.n_rows, self.shape[-1])
        for start in range(0, max(self.n_rows, 1), n):
            self._advise("MADV_WILLNEED", start, n)
            yield start, rows[start : start + n]

    def drop(self, first: int, n: int) -> None:
        """Leave rows to the page cache: they count as memory of this process no longer."""
        self._advise("MADV_DONTNEED", first, n)

    def _advise(self, advice: str, first: int, n: int) -> None:
        """Tell the system of the pages that hold nothing but rows of these, where it has words for that."""
        of_row = self.dtype.itemsize * self.shape[-1]
        start = (self._offset + first * of_row + PAGE - 1) // PAGE * PAGE
        stop = (self._offset + min((first + n) * of_row, self.nbytes)) // PAGE * PAGE
        if hasattr(mmap, advice) and start < stop and not self._fortran:
            self._map.madvise(getattr(mmap, advice), start, stop - start)


def open_array(name: str) -> Array:
    """Open ``FILE.npy``, ``FILE.npz:key`` or ``FILE.safetensors:key``."""
    path, key = _split(name)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                shape, fortran, dtype = npy_header(file)
                return Mapped(name, path, dtype, shape, file.tell(), fortran)
        if path.suffix == ".npz":
            from fastce.cli.archives import member_of_npz  # loads slowly

            return member_of_npz(name, path, key)
        return _tensor(name, path, key)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{name} cannot be read: {error}") from None


def read_tokens(name: str) -> np.ndarray:
    """Tokens from such a file, or from a text of numbers."""
    if Path(name).suffix != ".txt":
        return open_array(name).whole()
    if not Path(name).exists():
        raise UserError(f"{name} does not exist")
    try:
        return np.array(Path(name).read_text("utf-8-sig").split(), dtype=np.int64)
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is no list of integers: {error}") from None


def _split(name: str) -> tuple[Path, str | None]:
    """A file and the key in it, if there is one."""
    for suffix in (".npz", ".safetensors"):
        file, found, key = name.rpartition(f"{suffix}:")
        if found:
            return Path(file + suffix), key
    path = Path(name)
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise UserError(
            f"{name} has an unknown ending; expected FILE.npy, FILE.npz:key or FILE.safetensors:key"
        )
    return path, None


def npy_header(file: object) -> tuple[tuple[int, ...], bool, np.dtype]:
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return read(file)


def chosen(name: str, key: str | None, keys: list[str]) -> str:
    """The key, if the file has it, or its only one."""
    if key in keys:
        return key
    if key is None and len(keys) == 1:
        return keys[0]
    given = f"has no key {key!r}" if key is not None else "holds several arrays: name one with FILE:key"
    raise UserError(f"{name} {given}; it has {', '.join(keys) or 'none'}")


def _tensor(name: str, path: Path, key: str | None) -> Array:
    """Eight bytes that say how long the header is, the header in JSON, the arrays."""
    import json

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise UserError(f"{path} is no safetensors file: its header would be {length} bytes")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        tensor = tensors[chosen(name, key, list(tensors))]
        of_data, (start, _) = str(tensor["dtype"]), map(index, tensor["data_offsets"])
        shape = tuple(map(index, tensor["shape"]))
        if min(start, *shape, 0) < 0:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path} is no safetensors file: its header does not tell of arrays") from None
    if of_data not in SAFETENSORS:
        raise UserError(f"{name} has dtype {of_data}; expected one of {', '.join(SAFETENSORS)}")
    return Mapped(name, path, np.dtype(SAFETENSORS[of_data]), shape, 8 + length + start, False)
