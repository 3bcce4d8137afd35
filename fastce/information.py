"""Information measures of given distributions: probabilities in, nats or bits out."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from fastce._kernels import computed_by

__all__ = ["cross_entropy", "entropy", "kl_divergence", "self_information"]


@computed_by("information", "self_information")
def self_information(p: ArrayLike, *, base: float | None = None) -> Any:
    r"""Information content of events of given probabilities, elementwise.

    .. math::
        I(p) = -\log p

    Parameters
    ----------
    p : array_like
        Probabilities, of any shape. float64, or float32, float16 and bfloat16 (of ``ml_dtypes``); integers
        and bools convert to float64.
    base : float, optional
        Of the logarithm: 2 for bits, 10 for hartleys. Default: e, nats.

    Returns
    -------
    ndarray or NumPy scalar
        Of the shape of `p`; float64, or float32 for float32, float16 and bfloat16. +inf where p is 0.

    Raises
    ------
    TypeError
        A dtype that is not listed above; a masked array; a `base` that is not a number.
    ValueError
        A value that is negative, infinite or NaN, which is named with its place; a `base` that is not
        positive and finite, or is 1.

    See Also
    --------
    entropy : its mean over a distribution.

    Notes
    -----
    Values above 1 are taken as they are and have negative information. Defined in [1]_.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27 (1948),
       379-423 and 623-656.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce import information
    >>> information.self_information([1.0, 0.5, 0.125, 0.0], base=2)
    array([ 0.,  1.,  3., inf])
    """


@computed_by("information", "entropy")
def entropy(p: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    r"""Entropy of distributions.

    .. math::
        H(p) = -\sum_j p_j \log p_j, \qquad 0 \log 0 = 0

    Parameters
    ----------
    p : array_like
        Probabilities, of any shape with at least one axis and of the dtypes of :func:`self_information`.
        They are not renormalised.
    axis : int, default -1
        The axis of the events; all others are batch axes.
    base : float, optional
        Of the logarithm: 2 for bits. Default: e, nats.

    Returns
    -------
    ndarray or NumPy scalar
        Of the shape of `p` without `axis`; float64, or float32 for float32, float16 and bfloat16.

    Raises
    ------
    TypeError, ValueError
        As in :func:`self_information`; and ``numpy.exceptions.AxisError``, a ValueError, for an `axis` that
        `p` does not have.

    Notes
    -----
    Within 4 ULP of the exact value where no probability is above 1: the terms are summed in twice float64's
    precision, those of narrower dtypes in float64. Defined in [1]_, theorem 2.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27 (1948),
       379-423 and 623-656.

    Examples
    --------
    >>> from fastce import information
    >>> information.entropy([0.5, 0.25, 0.25, 0.0], base=2)
    np.float64(1.5)
    """


@computed_by("information", "cross_entropy")
def cross_entropy(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    r"""Cross-entropy of distributions q relative to p.

    .. math::
        H(p, q) = -\sum_j p_j \log q_j, \qquad 0 \log 0 = 0

    Parameters
    ----------
    p, q : array_like
        Probabilities, of the dtypes of :func:`self_information`. Their shapes are broadcast as NumPy does.
        They are not renormalised.
    axis : int, default -1
        The axis of the events in the broadcast shape; all others are batch axes.
    base : float, optional
        Of the logarithm: 2 for bits. Default: e, nats.

    Returns
    -------
    ndarray or NumPy scalar
        Of the broadcast shape without `axis`; float64, or float32 if neither input is float64, integer or
        bool. +inf where some p is above 0 at q = 0.

    Raises
    ------
    TypeError, ValueError
        As in :func:`entropy`; and ValueError for shapes that do not broadcast.

    See Also
    --------
    fastce.cross_entropy : from logits, with its gradient.

    Notes
    -----
    Within 4 ULP of the exact value where no q is above 1. The expected length of a code made for q
    where p is true: [1]_, section 5.4.

    References
    ----------
    .. [1] T. M. Cover, J. A. Thomas, "Elements of Information Theory", 2nd edition, Wiley 2006.

    Examples
    --------
    >>> from fastce import information
    >>> information.cross_entropy([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], base=2)
    np.float64(1.75)
    >>> information.cross_entropy([0.5, 0.5], [1.0, 0.0])
    np.float64(inf)
    """


@computed_by("information", "kl_divergence")
def kl_divergence(p: ArrayLike, q: ArrayLike, *, axis: int = -1, base: float | None = None) -> Any:
    r"""Kullback-Leibler divergence of distributions p from q, without cancellation.

    .. math::
        D(p \,\|\, q) = \sum_j p_j \log \frac{p_j}{q_j} = H(p, q) - H(p)
        = \sum_j \Bigl( p_j \log \frac{p_j}{q_j} - p_j + q_j \Bigr) + \sum_j (p_j - q_j)

    Parameters
    ----------
    p, q, axis, base
        As in :func:`cross_entropy`.

    Returns
    -------
    ndarray or NumPy scalar
        As in :func:`cross_entropy`. Exactly 0 where p and q are equal, +inf where some p is above 0
        at q = 0.

    Raises
    ------
    TypeError, ValueError
        As in :func:`cross_entropy`.

    Notes
    -----
    The terms :math:`p_j \log (p_j / q_j)` have both signs and cancel where p is close to q. Those of the
    first sum on the right are not negative, and each is computed to a few ULP; the second sum, 0 for exact
    distributions, is added up in twice float64's precision. The result is within 8 ULP of the larger of the
    two sums (of float64's smallest normal number per term, if they are smaller): of :math:`p_j \log (p_j /
    q_j)` two thirds may cancel. As inputs are not
    renormalised, it holds what their rounding adds to or takes from their total, and may be negative by
    that. Defined in [1]_.

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical Statistics 22
       (1951), 79-86.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce import information
    >>> information.kl_divergence([1.0, 0.0], [0.5, 0.5], base=2)
    np.float64(1.0)
    >>> p, q = np.array([0.5, 0.5]), np.array([0.5 + 2**-40, 0.5 - 2**-40])
    >>> information.kl_divergence(p, q) == 2.0**-79  # and the next term of the series, 2**-157
    np.True_
    >>> np.sum(p * np.log(p / q)) == 2.0**-79
    np.False_
    """
