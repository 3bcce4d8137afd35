"""How far probabilities can be believed, and the temperature that makes them so."""

from __future__ import annotations

import math
import warnings
from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernels
from fastce._kernels.entry import advice, arrays, options

__all__ = ["ReliabilityCurve", "brier_score", "calibration_error", "fit_temperature", "reliability_curve"]

# Inverse temperatures: the range that scikit-learn looks in.
_LEAST, _MOST = math.exp(-10), math.exp(10)
# An inverse temperature is right to so much, relative to it: beyond a Newton step of that size its error is
# of the order of the square, and rounding errors of the sums are larger.
_TOLERANCE = 1e-8
# Numbers in the sample of the rows that the first steps make do with.
_FEW = 1 << 20


class ReliabilityCurve(NamedTuple):
    """What :func:`reliability_curve` returns: one entry for each bin."""

    confidence: NDArray
    accuracy: NDArray
    proportion: NDArray
    edges: NDArray


def fit_temperature(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    n_threads: int | None = None,
) -> float:
    r"""The temperature that minimises the cross-entropy of logits divided by it.

    .. math::
        T = \arg\min_T \sum_i s_i \, \ell_i(x_i / T), \qquad
        \frac{d\ell}{d\beta} = E_p[x] - x_y, \quad
        \frac{d^2\ell}{d\beta^2} = \mathrm{Var}_p[x], \quad \beta = 1/T

    Parameters
    ----------
    logits : array_like
        As in :func:`fastce.cross_entropy`; of probabilities, their logarithms. With the shape of `target`:
        one logit for each row, that of class 1 of two, while class 0 has 0.
    target : array_like of int
        Class index of each row: the logits' shape without `axis`; or that of the logits, with classes 0
        and 1.
    axis : int, default -1
        The axis of the classes.
    sample_weight : array_like, optional
        Weight of each row, not negative; of the target's shape.
    ignore_index : int or None, default -100
        The label of rows to leave out.
    n_threads : int, optional
        As in :func:`fastce.cross_entropy`.

    Returns
    -------
    float
        In :math:`[e^{-10}, e^{10}]`, where scikit-learn looks for it too.

    Raises
    ------
    IndexError, TypeError
        As :func:`fastce.cross_entropy`.
    ValueError
        As :func:`fastce.cross_entropy`; no rows, or none that count; a row whose loss is not finite at any
        temperature.

    Warns
    -----
    RuntimeWarning
        The minimum is beyond the range, whose end is returned: every row's target has the largest logit, so
        that the loss falls without end as T falls to 0; or the logits are no better than none, and T grows
        without end.

    See Also
    --------
    fastce.sklearn.TemperatureScaling : for a fitted classifier.

    Notes
    -----
    Newton's method for :math:`\beta`, in which the loss is convex, kept between values where the derivative
    has different signs. One read of the logits gives both derivatives; most fits take 5 to 8. Temperature
    scaling is due to [1]_.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce import calibration
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> T = calibration.fit_temperature(logits, [0, 0, 1, 1])
    >>> round(T, 6)  # three of four are right: 4 / T is the logarithm of 3
    3.640957
    """
    rows = _Rows(logits, target, axis, sample_weight, ignore_index, True, n_threads)
    if not rows.any:
        raise ValueError(
            "no row counts: target is empty or all of it is ignored or weighs 0; expected at least one"
        )
    inverse, at_end = 1.0, False
    step = rows.size // _FEW
    if 16 <= step <= max(rows.shape, default=0):  # a few long rows have no sample
        inverse, at_end = _minimum(rows.sample(step), 1.0)
    inverse, at_end = _minimum(rows, 1.0 if at_end else inverse)
    if at_end:
        _warn_of_bound(1 / inverse)
    return 1 / inverse


