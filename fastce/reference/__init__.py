"""The NumPy twin of fastce: the same names, plain formulas, wide precision.

It is the oracle of the tests and the place to read what fastce computes: each module says its
formulas at its top, written so that no result is a difference of nearly equal numbers. Everything
runs in ``np.longdouble`` where that is wider than float64, else in 113-bit mpmath numbers in object
arrays (mpmath is needed on such platforms only, and only for this package). Results stay in that
wide precision; nothing here is fast.
"""

from __future__ import annotations

from fastce.reference import calibration, inference, information
from fastce.reference._arithmetic import ulp_distance
from fastce.reference.binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_and_grad,
    binary_cross_entropy_with_logits_and_hess,
    binary_focal_loss,
    binary_focal_loss_and_grad,
)
from fastce.reference.hinge import hinge_loss, hinge_loss_and_grad
from fastce.reference.linear import linear_cross_entropy, linear_cross_entropy_and_grad
from fastce.reference.probabilities import nll_loss
from fastce.reference.softmax import (
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_and_hess,
    focal_loss,
    focal_loss_and_grad,
    margin_cross_entropy,
    margin_cross_entropy_and_grad,
)
from fastce.reference.special import log_softmax, logsumexp, softmax

__all__ = [
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
    "hinge_loss",
    "hinge_loss_and_grad",
    "inference",
    "information",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "log_softmax",
    "logsumexp",
    "margin_cross_entropy",
    "margin_cross_entropy_and_grad",
    "nll_loss",
    "softmax",
    "ulp_distance",
]
