"""Calls that a faulty walk, factor or sum would get wrong while all others stay right."""

import ml_dtypes
import numpy as np
import pytest
from conftest import DTYPES, FLOATS, GRAD_ULP, LOSS_ULP, assert_ulp, bits

import fastce
from fastce import reference


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_padded_batches_of_equal_strides(dtype, rng):
    """Logits, targets and weights that skip the same row of every batch: their two batch axes are not one."""
    b, t = rng.normal(size=(4, 4, 5)).astype(dtype), np.arange(16).reshape(4, 4) % 5
    w, o = rng.uniform(0.5, 2, (4, 4)), np.full((4, 4, 5), 7, dtype)
    x, y, s, out = b[:, :3], t[:, :3], w[:, :3], o[:, :3]
    for options in ({}, {"label_smoothing": 0.1}):
        for some, dense in (({}, {}), ({"sample_weight": s}, {"sample_weight": s.copy()})):
            expected = fastce.cross_entropy_and_hess(x.copy(), y.copy(), reduction="none", **dense, **options)
            got = fastce.cross_entropy_and_hess(x, y, reduction="none", **some, **options)
            assert [bits(a) for a in got] == [bits(a) for a in expected]
            by_mean = fastce.cross_entropy_and_grad(x.copy(), y.copy(), **dense, **options)
            loss, grad = fastce.cross_entropy_and_grad(x, y, out=out, **some, **options)
            assert (loss, bits(grad)) == (by_mean[0], bits(by_mean[1]))
            assert loss == fastce.cross_entropy(x, y, **some, **options)
            assert (o[:, 3] == 7).all()
    exact = reference.cross_entropy(x, y, reduction="none")
    for logits, target in ((x, y), (x.copy(), y), (x, y.copy())):  # one array skips rows, or both
        assert_ulp(fastce.cross_entropy(logits, target, reduction="none"), exact, LOSS_ULP[dtype])
        loss = fastce.cross_entropy_and_grad(logits, target, sample_weight=s, reduction="none")[0]
        assert_ulp(loss, exact * s, LOSS_ULP[dtype])
    q = np.full((4, 4, 5), 0.2, dtype)[:, :3]
    got = fastce.cross_entropy(x, q, reduction="none")
    assert_ulp(got, reference.cross_entropy(x, q, reduction="none"), LOSS_ULP[dtype])


