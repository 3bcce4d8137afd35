"""The linear layer and its loss in one, and the function that solvers of linear models see."""

from fastce.linear.objective import Objective, objective

__all__ = ["Objective", "objective"]
