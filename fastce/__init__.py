"""Cross-entropy, its gradient and its relatives on CPUs: the price of a copy, every digit."""

from fastce import calibration, inference, information
from fastce.binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_and_grad,
    binary_cross_entropy_with_logits_and_hess,
    binary_focal_loss,
    binary_focal_loss_and_grad,
)
from fastce.config import __version__, get_num_threads, set_num_threads, show_config
from fastce.hinge import hinge_loss, hinge_loss_and_grad
from fastce.label_losses import (
    focal_loss,
    focal_loss_and_grad,
    margin_cross_entropy,
    margin_cross_entropy_and_grad,
    nll_loss,
)
from fastce.linear import LinearGrad, linear_cross_entropy, linear_cross_entropy_and_grad
from fastce.losses import cross_entropy, cross_entropy_and_grad, cross_entropy_and_hess
from fastce.metrics import log_loss
from fastce.special import log_softmax, logsumexp, softmax

__all__ = [
    "LinearGrad",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_and_grad",
    "binary_cross_entropy_with_logits_and_hess",
    "binary_focal_loss",
    "binary_focal_loss_and_grad",
    "calibration",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_and_hess",
    "focal_loss",
    "focal_loss_and_grad",
    "get_num_threads",
    "hinge_loss",
    "hinge_loss_and_grad",
    "inference",
    "information",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "log_loss",
    "log_softmax",
    "logsumexp",
    "margin_cross_entropy",
    "margin_cross_entropy_and_grad",
    "nll_loss",
    "set_num_threads",
    "show_config",
    "softmax",
]
