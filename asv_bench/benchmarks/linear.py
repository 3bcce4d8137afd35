"""The linear layer and its loss: few weights by kernels, sparse rows, a language model's head by BLAS."""

import numpy as np

import fastce
from fastce.linear import objective

SHAPES = [(150, 4, 3), (200_000, 64, 10), (1_000_000, 10, 2), (20_000, 784, 10)]


class Objective:
    """Of a linear classifier, dense."""

    params = (SHAPES, ["float32", "float64"])
    param_names = ("shape", "dtype")

    def setup(self, shape: tuple[int, int, int], dtype: str) -> None:
        n_rows, n_features, n_classes = shape
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n_rows, n_features)).astype(dtype)
        self.f = objective(x, rng.integers(0, n_classes, n_rows), n_classes)
        self.coef = rng.standard_normal(self.f.shape)

    def time_loss_and_grad(self, *_: object) -> None:
        self.f.loss_and_grad(self.coef)

    def time_hessian_product(self, *_: object) -> None:
        self.f.hessian_product(self.coef, self.coef)


class Sparse:
    """CSR, as text is."""

    def setup(self) -> None:
        from scipy import sparse

        rng = np.random.default_rng(0)
        x = sparse.random_array((20_000, 50_000), density=0.002, rng=rng).tocsr()
        self.f = objective(x, rng.integers(0, 20, 20_000), 20)
        self.coef = rng.standard_normal(self.f.shape)

    def time_loss_and_grad(self) -> None:
        self.f.loss_and_grad(self.coef)


class Head:
    """Of a language model."""

    params = (["float32", "bfloat16"],)
    param_names = ("weights",)

    def setup(self, weights: str) -> None:
        import ml_dtypes

        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((1024, 512), dtype=np.float32)
        self.w = rng.standard_normal((32000, 512), dtype=np.float32) / 20
        if weights == "bfloat16":
            self.w = self.w.astype(ml_dtypes.bfloat16)
        self.y = rng.integers(0, 32000, 1024)
        self.out = fastce.LinearGrad(np.empty_like(self.x), np.empty_like(self.w), None)

    def time_loss(self, *_: object) -> None:
        fastce.linear_cross_entropy(self.x, self.w, self.y)

    def time_loss_and_grad(self, *_: object) -> None:
        fastce.linear_cross_entropy_and_grad(self.x, self.w, self.y, out=self.out)

    def peakmem_loss_and_grad(self, *_: object) -> None:
        fastce.linear_cross_entropy_and_grad(self.x, self.w, self.y, out=self.out)
