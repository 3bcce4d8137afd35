"""The linear layer and its loss in one, and the function that solvers of linear models see."""

from fastce.linear.losses import LinearGrad, linear_cross_entropy, linear_cross_entropy_and_grad
from fastce.linear.objective import Objective, Point, objective

__all__ = [
    "LinearGrad",
    "Objective",
    "Point",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "objective",
]
