"""Which anchor a row has is decided by its own numbers: no bit depends on neighbours, splits, threads."""

import numpy as np
import pytest
from bounds import bound_of, derivative_factor, loss_factor, scales
from conftest import DTYPES, FLOATS, GRAD_ULP, LOSS_ULP, assert_ulp, bits, compute_dtype

import fastce
from fastce import reference


def near_and_far(dtype, n_classes, n_rows=24):
    """Rows whose target is the maximum, near it, about what the format holds, and far from it, shuffled."""
    rng = np.random.default_rng(n_classes)
    x, y = rng.normal(size=(n_rows, n_classes)), rng.integers(0, n_classes, n_rows)
    gaps = [0, 3, 18.9, 19.1, 60, 79, 81, 250, 299, 301, 599, 601, 900, np.inf]
    for i, gap in enumerate(np.resize(gaps, n_rows)):
        x[i, y[i]] = -gap
        x[i, y[i] - 1] = 0.0 if gap else -1.0
    order = rng.permutation(n_rows)
    return x.astype(dtype)[order], y[order]


OPTIONS = [{}, {"temperature": 0.3}, {"temperature": 7.0}, {"label_smoothing": 0.1}, {"label_smoothing": 0.5}]


@pytest.mark.parametrize("n_classes", [2, 3, 10, 113, 1000, 9000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_and_far_rows(level, dtype, n_classes):
    x, y = near_and_far(dtype, n_classes)
    row = compute_dtype(dtype)
    for options in OPTIONS:
        given = {"reduction": "none", **options}
        loss, grad = fastce.cross_entropy_and_grad(x, y, **given)
        exact_loss, exact_grad = reference.cross_entropy_and_grad(x, y, **given)
        loss_scale, grad_scale = scales(x, y, given, exact_loss, exact_grad)
        bound = bound_of(GRAD_ULP, np.dtype(dtype), derivative_factor(y, options))
        assert_ulp(loss, exact_loss, LOSS_ULP[row] * loss_factor(y, options), loss_scale)
        assert_ulp(grad, exact_grad, bound, grad_scale)
        assert bits(fastce.cross_entropy(x, y, **given)) == bits(loss)
        in_place = x.copy()
        fastce.cross_entropy_and_grad(in_place, y, out=in_place, **given)
        assert bits(in_place) == bits(grad)
        for i in range(len(x)):  # each by itself, and with threads that share it
            for n_threads in (1, 4):
                alone = fastce.cross_entropy_and_grad(
                    x[i : i + 1], y[i : i + 1], n_threads=n_threads, **given
                )
                assert bits(alone[0]) == bits(loss[i])
                assert bits(alone[1]) == bits(grad[i])
        back = fastce.cross_entropy_and_grad(x[::-1], y[::-1], **given)
        assert bits(back[0][::-1]) == bits(loss)
        assert bits(back[1][::-1]) == bits(grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_numbers(level, dtype):
    """NaN, infinities and ignored rows among others leave those as they are."""
    for n_classes in (8, 12, 130, 9000):
        x, y = near_and_far(dtype, n_classes, 12)
        alone = fastce.cross_entropy_and_grad(x, y, reduction="none")
        spoilt, labels = np.repeat(x, 2, axis=0), np.repeat(y, 2)
        spoilt[1::2][0, 3], spoilt[1::2][1, 7], spoilt[1::2][2] = np.nan, np.inf, -np.inf
        labels[7::2] = -100
        loss, grad = fastce.cross_entropy_and_grad(spoilt, labels, reduction="none")
        assert bits(loss[::2]) == bits(alone[0])
        assert bits(grad[::2]) == bits(alone[1])
        assert np.isnan(loss[1:7:2]).all()
        assert np.isnan(grad[1:7:2].astype(float)).all()
        assert not loss[7::2].any()
        assert not grad[7::2].any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_smoothed_labels_at_the_ends_of_the_format(level, dtype):
    """Gaps whose sum overflows below 0; shares that are subnormal, of gradients that are not."""
    most = float(np.finfo(dtype).max)
    x = np.zeros((5, 9), dtype)
    x[:, [2, 5]] = 0.55 * most
    for options in ({}, {"sample_weight": np.array([1, 0, 2, -1, 0.5])}):
        given = {"label_smoothing": 0.5, "reduction": "none", **options}
        loss, grad = fastce.cross_entropy_and_grad(x, np.zeros(5, int), **given)
        exact_loss, exact_grad = reference.cross_entropy_and_grad(x, np.zeros(5, int), **given)
        assert np.isfinite(loss).all()
        assert_ulp(loss, exact_loss, 1.5 * LOSS_ULP[dtype])
        assert_ulp(grad, exact_grad, 1.5 * GRAD_ULP[dtype])
    tiny = float(np.finfo(dtype).tiny)
    x, given = np.array([[0, -2000, -3000]], dtype), {"label_smoothing": tiny * 1e-4, "normalizer": 1e-5}
    grad = fastce.cross_entropy_and_grad(x, [0], **given)[1]
    assert_ulp(grad, reference.cross_entropy_and_grad(x, [0], **given)[1], 1.5 * GRAD_ULP[dtype])
    x[0, 1] = -np.inf
    assert not np.isnan(fastce.cross_entropy(x, [0], label_smoothing=5e-324))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_log_sum_near_0_of_a_row_with_a_far_target(level, dtype):
    """A z-loss alone: its lse is what the maximum's own 1 leaves."""
    for n_classes in (3, 130, 9000):
        x = np.full((1, n_classes), -20, dtype)
        x[0, 1] = 0
        loss = fastce.cross_entropy(x, np.zeros_like(x), z_loss=1.0)
        exact = np.log1p((n_classes - 1) * np.exp(np.longdouble(-20))) ** 2
        assert abs(loss - exact) < 1e-5 * exact


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_losses_just_below_powers_of_two(level, dtype, n_classes):
    """There an ULP of the sum is two of the loss."""
    rng = np.random.default_rng(n_classes)
    n_rows = 20000
    loss = 2.0 ** -rng.integers(0, 25, n_rows) * (1 - 2.0 ** rng.uniform(-24, -4, n_rows))
    y = rng.integers(0, n_classes, n_rows)
    x = np.repeat(np.log(np.expm1(loss) / (n_classes - 1))[:, None], n_classes, axis=1)
    x += 1e-3 * rng.normal(size=x.shape)
    x[np.arange(n_rows), y] = 0
    x = (x + rng.uniform(-3, 3, (n_rows, 1))).astype(dtype)
    assert_ulp(
        fastce.cross_entropy(x, y, reduction="none"),
        reference.cross_entropy(x, y, reduction="none"),
        LOSS_ULP[np.dtype(dtype)],
    )


@pytest.mark.parametrize(
    "logits",  # the first is the target's
    [
        (-0.40629184, -7.3330407, -1.6735141),
        (5.9467506, 0.48720416, 1.1665308, 4.5190206),
        (5.9087324, 0.02673393, 4.5059867, -2.7993119, 0.70783275, -0.6921279, -2.813828),
    ],
)
def test_the_worst_losses_that_hill_climbing_found(level, logits):
    """2.43 ULP where the quotient of exps was handed to log1p with more than half an ULP beside it."""
    x = np.float32([logits])
    exact = reference.cross_entropy(x, [0], reduction="none")
    assert_ulp(fastce.cross_entropy(x, [0], reduction="none"), exact, LOSS_ULP[x.dtype])


@pytest.mark.parametrize("n_rows", [1, 3, 1000])
@pytest.mark.parametrize(
    ("logits", "label"),
    [
        (
            (1.9913810, 0.9938687, 1.1733465, -1.7433270, -4.6862550, 8.6708183, -0.6004393, 1.6899947),
            0,
        ),
        ((-1.0294381, -3.8722012, -4.3349919, 6.6220651, -8.1421437), 1),
        ((6.588876247, -2.449929237, -2.383095264), 2),
    ],
)
def test_the_worst_gradients_that_hill_climbing_found(level, logits, label, n_rows):
    """5.5 ULP of a mean where the row's factor was a quotient of rounded numbers, 3 now."""
    x, y = np.tile(np.float32(logits), (n_rows, 1)), np.full(n_rows, label)
    exact = reference.cross_entropy_and_grad(x, y)[1]
    assert_ulp(fastce.cross_entropy_and_grad(x, y)[1], exact, GRAD_ULP[x.dtype])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_the_only_finite_class_of_far_rows(level, dtype):
    """It has all of the probability, exactly, next to rows of any kind."""
    rng = np.random.default_rng(0)
    for n_classes in (2, 3, 8, 12):
        x, y = rng.normal(size=(64, n_classes)).astype(dtype), rng.integers(0, n_classes, 64)
        for i in range(0, 64, 3):
            largest = x[i, y[i] - 1]
            x[i] = -np.inf
            x[i, y[i] - 1] = 100 * largest
        _, grad = fastce.cross_entropy_and_grad(x, y, reduction="sum")
        for i in range(0, 64, 3):
            expected = np.zeros(n_classes, dtype)
            expected[y[i]], expected[y[i] - 1] = -1, 1
            assert (grad[i] == expected).all()


@pytest.mark.parametrize("n_classes", [3, 12])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_no_gradient_off_the_target_is_above_the_factor(level, dtype, n_classes, rng):
    """Where one class has all of the mass, whatever was rounded up on the way to its gradient."""
    n_rows, furthest = 40_000, 75 if dtype == np.float32 else 500
    x = np.full((n_rows, n_classes), -1e5, dtype)
    x[:, 0] = rng.uniform(-200, 200, n_rows)
    x[:, 1] = x[:, 0] + rng.uniform(40, furthest, n_rows)
    weight = rng.uniform(0.3, 3, n_rows)
    for given, normalizer in ((None, 0.7), (None, 3.0), (weight, 0.7)):
        labels = np.zeros(n_rows, int)
        grad = fastce.cross_entropy_and_grad(x, labels, sample_weight=given, normalizer=normalizer)[1]
        factor = ((1 if given is None else weight) / normalizer * np.ones(n_rows)).astype(dtype)
        assert (grad[:, 1] <= factor).all()
        assert_ulp(grad[:, 1], factor, GRAD_ULP[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_gradients_of_rows_with_one_class_that_has_all(level, dtype, rng):
    """What keeps the largest gradient of a row at its factor leaves the others as they are."""
    x = rng.normal(0, 20, (20_000, 12)).astype(dtype)
    y = x.argmin(axis=-1)
    for given in (None, rng.uniform(0.5, 2, len(y))):
        options = {"sample_weight": given, "normalizer": 0.7}
        grad = fastce.cross_entropy_and_grad(x, y, **options)[1]
        assert_ulp(grad, reference.cross_entropy_and_grad(x, y, **options)[1], GRAD_ULP[dtype])


@pytest.mark.parametrize(
    ("logits", "weight"),  # the first is the target's
    [
        ((15.207582473754883, -1.0174980163574219, -7.286590099334717), 1.3),
        (
            (
                6.121424198150635,
                -13.82199478149414,
                -6.819674968719482,
                0.4721531271934509,
                -6.520116329193115,
            ),
            1.1,
        ),
    ],
)
def test_weighted_losses_are_rounded_once(level, logits, weight):
    """2.2 ULP where a rounded loss was multiplied by its weight and rounded again."""
    x = np.float32([logits])
    given = {"sample_weight": [weight], "reduction": "none"}
    exact = reference.cross_entropy(x, [0], **given)
    assert_ulp(fastce.cross_entropy(x, [0], **given), exact, LOSS_ULP[x.dtype])


@pytest.mark.parametrize("n_classes", [2, 3, 10, 130])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_a_weight_of_1_is_as_good_as_none(level, dtype, n_classes):
    """Next to others too, also for an ignored row, whatever that holds."""
    x, y = near_and_far(dtype, n_classes, 64)
    weight = np.random.default_rng(0).choice([1, 0.3, 1.7], 64)
    loss, grad = fastce.cross_entropy_and_grad(x, y, reduction="none")
    weighted_loss, weighted_grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight, reduction="none")
    third = fastce.cross_entropy_and_grad(x, y, normalizer=3)[1]  # the factor has more digits than the logits
    weighted_third = fastce.cross_entropy_and_grad(x, y, sample_weight=weight, normalizer=3)[1]
    assert bits(weighted_third[weight == 1]) == bits(third[weight == 1])
    assert bits(weighted_loss[weight == 1]) == bits(loss[weight == 1])
    assert bits(weighted_grad[weight == 1]) == bits(grad[weight == 1])
    y[::5] = -100
    x[::10] = np.nan
    kept = y >= 0
    some_loss, some_grad = fastce.cross_entropy_and_grad(x, y, sample_weight=weight, reduction="none")
    assert bits(some_loss[kept]) == bits(weighted_loss[kept])
    assert bits(some_grad[kept]) == bits(weighted_grad[kept])
    assert not some_loss[~kept].any()
    assert not some_grad[~kept].any()


@pytest.mark.parametrize("n_classes", [2, 3, 9])
def test_a_factor_just_above_half_an_ulp(level, n_classes):
    """Rounded once more it would be above the weight, and so would the gradient."""
    weight = np.float64(np.float32(1.0000001)) + 2.0**-24 * (1 - 2.0**-25)
    x = np.zeros((1, n_classes), np.float32)
    x[0, -1] = 1000
    grad = fastce.cross_entropy_and_grad(x, [0], sample_weight=[weight], reduction="none")[1]
    assert grad[0, -1] == -grad[0, 0] == np.float32(weight)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n_classes", [2, 10, 300])
def test_sums_know_no_layout_of_labels(level, dtype, n_classes, rng):
    """Nor whether a gradient is made on the way."""
    for _ in range(20):
        x, y = rng.normal(size=(9, 13, n_classes)).astype(dtype), rng.integers(0, n_classes, (9, 13))
        options = {"sample_weight": rng.random((9, 13)), "reduction": "sum"}
        total = fastce.cross_entropy(x, y, axis=-1, **options)
        assert fastce.cross_entropy(x, np.asfortranarray(y), axis=-1, **options) == total
        assert fastce.cross_entropy_and_grad(x, y, axis=-1, **options)[0] == total