def _minimum(rows: _Rows, inverse: float) -> tuple[float, bool]:
    """The best inverse temperature, and whether it is an end of the range."""
    low, high, before = _LEAST, _MOST, math.inf  # the ends count as unknown until one of them is looked at
    for _ in range(200):  # halvings of the logarithm's range alone end it long before
        slope, curvature = rows.moments(inverse)
        if slope == curvature == 0:  # nothing is left of the loss, or there never was anything to gain
            slope = rows.moments(_LEAST)[0]
            inverse = _MOST if slope < 0 else inverse
        if slope == 0:
            break
        if inverse == (_LEAST if slope > 0 else _MOST):
            return inverse, True
        if slope > 0:  # Newton for the logarithm, whose second derivative is positive here
            high, following = inverse, inverse * math.exp(-slope / (slope + inverse * curvature))
        else:
            low, step = inverse, -slope / curvature if curvature > 0 else math.inf
            # Steps that do not shrink go along the flat end of the loss.
            following = (
                8 * inverse if step > min(7 * inverse, before / 2) and high == _MOST else inverse + step
            )
            before = step
        if following <= low:
            following = low if low == _LEAST else math.sqrt(low * high)
        if following >= high:
            following = high if high == _MOST else math.sqrt(low * high)
        change, inverse = abs(following / inverse - 1), following
        if change <= _TOLERANCE and inverse not in (_LEAST, _MOST):  # an end is looked at
            break
    return inverse, False


def calibration_error(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    norm: str = "l1",
    from_logits: bool = True,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    n_threads: int | None = None,
) -> float:
    r"""Calibration error: how far confidence and accuracy are apart, bin by bin of the confidence.

    .. math::
        \mathrm{ECE} = \sum_b w_b |a_b - c_b|, \qquad
        \mathrm{RMSCE} = \Bigl( \sum_b w_b (a_b - c_b)^2 \Bigr)^{1/2}, \qquad
        \mathrm{MCE} = \max_b |a_b - c_b|

    with the accuracy a, the mean confidence c and the share w of each bin's rows.

    Parameters
    ----------
    logits : array_like
        As in :func:`fastce.cross_entropy`; or probabilities, with ``from_logits=False``. Confidence is the
        largest probability, and a row is right if the first class that has it is the target. With the shape
        of `target`: one number for each row, for class 1 of two. Confidence is the probability of class 1
        then, and a row of class 1 is right.
    target : array_like of int
        Class index of each row: the logits' shape without `axis`; or that of the logits, with classes 0
        and 1.
    n_bins : int, default 15
        Bins of equal width from 0 to 1. The lower edge belongs to a bin; a confidence of exactly 1 has a bin
        of its own, as in torchmetrics.
    norm : {'l1', 'l2', 'max'}, default 'l1'
        ECE, RMSCE or MCE.
    from_logits : bool, default True
        False: `logits` are probabilities, which are not renormalised.
    axis, sample_weight, ignore_index, n_threads
        As in :func:`fit_temperature`.

    Returns
    -------
    float
        NaN if no row counts.

    Raises
    ------
    IndexError, TypeError
        As :func:`fastce.cross_entropy`.
    ValueError
        As :func:`fastce.cross_entropy`; a probability outside [0, 1]; logits without probabilities: NaN,
        +inf or nothing but -inf; an `n_bins` below 1, another `norm`.

    See Also
    --------
    reliability_curve : what is added up here.

    Notes
    -----
    The logits are read once. Errors are defined in [1]_.

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
       binning", AAAI 2015.

    Examples
    --------
    >>> from fastce import calibration
    >>> probs = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.05, 0.95]]
    >>> round(calibration.calibration_error(probs, [0, 1, 1, 1], from_logits=False), 6)
    0.3125
    >>> round(calibration.calibration_error(probs, [0, 1, 1, 1], norm="max", from_logits=False), 6)
    0.8
    """
    if norm not in ("l1", "l2", "max"):
        raise ValueError(f"norm is {norm!r}; expected 'l1', 'l2' or 'max'")
    confidence, accuracy, proportion, _ = _curve(
        n_bins, _Rows(logits, target, axis, sample_weight, ignore_index, from_logits, n_threads)
    )
    used = proportion > 0
    if not used.any():
        return math.nan
    distance = np.abs(accuracy - confidence)[used]
    if norm == "max":
        return float(distance.max())
    if norm == "l2":
        return math.sqrt(np.sum(distance**2 * proportion[used]))
    return float(np.sum(distance * proportion[used]))


