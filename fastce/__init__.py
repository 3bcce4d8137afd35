"""Softmax cross-entropy and its gradient on CPUs: the price of a copy, every digit."""

from fastce.config import get_num_threads, set_num_threads, show_config
from fastce.losses import cross_entropy, cross_entropy_and_grad

__all__ = [
    "cross_entropy",
    "cross_entropy_and_grad",
    "get_num_threads",
    "set_num_threads",
    "show_config",
]