def test_a_temperature_comes_before_a_weight():
    x = np.array([-1, 1]) * np.finfo(float).max
    loss = fastce.cross_entropy(x, 0, temperature=8, sample_weight=2.5, reduction="none")
    assert loss == 0.625 * np.finfo(float).max


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0000001}], ids=["plain", "temperature"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weights_that_overflow(dtype, options):
    """A coefficient beyond the largest number of the dtype, or lifted beyond, times an exp of 0, is 0."""
    big = 1e75 if dtype == np.float32 else 1e250
    for n_classes in (3, 60, 130, 9000):
        x = np.full((3, n_classes), -np.inf, dtype)
        x[:, 0], x[1, 1] = 0, -2000
        x[2, 1] = -5
        y = np.array([0, 1, 1])
        for weight in (big, -big):
            given = {"sample_weight": np.full(3, weight), "reduction": "none", **options}
            grad = fastce.cross_entropy_and_grad(x, y, **given)[1]
            exact = reference.cross_entropy_and_grad(x, y, **given)[1]
            assert not np.isnan(grad).any()
            assert_ulp(grad, exact, GRAD_ULP[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_gradient_is_minus_0(dtype):
    """Where the target is certain: p_y - 1 is 0, not -0."""
    for n_classes in (1, 2, 10, 57, 130, 9000):
        for lead in (800, 3000):
            x = np.zeros((4, n_classes), dtype)
            x[:, 0] = lead
            y = np.array([0, 0, 0, -100])
            q = np.zeros(x.shape, dtype)
            q[:, 0] = 1
            for grad in (
                fastce.cross_entropy_and_grad(x, y)[1],
                fastce.cross_entropy_and_grad(x, y, sample_weight=[1, 0, 2, 1], reduction="none")[1],
                fastce.cross_entropy_and_grad(x, q)[1],
                fastce.focal_loss_and_grad(x, y)[1],
                fastce.focal_loss_and_grad(x, y, gamma=0)[1],
                fastce.margin_cross_entropy_and_grad(np.sign(x - 1), y, scale=lead)[1],
            ):
                grad = grad.astype(np.float64)
                assert not np.signbit(grad[grad == 0]).any()


HARD_ROWS = [
    (["-0x1.90aef2724117fp+7", *["-0x1.9c0261335a95fp+7"] * 9], 0),
    (
        [
            "-0x1.81c5408b8cd3cp+5",
            "-0x1.ddfdc0788a905p+4",
            "-0x1.7bece52b3d443p+5",
            "-0x1.0ab9558dbec6dp+5",
            "-0x1.31b531d78437ep+5",
        ],
        1,
    ),
    # The worst losses that a search by mutation found at each level: 2.5 to 2.6 ULP.
    (["0x1.45db309ffdae1p-5", "-0x1.13f2c70ae031bp-4", "-0x1.cf7cfd6637adcp-1"], 1),
    (["0x1.cf2f5bcdf1083p-2", "-0x1.6315e5b79e776p-2", "0x1.b92ff9def6d06p-2"], 2),
]


@pytest.mark.parametrize(("row", "y"), HARD_ROWS, ids=["apart", "five", "v4", "baseline"])
def test_rows_that_were_hard(row, y):
    x = np.array([[float.fromhex(v) for v in row]] * 9)
    exact, exact_grad = reference.cross_entropy_and_grad(x[0], y)
    for logits, axis in ((x, 1), (np.asfortranarray(x), 1), (x[:1], 1), (x.T, 0), (x.T.copy(), 0)):
        target = np.full(logits.shape[1 - axis], y)
        loss, grad = fastce.cross_entropy_and_grad(logits, target, axis=axis, reduction="none")
        assert_ulp(loss, np.full(loss.shape, exact), LOSS_ULP[x.dtype])
        grad = np.moveaxis(grad, axis, -1)
        assert_ulp(grad, np.broadcast_to(exact_grad, grad.shape), GRAD_ULP[x.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_classes_far_apart(dtype, rng):
    """A class axis whose elements are pages from each other, and from those of the target and the outputs."""
    for n_classes in (3, 60, 300, 9000):
        x = rng.normal(size=(3, n_classes)).astype(dtype)
        q = rng.random(x.shape).astype(dtype)
        y = rng.integers(n_classes, size=3)
        step = 4099 if n_classes < 9000 else 67

        def apart(a, step=step):
            memory = np.zeros((a.shape[1], step), a.dtype)
            memory[:, 5:8] = a.T
            return memory[:, 5:8].T

        # Rows stand side by side in memory then, which another walk may take: other last bits.
        for target, options in (
            (y, {}),
            (y, {"label_smoothing": 0.1}),
            (q, {}),
            (apart(q), {}),
            (y, {"softcap": 3.0}),
        ):
            dense = target if target is y else q
            expected = fastce.cross_entropy_and_hess(x, dense, **options)
            out, hess_out = apart(np.zeros_like(x)), apart(np.zeros_like(x))
            got = fastce.cross_entropy_and_hess(apart(x), target, out=out, hess_out=hess_out, **options)
            eps = 2.0**-20 if dtype != np.float64 else 2.0**-48
            assert got[0] == pytest.approx(expected[0], rel=eps, abs=0)
            for a, b in zip(got[1:], expected[1:], strict=True):
                rel, a, b = eps if dtype in FLOATS else 2.0**-6, a.astype(float), b.astype(float)
                np.testing.assert_allclose(a, b, rtol=rel, atol=rel * abs(b).max())
            assert_ulp(
                fastce.cross_entropy_and_grad(apart(x), y)[1],
                reference.cross_entropy_and_grad(x, y)[1],
                GRAD_ULP[dtype],
            )


def test_masked_lowest_with_smoothing():
    """A mask of the lowest number: each of its terms is finite, and so is their sum."""
    x = np.array([[1, 2, np.finfo(np.float32).min, 0]], np.float32)
    loss, grad = fastce.cross_entropy_and_grad(x, [1], label_smoothing=0.1)
    exact, exact_grad = reference.cross_entropy_and_grad(x, [1], label_smoothing=0.1)
    assert loss == pytest.approx(float(exact), rel=2.0**-21)
    assert_ulp(grad, exact_grad, 4, abs(exact_grad) + 0.025)  # of p_j or the share of each class


def test_zero_weight_of_an_infinite_loss():
    x = np.array([[-np.inf, 1.0, 2.0], [0.0, 1.0, 2.0]])
    for options in ({}, {"temperature": 2.0}, {"label_smoothing": 0.1}, {"z_loss": 0.5}):
        for function in (fastce.cross_entropy_and_grad, fastce.cross_entropy_and_hess):
            loss, *derivatives = function(x, [0, 1], sample_weight=[0, 1], reduction="none", **options)
            assert loss[0] == 0
            assert all(not a[0].any() for a in derivatives)
        weight = [0, 1, 1] if "label_smoothing" not in options else [0, 0.5, 1]
        loss = fastce.cross_entropy(x, [0, 1], weight=weight, reduction="none", **options)
        assert np.isfinite(loss).all()
    q = np.array([[0, 0.5, 0.5], [0.25, 0.25, 0.5]])
    loss, grad, hess = fastce.cross_entropy_and_hess(x, q, reduction="none")
    assert np.isfinite(loss).all()
    assert grad[0, 0] == hess[0, 0] == 0
    loss, grad = fastce.focal_loss_and_grad(x, [0, 1], sample_weight=[0, 1], reduction="none")
    assert loss[0] == 0
    assert not grad[0].any()


def test_class_weights_anywhere_in_memory(rng):
    """Unaligned, byte-swapped, strided: the same answer as from plain memory."""
    x, y, weight = rng.normal(size=(5, 7)), np.arange(5), rng.random(7)
    expected = fastce.cross_entropy_and_grad(x, y, weight=weight, label_smoothing=0.1)
    unaligned = np.frombuffer(b"." + weight.tobytes(), np.uint8)[1:].view(np.float64)
    assert not unaligned.flags.aligned
    for given in (unaligned, weight.astype(">f8"), np.repeat(weight, 2)[::2]):
        loss, grad = fastce.cross_entropy_and_grad(x, y, weight=given, label_smoothing=0.1)
        assert loss == expected[0]
        assert bits(grad) == bits(expected[1])


@pytest.mark.parametrize("n_classes", [2, 300, 20_000])
@pytest.mark.parametrize("labels", [False, True])
def test_one_term_of_weights_and_smoothing(labels, n_classes):
    """The row's only term is of a class beside its target, whose weight is 0: it is as exact as a label's."""
    x, q, weight = np.zeros((1, n_classes)), np.zeros((1, n_classes)), np.zeros(n_classes)
    x[0, 1], q[0, 0], weight[1] = 30, 1, 1.9
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "none"}
    target = np.array([0]) if labels else q
    for n_threads in (1, 3):
        loss, grad = fastce.cross_entropy_and_grad(x, target, n_threads=n_threads, **options)
        exact_loss, exact_grad = reference.cross_entropy_and_grad(x, target, **options)
        assert_ulp(loss, exact_loss, LOSS_ULP[loss.dtype])
        assert_ulp(grad, exact_grad, GRAD_ULP[grad.dtype])


SIGNALLING = {"float32": "<u4 0x7fa00000", "float64": "<u8 0x7ff4000000000000", "float16": "<u2 0x7d00"}


@pytest.mark.parametrize("name", SIGNALLING)
def test_conversions_do_not_warn(name):
    """A signalling NaN, or a number beyond the narrower dtype, in an argument that is converted."""
    dtype, pattern = SIGNALLING[name].split()
    odd = np.array([1, 2, 1], name)
    odd[1:2] = np.array([int(pattern, 16)], dtype).view(name)
    for x_dtype in (np.float32, np.float64):
        x = np.zeros((3, 3), x_dtype)
        for options in ({}, {"label_smoothing": 0.1}):
            loss = fastce.cross_entropy(x, [0, 0, 2], weight=odd, reduction="none", **options)
            assert np.isnan(loss).any() == bool(options)
            assert np.isnan(fastce.cross_entropy(x, [0, 1, 2], sample_weight=odd, reduction="none")[1])
        assert np.isnan(fastce.logsumexp(odd, b=np.ones(3, x_dtype)))
    assert np.isnan(fastce.logsumexp(np.ones(3), b=odd))
    for function in (fastce.information.entropy, fastce.information.self_information):
        with pytest.raises(ValueError, match="p is nan at"):
            function(odd)
    x = np.zeros((1, 3), np.float32)
    assert isinstance(fastce.cross_entropy(x, [0], weight=[1, 1, 1e300], label_smoothing=0.1), float)
    large = np.full(1000, 65504, np.float16)
    assert fastce.logsumexp(large, b=large) == np.inf
    assert np.isnan(fastce.logsumexp(np.array([np.nan], ml_dtypes.bfloat16)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_the_place_of_the_label_is_not_lost_by_a_weight_of_0(dtype):
    for n_classes in (2, 60, 130, 9000):
        x, y = np.zeros((2, n_classes), dtype), np.array([1, 1])
        x[0, 1] = np.nan
        for options in ({"sample_weight": [0, 0]}, {"weight": np.zeros(n_classes)}):
            for more in ({}, {"temperature": 2}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"softcap": 3}):
                loss = fastce.cross_entropy(x, y, reduction="none", **options, **more)
                assert np.isnan(loss[0])
                assert np.isfinite(loss[1])
            loss = fastce.focal_loss(x, y, reduction="none", **options)
            assert np.isnan(loss[0])
            assert loss[1] == 0


@pytest.mark.parametrize("n_classes", [2, 3, 9, 200])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_z_loss_of_a_sure_target_at_zero(level, dtype, n_classes):
    """Its own term is as small as the loss: a part of it is subnormal, where the gradient is not."""
    gap = -np.log(np.finfo(dtype).tiny * 4)
    x = np.zeros((2, n_classes), dtype)
    x[:, 1:] = -gap
    for logits, axis in ((x, 1), (np.asfortranarray(x), 1), (x.T.copy(), 0)):
        got = fastce.cross_entropy_and_grad(logits, [0, 0], axis=axis, z_loss=1e-4, reduction="sum")[1]
        exact = reference.cross_entropy_and_grad(logits, [0, 0], axis=axis, z_loss=1e-4, reduction="sum")[1]
        assert_ulp(got, exact, GRAD_ULP[dtype] + 1)  # and half a unit of what is subnormal, of 1e-4 of it


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_hessian_of_a_z_loss_alone(dtype):
    """Where the weight of the class is 0: that of the square of lse, which may be 0 as well."""
    far = -90 if dtype == np.float32 else -720
    for n_classes in (2, 60, 130, 9000):
        x = np.full((3, n_classes), -np.inf, dtype)
        x[:, 0] = 0
        x[1, 1], x[2, 1] = far, -1
        weight = np.zeros(n_classes)
        options = {"weight": weight, "z_loss": 0.25, "reduction": "sum"}
        hess = fastce.cross_entropy_and_hess(x, [1, 1, 1], **options)[2]
        exact = reference.cross_entropy_and_hess(x, [1, 1, 1], **options)[2]
        np.testing.assert_allclose(hess, exact.astype(dtype), rtol=1e-6, atol=float(np.finfo(dtype).tiny))


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1.0])
def test_small_factors_of_long_rows(factor, rng):
    """Of more than one piece: what a sum without factors lost has no place in one with them."""
    a, b = rng.normal(size=(2, 8192 + 60))
    exact = reference.logsumexp(a, b=abs(b) * factor)
    assert_ulp(fastce.logsumexp(a, b=abs(b) * factor), exact, 4, max(abs(exact), 16))


@pytest.mark.parametrize("n_classes", [3, 130, 9000])
def test_factors_of_exps_may_be_any_float32(n_classes, rng):
    """An exp is kept scaled by 2**96: with the factor in it, it would leave float32 from 2**32 on."""
    a = np.full(n_classes, -200, np.float32)
    a[:3] = 0.5, -3, 2
    for factor in (1e-38, 1e9, 1e10, 1e38):
        b = rng.uniform(0.5, 2, n_classes).astype(np.float32) * np.float32(factor)
        exact = reference.logsumexp(a, b=b)
        assert_ulp(fastce.logsumexp(a, b=b), exact, 4, max(abs(exact), 2))
        got, sign = fastce.logsumexp(a, b=-b, return_sign=True)
        assert_ulp(got, exact, 4, max(abs(exact), 2))
        assert sign == -1


@pytest.mark.parametrize("n_classes", [2, 3, 128, 130, 9000])
def test_factors_of_exps_may_differ(n_classes):
    """What is far below the largest logit may have nearly the whole sum."""
    for gap in (100, 131, 140, 150):
        a, b = np.full(n_classes, -300, np.float32), np.full(n_classes, 1e-30, np.float32)
        a[:2], b[:2] = (0, -gap), (1e-38, 1e38)
        exact = reference.logsumexp(a, b=b)
        assert_ulp(fastce.logsumexp(a, b=b), exact, 4, max(abs(exact), gap))


@pytest.mark.parametrize("weight", [1e-10, 1e-20, 1e-30])
@pytest.mark.parametrize("n_classes", [2, 3, 40, 200, 2000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_class_weights_far_below_the_target_s(level, dtype, n_classes, weight):
    """Beside a sure target they are all there is, and no difference of sums with its own weight has them."""
    x, w = np.zeros((3, n_classes), dtype), np.full(n_classes, weight, dtype)
    x[:, 1], w[1] = 70, 1
    options = {"weight": w, "label_smoothing": 0.1, "reduction": "sum"}
    for option in ({}, {"softcap": 1e6}):
        exact = reference.cross_entropy_and_grad(x, [1, 1, 1], **options, **option)[1]
        for logits, axis in ((x, 1), (np.asfortranarray(x), 1), (x.T.copy(), 0)):
            got = fastce.cross_entropy_and_grad(logits, [1, 1, 1], axis=axis, **options, **option)[1]
            assert_ulp(got if axis else got.T, exact, 1.5 * GRAD_ULP[dtype] + 1)


@pytest.mark.parametrize("n_classes", [64, 65, 9000])
def test_factors_of_less_than_half_an_ulp_of_the_sum(n_classes):
    """A sum without what its additions round away misses all of them: of 64 classes 21 ULP."""
    a, b = np.zeros(n_classes), np.full(n_classes, 0.9 * 2.0**-52)
    a[0], b[0] = 1, 1
    assert_ulp(fastce.logsumexp(a, b=b), reference.logsumexp(a, b=b), 4)


def test_terms_that_are_subnormal_in_float32():
    """A probability times a weight, which the sample weight and the temperature bring back."""
    x, q = np.array([[0, -300, -2]], np.float32), np.array([[1, 3e-44, 0]], np.float32)
    options = {"temperature": 0.1, "sample_weight": [2.0**17], "reduction": "none"}
    for weight in ([1, 0.46, 1], None):
        grad = fastce.cross_entropy_and_grad(x, q, weight=weight, **options)[1]
        exact = reference.cross_entropy_and_grad(x, q, weight=weight, **options)[1]
        assert_ulp(grad[:, 1], exact[:, 1], 6)


@pytest.mark.parametrize("last", [3, -140])
@pytest.mark.parametrize("power", [80, -80])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_powers_of_two_that_a_float32_has_room_for_beside_its_exps(level, n_classes, power, last):
    """Weights of all rows of a tile, and what divides them: exp(-140) alone is 0 in float32."""
    x, y = np.full((64, n_classes), -140, np.float32), np.zeros(64, int)
    x[:, 0], x[:, -1] = 0, last
    weights = {"sample_weight": np.full(64, 2.0**power), "reduction": "none"}
    for factor in (weights, {"normalizer": 2.0**-power}):
        for target, option in ((y, {}), (np.eye(n_classes, dtype=np.float32)[y], {}), (y, {"z_loss": 0.01})):
            loss, grad = fastce.cross_entropy_and_grad(x, target, **factor, **option)
            exact = reference.cross_entropy_and_grad(x, target, **factor, **option)[1]
            assert_ulp(grad, exact, 1.5 * GRAD_ULP[x.dtype])
            assert bits(fastce.cross_entropy(x, target, **factor, **option)) == bits(loss)


@pytest.mark.parametrize("n_classes", [3, 200, 20_000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_log_s_of_a_sure_row_whose_weights_are_all_0(dtype, n_classes):
    """The z-loss is what is left: its label stays out of the sum, as no other class has a term."""
    x = np.full(n_classes, -60, dtype)
    x[1] = 0
    options = {"weight": np.zeros(n_classes), "label_smoothing": 0.1, "z_loss": 0.01, "normalizer": 1.0}
    loss, grad = fastce.cross_entropy_and_grad(x, 1, **options)
    exact, exact_grad = reference.cross_entropy_and_grad(x, 1, **options)
    assert_ulp(np.asarray(loss, dtype), exact, 1.5 * LOSS_ULP[dtype])
    assert_ulp(grad, exact_grad, 1.5 * GRAD_ULP[dtype])


@pytest.mark.parametrize("n_classes", [2, 200, 20_000])
def test_subnormal_probability_that_a_z_loss_lifts(n_classes):
    """Of the class that stays out of the sums, which without terms is the first."""
    x = np.full(n_classes, -50.0)
    x[:2] = 77, 127
    options = {"z_loss": 0.3, "temperature": 0.07, "reduction": "sum"}
    grad = fastce.cross_entropy_and_grad(x, np.zeros(n_classes), **options)[1]
    exact = reference.cross_entropy_and_grad(x, np.zeros(n_classes), **options)[1]
    assert_ulp(grad[:2], exact[:2], 1.5 * GRAD_ULP[grad.dtype])


def test_gradient_of_a_z_loss_whose_weight_the_mean_takes_out_again():
    """The share of the z-loss would be subnormal with the weight alone."""
    x, weight = np.array([0, -708, -714, -720.0]), 2.0**-20
    options = {"z_loss": 1e-4, "sample_weight": weight}
    grad = fastce.cross_entropy_and_grad(x, 0, **options)[1]
    exact = reference.cross_entropy_and_grad(x, 0, **options)[1]
    assert_ulp(grad[:1], exact[:1], 1.5 * GRAD_ULP[grad.dtype])


@pytest.mark.parametrize("n_classes", [3, 200])
def test_curvature_of_a_target_with_a_subnormal_probability(n_classes):
    """Its weight lifts it; p_y alone would have few digits."""
    x = np.full(n_classes, -50.0)
    x[:2] = -720, 0
    hess = fastce.cross_entropy_and_hess(x, 0, sample_weight=1e6, reduction="sum")[2]
    exact = reference.cross_entropy_and_hess(x, 0, sample_weight=1e6, reduction="sum")[2]
    assert_ulp(hess[:1], exact[:1], GRAD_ULP[hess.dtype])
