"""The losses as functions and modules of PyTorch, for tensors on the CPU.

They take the place of those of the same name in ``torch.nn.functional`` and ``torch.nn``. PyTorch is imported
by whoever imports this module, and by no other part of fastce.
"""

from fastce.torch.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    focal_loss,
    linear_cross_entropy,
)
from fastce.torch.modules import BCEWithLogitsLoss, CrossEntropyLoss, FocalLoss, LinearCrossEntropyLoss
from fastce.torch.special import log_softmax, logsumexp, softmax

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "LinearCrossEntropyLoss",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "focal_loss",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "softmax",
]
