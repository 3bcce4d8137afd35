"""Binary cross-entropy of logits with a fresh gradient: fastce and its rivals, elements and n-hot rows."""

from importlib.util import find_spec

import numpy as np

import fastce
from fastce.cli.relatives import FUNCTIONS
from fastce.cli.timing import Call

from .common import DTYPES, rotate

SHAPES = [(1000,), (100_000, 20), (10_000_000,)]
N_COPIES = 2


def _sklearn(x: np.ndarray, y: np.ndarray, n_threads: int) -> Call:
    from sklearn._loss import HalfBinomialLoss

    loss = HalfBinomialLoss()
    x, y = x.reshape(-1), y.reshape(-1)

    def call() -> object:
        losses, grad = loss.loss_gradient(y, x, n_threads=n_threads)
        return losses.mean(), grad

    return call


RIVALS = {**FUNCTIONS["binary"], "sklearn": _sklearn}


def _prepare(rival: str, shape: tuple[int, ...], dtype: str, seed: int) -> Call:
    if find_spec(rival) is None:
        raise NotImplementedError(f"{rival} is not installed")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, dtype=dtype) * 3
    return RIVALS[rival](x, (rng.random(shape) < 0.2).astype(dtype), n_threads=fastce.get_num_threads())


class Time:
    """Mean loss and gradient of targets of the logits' dtype."""

    params = (SHAPES, DTYPES, list(RIVALS))
    param_names = ("shape", "dtype", "rival")

    def setup(self, shape: tuple[int, ...], dtype: str, rival: str) -> None:
        self.call = rotate(_prepare(rival, shape, dtype, seed) for seed in range(N_COPIES))

    def time_loss_and_grad(self, *_: object) -> None:
        self.call()


class PeakMemory:
    """The whole process: one batch, and what a call allocates."""

    params = (SHAPES[2:], DTYPES, list(RIVALS))
    param_names = ("shape", "dtype", "rival")

    def setup(self, shape: tuple[int, ...], dtype: str, rival: str) -> None:
        self.call = _prepare(rival, shape, dtype, 0)

    def peakmem_loss_and_grad(self, *_: object) -> None:
        self.call()


class Variants:
    """What weights, soft targets of another dtype and the other losses of the family cost."""

    params = (
        [
            *("plain", "bool target", "float64 target", "weight", "pos_weight"),
            *("hess", "focal", "focal 2.5", "probs"),
        ],
    )
    param_names = ("variant",)

    def setup(self, variant: str) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((50_000, 20), dtype=np.float32)
        hard, out = rng.random(x.shape) < 0.2, np.ones_like(x)
        y, p = hard.astype(np.float32), 1 / (1 + np.exp(-x))
        wide = y.astype(np.float64)
        grad = fastce.binary_cross_entropy_with_logits_and_grad
        self.call = {
            "plain": lambda: grad(x, y, out=out),
            "bool target": lambda: grad(x, hard, out=out),
            "float64 target": lambda: grad(x, wide, out=out),
            "weight": lambda: grad(x, y, weight=p, out=out),
            "pos_weight": lambda: grad(x, y, pos_weight=p[0], out=out),
            "hess": lambda: fastce.binary_cross_entropy_with_logits_and_hess(x, y, out=out),
            "focal": lambda: fastce.binary_focal_loss_and_grad(x, y, out=out),
            "focal 2.5": lambda: fastce.binary_focal_loss_and_grad(x, y, gamma=2.5, out=out),
            "probs": lambda: fastce.binary_cross_entropy(p, y),
        }[variant]

    def time_call(self, *_: object) -> None:
        self.call()