def reliability_curve(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    from_logits: bool = True,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    n_threads: int | None = None,
) -> ReliabilityCurve:
    """Mean confidence and accuracy of the rows in each bin of the confidence.

    Parameters
    ----------
    logits, target, n_bins, from_logits, axis, sample_weight, ignore_index, n_threads
        As in :func:`calibration_error`.

    Returns
    -------
    ReliabilityCurve
        A named tuple: `confidence`, `accuracy` and `proportion` of shape ``(n_bins + 1,)``, the last entry
        that of the rows whose confidence is exactly 1, and `edges` of shape ``(n_bins + 1,)``, the lower end
        of each bin. Empty bins have proportion 0 and NaN elsewhere.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`calibration_error`.

    See Also
    --------
    calibration_error : a number of it.

    Notes
    -----
    The logits are read once.

    Examples
    --------
    >>> from fastce import calibration
    >>> probs = [0.1, 0.2, 0.6, 0.7, 0.9]  # of class 1
    >>> curve = calibration.reliability_curve(probs, [0, 1, 1, 0, 1], n_bins=2, from_logits=False)
    >>> curve.accuracy.round(3)
    array([0.5  , 0.667,   nan])
    >>> curve.confidence.round(3)
    array([0.15 , 0.733,   nan])
    """
    return _curve(n_bins, _Rows(logits, target, axis, sample_weight, ignore_index, from_logits, n_threads))


def brier_score(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    from_logits: bool = True,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    n_threads: int | None = None,
) -> float:
    r"""Brier score: the mean squared distance of the probabilities from the target.

    .. math::
        \frac{\sum_i s_i \sum_j (p_{ij} - [j = y_i])^2}{\sum_i s_i}

    Parameters
    ----------
    logits, target, from_logits, axis, sample_weight, ignore_index, n_threads
        As in :func:`calibration_error`.

    Returns
    -------
    float
        From 0 to 2, the sum over all classes of [1]_. Of one number for each row, for class 1 of two: the
        customary half of it, :math:`(p_1 - y)^2`. NaN if no row counts.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`calibration_error`.

    Notes
    -----
    The logits are read once; :math:`1 - p_y` is the sum of the other classes' probabilities, so that sure
    rows keep their digits.

    References
    ----------
    .. [1] G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
       78 (1950), 1-3.

    Examples
    --------
    >>> from fastce import calibration
    >>> round(calibration.brier_score([[0.9, 0.1], [0.6, 0.4]], [0, 1], from_logits=False), 6)
    0.37
    >>> round(calibration.brier_score([0.1, 0.4], [0, 1], from_logits=False), 6)
    0.185
    """
    rows = _Rows(logits, target, axis, sample_weight, ignore_index, from_logits, n_threads)
    _, _, score, weight = rows.scores()
    total = weight.sum()
    return float((weight * score).sum() / total) if total else math.nan


def _curve(n_bins: int, rows: _Rows) -> ReliabilityCurve:
    n_bins = options.checked_index(n_bins, "n_bins", "an int of at least 1")
    if n_bins < 1:
        raise ValueError(f"n_bins is {advice.shown(n_bins)}; expected an int of at least 1")
    confidence, hit, _, weight = rows.scores()
    edges = np.linspace(0, 1, n_bins + 1, dtype=confidence.dtype)
    place = np.searchsorted(edges, confidence, side="right") - 1
    total = np.bincount(place, weight, n_bins + 1)
    with np.errstate(invalid="ignore"):
        return ReliabilityCurve(
            np.bincount(place, weight * confidence, n_bins + 1) / total,
            np.bincount(place, weight * hit, n_bins + 1) / total,
            total / total.sum(),
            edges,
        )


def _warn_of_bound(temperature: float) -> None:
    reason = (
        "every target has the largest logit of its row: the loss falls without end as the temperature does"
        if temperature < 1
        else "the loss falls without end as the temperature grows: the logits say nothing of the targets"
    )
    warnings.warn(
        f"{reason}. The temperature is {temperature:.3g}, the end of the range", RuntimeWarning, stacklevel=3
    )


