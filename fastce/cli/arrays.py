"""The user's own logits and labels from files, checked before anything is computed."""

from collections.abc import Callable

import numpy as np

import fastce
from fastce.cli.common import UserError
from fastce.cli.files import open_array

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
    logits, labels = (open_array(path).whole() for path in paths)
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
