"""The user's own logits and labels from ``.npy`` files, checked before anything is computed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastce
from fastce.cli.common import UserError

IGNORED = -100


def load_batch(paths: list[str], report: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """Map two files and return logits as (rows, classes) with their labels.

    Parameters
    ----------
    paths : list of str
        Logits, classes on the last axis, and integer labels. Labels of -100 are ignored.
    report : callable
        Called with a line of text where rows are left out.

    Returns
    -------
    logits : ndarray of shape (rows, classes)
    labels : ndarray of shape (rows,)

    Raises
    ------
    UserError
        Where a file cannot be read or fastce does not take what it holds.
    """
    if len(paths) != 2:
        raise UserError(f"takes two files, LOGITS.npy LABELS.npy, or none; {len(paths)} given")
    logits, labels = (_load(Path(path)) for path in paths)
    if labels.dtype.kind not in "iu":
        raise UserError(f"{paths[1]} holds {labels.dtype}; labels are integers")
    try:
        fastce.cross_entropy(logits, labels)
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(f"{paths[0]}, {paths[1]}: {error}") from error
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    kept = labels != IGNORED
    if not kept.any():
        raise UserError(f"{paths[1]}: no row has a label other than {IGNORED}")
    if not kept.all():
        report(f"{np.sum(~kept)} rows with the label {IGNORED} are left out")
        logits, labels = logits[kept], labels[kept]
    return logits, labels


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a plain array as numpy.save writes it") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays; save one array with numpy.save")
    return _as_bfloat16(array, path) if array.dtype == np.dtype("V2") else array


def _as_bfloat16(array: np.ndarray, path: Path) -> np.ndarray:
    """Name the dtype that ``.npy`` files cannot name: NumPy saves bfloat16 as two raw bytes."""
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise UserError(f"{path} holds bfloat16: run  pip install ml_dtypes") from None
    return array.view(bfloat16)