class _Rows:
    """Checked arguments."""

    size: int  # how many logits there are
    any: bool  # whether a row counts
    whole: _Rows | None = None  # what this is a sample of

    def __init__(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        axis: int,
        sample_weight: ArrayLike | None,
        ignore_index: int | None,
        from_logits: bool,
        n_threads: int | None,
    ) -> None:
        x = arrays.float_array(logits, "logits")
        y = arrays.any_array(target, "target")
        if y.dtype.kind not in "iu" and not (y.size == 0 and not hasattr(target, "dtype")):
            raise TypeError(f"target has dtype {y.dtype}; expected class indices of an integer dtype")
        binary = x.shape == y.shape
        if not binary:
            x = np.moveaxis(x, arrays.normalized_axis(axis, x.ndim), -1)
        self.shape = x.shape if binary else x.shape[:-1]
        if y.shape != self.shape:
            raise ValueError(
                f"target has shape {y.shape} and logits have shape {np.shape(logits)}; expected "
                f"the logits' shape, or that without the class axis {axis}"
            )
        n_classes = 2 if binary else x.shape[-1]
        if n_classes == 0 and y.size:
            raise ValueError(
                f"logits have shape {np.shape(logits)}, no classes along axis {axis}; expected at least one"
            )
        self.from_logits = bool(from_logits)
        self.weight = None
        label = _labels(y, n_classes, ignore_index)
        if sample_weight is not None:
            weight = arrays.float_array(sample_weight, "sample_weight")
            if weight.shape != self.shape:
                raise ValueError(
                    f"sample_weight has shape {weight.shape}; expected {self.shape}, one for each row"
                )
            with np.errstate(invalid="ignore"):
                self.weight = np.ascontiguousarray(weight, np.float64)
            if not ((self.weight >= 0) & (self.weight < np.inf)).all():
                raise ValueError(
                    "sample_weight holds negative, infinite or NaN weights; expected finite ones from 0"
                )
            label[self.weight == 0] = -1
        self.size, self.any = x.size, bool((label >= 0).any())
        self._arguments = x, label, self.weight, self.from_logits, binary, n_threads
        self._rows = _kernels.calibration.Rows(*self._arguments)

    def sample(self, step: int) -> _Rows:
        """One of so many along the longest batch axis."""
        part = copy(self)
        part.whole = self
        x, label, weight, *options = self._arguments
        where = (slice(None),) * int(np.argmax(self.shape)) + (slice(None, None, step),)
        weight = None if weight is None else np.ascontiguousarray(weight[where])
        part._rows = _kernels.calibration.Rows(x[where], np.ascontiguousarray(label[where]), weight, *options)
        return part

    def moments(self, inverse: float) -> tuple[float, float]:
        """The derivatives of the loss by the inverse temperature."""
        slope, curvature, bad = self._rows.moments(inverse)
        if bad >= 0 and self.whole:  # which knows the row's place
            return self.whole.moments(inverse)
        if bad >= 0:
            self._refuse(bad, "or -inf as the target's")
        return slope, curvature

    def scores(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Confidence, whether it is right, squared distance and weight of each row: 0 of those left out."""
        confidence, hit, score = map(np.ravel, self._rows.scores())
        if np.isnan(confidence.sum()):
            self._refuse(int(np.isnan(confidence).argmax()), "or nothing but -inf")
        used = hit >= 0
        return confidence, hit, score, used if self.weight is None else np.where(used, self.weight.ravel(), 0)

    def _refuse(self, row: int, what: str) -> None:
        place = ", ".join(str(i) for i in np.unravel_index(row, self.shape)) if self.shape else ""
        what = f"NaN, +inf {what}" if self.from_logits else "a number outside [0, 1]"
        raise ValueError(
            f"logits[{place}] holds {what}; expected a row with probabilities, or ignore_index as its target"
        )


def _labels(target: NDArray, n_classes: int, ignore_index: int | None) -> NDArray:
    """Class indices as intp, -1 for rows to leave out."""
    if ignore_index is None:
        ignored = np.zeros(target.shape, bool)
    else:
        ignored = target == options.checked_index(ignore_index, "ignore_index", "an int or None")
    label = target.astype(np.intp, order="C")
    if (bad := ~ignored & (label.view(np.uintp) >= n_classes)).any():  # what is negative is large there
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f"target[{', '.join(map(str, place))}]" if place else "target"
        raise IndexError(
            f"{where} is {target[place]}; expected a class index in [0, {n_classes})"
            + ("" if ignore_index is None else f" or ignore_index={advice.shown(ignore_index)}")
        )
    label[ignored] = -1
    return label
