"""SciPy's functions in fastce and its rivals, and what the options of cross-entropy cost."""

import numpy as np

import fastce
from fastce.cli.measure import random_batch
from fastce.cli.relatives import FUNCTIONS
from fastce.cli.rivals import RIVALS

from .common import rotate

SHAPES = [(1_000_000, 3), (100_000, 32), (8192, 1000), (1024, 32000)]
N_COPIES = 2


class Functions:
    """Over the last axis, float32; a new array for each result."""

    params = (["logsumexp", "softmax", "log_softmax"], SHAPES, ["fastce", "scipy", "torch", "jax"])
    param_names = ("function", "shape", "rival")

    def setup(self, function: str, shape: tuple[int, int], rival: str) -> None:
        if not RIVALS[rival].installed:
            raise NotImplementedError(f"{rival} is not installed")
        n_threads = fastce.get_num_threads()
        arrays = [random_batch(shape, "float32", n_threads).logits + k for k in range(N_COPIES)]
        self.call = rotate(FUNCTIONS[function][rival](x, n_threads=n_threads) for x in arrays)

    def time_function(self, *_: object) -> None:
        self.call()


class Options:
    """Loss and gradient, given `out`; the Hessian is a new array."""

    params = (
        [
            *("plain", "weight", "smoothing", "smoothing and weight", "probabilities", "z_loss"),
            *("temperature", "softcap", "hess", "focal", "hinge", "margin"),
        ],
        SHAPES,
    )
    param_names = ("option", "shape")

    def setup(self, option: str, shape: tuple[int, int]) -> None:
        batch = random_batch(shape, "float32", fastce.get_num_threads())
        rng = np.random.default_rng(0)
        x, y, out = batch.logits, batch.labels, batch.out
        weight = rng.random(shape[1], dtype=np.float32)
        q = fastce.softmax(rng.standard_normal(shape, dtype=np.float32), axis=1)
        grad = fastce.cross_entropy_and_grad
        self.call = {
            "plain": lambda: grad(x, y, out=out),
            "weight": lambda: grad(x, y, weight=weight, out=out),
            "smoothing": lambda: grad(x, y, label_smoothing=0.1, out=out),
            "smoothing and weight": lambda: grad(x, y, label_smoothing=0.1, weight=weight, out=out),
            "probabilities": lambda: grad(x, q, out=out),
            "z_loss": lambda: grad(x, y, z_loss=1e-4, out=out),
            "temperature": lambda: grad(x, y, temperature=2.0, out=out),
            "softcap": lambda: grad(x, y, softcap=30.0, out=out),
            "hess": lambda: fastce.cross_entropy_and_hess(x, y, out=out),
            "focal": lambda: fastce.focal_loss_and_grad(x, y, out=out),
            "hinge": lambda: fastce.hinge_loss_and_grad(x, y, kind="multi_margin", out=out),
            "margin": lambda: fastce.margin_cross_entropy_and_grad(x / 10, y, out=out),
        }[option]
        self.call()

    def time_loss_and_grad(self, *_: object) -> None:
        self.call()
