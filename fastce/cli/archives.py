"""Arrays in .npz archives: mapped where they are stored as they are, else read from the beginning."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastce.cli.common import UserError
from fastce.cli.files import Array, Mapped, chosen, npy_header


class Compressed(Array):
    """A member of a compressed .npz, which can only be read from its beginning."""

    def __init__(self, name: str, path: Path, member: str) -> None:
        self._path, self._member = path, member
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            shape, self._fortran, dtype = npy_header(file)
        super().__init__(name, dtype, shape)

    def blocks(self, n: int) -> Iterator[tuple[int, np.ndarray]]:
        if self._fortran and len(self.shape) > 1:
            raise UserError(f"{self.name} is compressed and in Fortran order; expected C order")
        columns = self.shape[-1] if self.shape else 1
        with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
            npy_header(file)
            for start in range(0, max(self.n_rows, 1), n):
                count = min(n, self.n_rows - start)
                n_bytes = count * columns * self.dtype.itemsize
                try:
                    read = file.read(n_bytes)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise UserError(f"{self.name} cannot be read: {error}") from None
                if len(read) < n_bytes:
                    raise UserError(f"{self.name} ends early: {len(read)} bytes, expected {n_bytes}")
                yield start, np.frombuffer(read, self.dtype).reshape(count, columns)


def member_of_npz(name: str, path: Path, key: str | None) -> Array:
    """The array of that key, or the only one of an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [member.removesuffix(".npy") for member in archive.namelist()]
            member = archive.getinfo(chosen(name, key, keys) + ".npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return Compressed(name, path, member.filename)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(error) from None
    with path.open("rb") as file:
        # The lengths of the name and of the extra field, in the local header.
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(int(lengths.sum()), 1)
        shape, fortran, dtype = npy_header(file)
        return Mapped(name, path, dtype, shape, file.tell(), fortran)
