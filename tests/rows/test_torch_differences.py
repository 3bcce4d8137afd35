"""Where fastce and torch.nn.functional are known to differ, and special values on which they agree."""

import numpy as np
import pytest
from conftest import assert_ulp
from test_torch import F, theirs, torch

import fastce


def test_confident_rows():
    """torch has 0 where fastce has digits."""
    x, target = np.float32([[20, 0, 0]]), np.array([0])
    loss, grad = theirs(F.cross_entropy, x, target)
    assert loss == 0
    assert grad[0, 0] == 0
    loss, grad = fastce.cross_entropy_and_grad(x, target)
    exact = np.log1p(2 * np.exp(-20.0))
    assert_ulp(np.float32(loss), exact, 2)
    assert_ulp(grad[0, 0], -2 / (np.exp(20.0) + 2), 4)

    log_p = F.log_softmax(torch.tensor(x), 1).numpy()
    assert log_p[0, 0] == 0
    assert_ulp(fastce.log_softmax(x, 1)[0, 0], -exact, 4)


@pytest.mark.parametrize(("logit", "target"), [(-20.0, 0.0), (20.0, 1.0)])
def test_confident_binary_elements(logit, target):
    x, t = np.float32([logit]), np.float32([target])
    exact = np.exp(-20.0)  # to 1e-9
    got, grad = fastce.binary_cross_entropy_with_logits_and_grad(x, t)
    assert_ulp(np.float32(got), np.log1p(exact), 2)
    assert_ulp(grad, (1 - 2 * t) * exact / (1 + exact), 4)
    loss, its_grad = theirs(F.binary_cross_entropy_with_logits, x, t)
    assert loss == 0 or its_grad == 0  # one of the two in each case


def test_infinite_logits_of_the_binary_loss():
    """torch: NaN on the right side, and from a soft target of exactly 1."""
    x, t = np.float32([np.inf, -np.inf, np.inf, -np.inf]), np.float32([1, 0, 0, 1])
    loss, grad = fastce.binary_cross_entropy_with_logits_and_grad(x, t, reduction="none")
    assert loss.tolist() == [0, 0, np.inf, np.inf]
    assert grad.tolist() == [0, 0, 1, -1]
    expected = theirs(F.binary_cross_entropy_with_logits, x, t, reduction="none")[0]
    assert np.isnan(expected[:2]).all()


def test_all_rows_ignored():
    """Both say NaN for the mean of nothing, and both have a gradient of 0."""
    x, target = np.ones((2, 3), np.float32), np.array([-100, -100])
    for loss, grad in (theirs(F.cross_entropy, x, target), fastce.cross_entropy_and_grad(x, target)):
        assert np.isnan(loss)
        assert not grad.any()
    assert fastce.cross_entropy(x, target, normalizer=0.0) == 0
    assert np.isnan(fastce.nll_loss(x, target))


def test_ignored_rows_are_not_read():
    x, target = np.float32([[1, 2, 3], [np.nan] * 3]), np.array([1, -100])
    assert np.isnan(theirs(F.cross_entropy, x, target)[1][1]).all()
    assert fastce.cross_entropy_and_grad(x, target)[1][1].tolist() == [0, 0, 0]


def test_target_probability_0_where_the_logit_is_minus_infinity():
    x, q = np.float32([[1, 2, -np.inf]]), np.float32([[0.5, 0.5, 0]])
    assert np.isnan(theirs(F.cross_entropy, x, q)[0])
    loss, grad = fastce.cross_entropy_and_grad(x, q)
    assert_ulp(np.float32(loss), np.log1p(np.exp(-1.0)) + 0.5, 4)
    assert grad[0, 2] == 0


def test_target_with_minus_infinity():
    x, target = np.float32([[1, 2, -np.inf]]), np.array([2])
    for loss, grad in (theirs(F.cross_entropy, x, target), fastce.cross_entropy_and_grad(x, target)):
        assert loss == np.inf
        assert grad[0, 2] == -1
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("label", [3, -1, -7, 300])
def test_labels_out_of_range(label):
    """torch names the label; fastce also the place and the range, and takes every integer dtype."""
    x, target = np.ones((2, 3), np.float32), np.array([0, label])
    with pytest.raises((IndexError, RuntimeError)):
        theirs(F.cross_entropy, x, target)
    for function in (fastce.cross_entropy, fastce.cross_entropy_and_grad, fastce.nll_loss):
        with pytest.raises(IndexError, match=rf"{label}\b.*3"):
            function(x, target)
    with pytest.raises(RuntimeError):
        theirs(F.cross_entropy, x, np.array([0, 1], np.int16))
    assert np.isfinite(fastce.cross_entropy(x, np.array([0, 1], np.int16)))


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
def test_probabilities_out_of_range(value):
    p, target = np.float32([0.5, value]), np.float32([1, 0])
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        theirs(F.binary_cross_entropy, p, target)
    with pytest.raises(ValueError, match=str(value)):
        fastce.binary_cross_entropy(p, target)


@pytest.mark.parametrize("value", [-0.5, 2.0])
def test_binary_targets_out_of_range(value):
    """torch computes with them, and its loss may be negative."""
    x, target = np.float32([1.0, 3.0]), np.float32([0.5, value])
    assert np.isfinite(theirs(F.binary_cross_entropy_with_logits, x, target)[0])
    with pytest.raises(ValueError, match=str(value)):
        fastce.binary_cross_entropy_with_logits(x, target)


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_label_smoothing_below_0(value):
    """torch takes it for 0."""
    x, target = np.ones((1, 3), np.float32), np.array([1])
    smoothed = theirs(F.cross_entropy, x, target, label_smoothing=value)[0]
    assert smoothed == theirs(F.cross_entropy, x, target)[0]
    with pytest.raises(ValueError, match=f"label_smoothing is {value}"):
        fastce.cross_entropy(x, target, label_smoothing=value)


def test_log_softmax_of_infinity():
    """SciPy's answer, not torch's two NaN."""
    assert np.array_equal(fastce.log_softmax(np.float32([np.inf, 1])), [np.nan, -np.inf], equal_nan=True)
    assert np.isnan(F.log_softmax(torch.tensor([np.inf, 1]), 0).numpy()).all()


def test_a_class_weight_that_no_row_has():
    x, target, weight = np.float32([[1, 2, 3]]), np.array([1]), np.float32([np.nan, 1, 1])
    expected = theirs(F.cross_entropy, x, target, weight=weight)[0]
    assert fastce.cross_entropy(x, target, weight=weight) == pytest.approx(float(expected), rel=1e-6)
