"""Objectives of XGBoost, LightGBM and CatBoost against the libraries' own, where these are installed."""

import copy
import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, make_classification

from fastce.reference import boosting as reference

CLOSE = (
    1e-5  # what predictions may differ by: gradients are right to an ULP, split gains then sum differently
)


def skipping(module):
    return pytest.importorskip(module, reason=f"{module} is not installed: its objectives are NOT tested")


def data_of(name):
    if name == "digits":
        return load_digits(return_X_y=True)
    if name == "breast cancer":
        return load_breast_cancer(return_X_y=True)
    return make_classification(
        4000, 20, n_informative=10, n_classes=10, n_clusters_per_class=1, random_state=0
    )


DATA = ("digits", "breast cancer", "synthetic")


def derivatives_of(objective, x, y, weight=None):
    """Copies: the next call writes into the same arrays."""
    return tuple(a.copy() for a in objective(y, x, weight))


# ---- XGBoost ---------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_xgboost_has_the_trees_of_its_own(name, weighted):
    xgb = skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    X, y = data_of(name)
    n_classes = int(y.max()) + 1
    weight = np.random.default_rng(0).random(len(y)) if weighted else None
    params = {"max_depth": 4, "eta": 0.3, "nthread": 1}
    if n_classes == 2:
        params |= {"objective": "binary:logistic"}
        objective, start = bridge.LogisticObjective(), bridge.base_score(y, sample_weight=weight)
    else:
        params |= {"objective": "multi:softprob", "num_class": n_classes}
        objective, start = (
            bridge.SoftmaxObjective(n_classes),
            bridge.base_score(y, n_classes, sample_weight=weight),
        )
    data = xgb.DMatrix(X, y, weight=weight)
    own = xgb.train(params, data, 15)
    model = xgb.train(params | {"base_score": start}, data, 15, obj=objective)
    assert np.abs(own.predict(data) - model.predict(data)).max() <= CLOSE
    margins = model.predict(data, output_margin=True)
    proba = model.predict(data)
    proba = np.stack([1 - proba, proba], axis=1) if n_classes == 2 else proba
    np.testing.assert_allclose(bridge.predict_proba(margins), proba, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pos_weight", [0.1, 1.0, 3.0, 100.0])
def test_xgboost_starts_from_its_own_with_a_weight_of_positives(pos_weight, weighted):
    xgb = skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    X, y = data_of("breast cancer")
    weight = np.random.default_rng(0).random(len(y)) if weighted else None
    params = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    data = xgb.DMatrix(X, y, weight=weight)
    own = xgb.train(params | {"scale_pos_weight": pos_weight}, data, 5)
    start = bridge.base_score(y, sample_weight=weight, pos_weight=pos_weight)
    objective = bridge.LogisticObjective(pos_weight=pos_weight)
    model = xgb.train(params | {"base_score": start}, data, 5, obj=objective)
    assert np.abs(own.predict(data) - model.predict(data)).max() <= 1e-6


@pytest.mark.once
@pytest.mark.parametrize("pos_weight", [0.0, 0.5, 1 + 5e-7, 1 + 2e-6, 7.0])
@pytest.mark.parametrize("kind", ["hard", "soft", "mixed", "negative", "positive"])
def test_xgboost_starts_from_its_own_score(kind, pos_weight):
    """What its models say they start from, of labels between 0 and 1 too, whose weight is 1 there."""
    xgb = skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    rng = np.random.default_rng(0)
    y = (np.arange(50) % 3 == 0).astype(float)
    soft = 0.8 * y + 0.1
    y = {"hard": y, "soft": soft, "mixed": np.where(np.arange(50) % 2, y, soft)}.get(kind, y * 0)
    y = y + (kind == "positive")
    weight = rng.random(50)
    if kind == "positive" and pos_weight == 0:
        with pytest.raises(ValueError, match="all rows weigh 0"):
            bridge.base_score(y, sample_weight=weight, pos_weight=pos_weight)
        return
    data = xgb.DMatrix(rng.normal(size=(50, 2)), y, weight=weight)
    model = xgb.train({"objective": "binary:logistic", "scale_pos_weight": pos_weight, "nthread": 1}, data, 1)
    own = json.loads(model.save_config())["learner"]["learner_model_param"]["base_score"]
    found = bridge.base_score(y, sample_weight=weight, pos_weight=pos_weight)
    assert abs(found - json.loads(own)[0]) <= 1e-6


def test_xgboost_has_no_weight_of_positives_among_several_classes():
    skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    with pytest.raises(ValueError, match=r"pos_weight is 3.0 with n_classes=3; expected None: leave"):
        bridge.base_score([0, 1, 2], 3, pos_weight=3)
    with pytest.raises(ValueError, match="pos_weight is -1; expected a number that is finite"):
        bridge.base_score([0, 1], pos_weight=-1)


@pytest.mark.once
def test_xgboost_classifier_pickles_and_clones():
    xgb = skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    X, y = data_of("digits")
    weight = np.random.default_rng(1).random(len(y))
    start = bridge.base_score(y, 10, sample_weight=weight)
    common = {"n_estimators": 5, "max_depth": 3, "n_jobs": 1}
    model = xgb.XGBClassifier(
        objective=bridge.SoftmaxObjective(10), base_score=start, eval_metric=bridge.softmax_loss, **common
    )
    model.fit(X, y, sample_weight=weight, eval_set=[(X, y)], verbose=False)
    own = xgb.XGBClassifier(**common).fit(X, y, sample_weight=weight)
    assert np.abs(own.predict_proba(X) - model.predict_proba(X)).max() <= CLOSE
    loss = -np.log(model.predict_proba(X)[np.arange(len(y)), y].astype(float)).mean()
    assert abs(model.evals_result()["validation_0"]["softmax_loss"][-1] - loss) < 1e-6
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict_proba(X) == model.predict_proba(X)).all()
    assert (again.fit(X, y, sample_weight=weight).predict_proba(X) == model.predict_proba(X)).all()
    assert (clone(model).fit(X, y, sample_weight=weight).predict_proba(X) == model.predict_proba(X)).all()


@pytest.mark.once
def test_xgboost_takes_a_matrix_of_labels():
    xgb = skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    X, y = data_of("digits")
    soft = np.eye(10, dtype=np.float32)[y] * 0.9 + 0.01
    data, objective = xgb.DMatrix(X, label=soft), bridge.SoftmaxObjective(10)
    model = xgb.train({"max_depth": 3, "base_score": 0.0, "nthread": 1}, data, 10, obj=objective)
    smooth = bridge.SoftmaxObjective(10, label_smoothing=0.1)
    params = {"max_depth": 3, "base_score": 0.0, "num_class": 10, "objective": "multi:softprob", "nthread": 1}
    other = xgb.train(params, xgb.DMatrix(X, y), 10, obj=smooth)
    margins = model.predict(data, output_margin=True)
    assert np.abs(margins - other.predict(data, output_margin=True)).max() <= 1e-4
    fixed = bridge.SoftmaxObjective(10).with_soft_labels(soft)
    third = xgb.train(params, xgb.DMatrix(X, y), 10, obj=fixed)
    assert (third.predict(data, output_margin=True) == margins).all()


@pytest.mark.once
def test_xgboost_default_follows_the_installed_version():
    xgb = skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    assert bridge._softprob_curvature() in ("upper", "abs")
    if tuple(map(int, xgb.__version__.split(".")[:2])) <= (3, 2):
        assert bridge._softprob_curvature() == "upper"


# ---- LightGBM --------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_lightgbm_has_the_trees_of_its_own(name, weighted):
    lgb = skipping("lightgbm")
    from fastce.boosting import lightgbm as bridge

    X, y = data_of(name)
    n_classes = int(y.max()) + 1
    weight = np.random.default_rng(0).random(len(y)) if weighted else None
    params = {"num_leaves": 15, "num_threads": 1, "verbose": -1, "deterministic": True, "seed": 0}
    if n_classes == 2:
        own, objective = "binary", bridge.LogisticObjective()
        start = bridge.init_score(y, sample_weight=weight)
    else:
        own, objective = "multiclass", bridge.SoftmaxObjective(n_classes)
        start = bridge.init_score(y, n_classes, sample_weight=weight)
        params["num_class"] = n_classes
    plain = lgb.train(params | {"objective": own}, lgb.Dataset(X, y, weight=weight), 15)
    data = lgb.Dataset(X, y, weight=weight, init_score=start)
    model = lgb.train(params | {"objective": objective}, data, 15)
    raw = model.predict(X, raw_score=True) + start
    assert np.abs(raw - plain.predict(X, raw_score=True)).max() <= CLOSE
    proba = bridge.predict_proba(raw)
    assert np.abs((proba[:, 1] if n_classes == 2 else proba) - plain.predict(X)).max() <= CLOSE


@pytest.mark.once
@pytest.mark.parametrize("pos_weight", [0.1, 3.0])
def test_lightgbm_starts_from_the_same_with_a_weight_of_positives(pos_weight):
    lgb = skipping("lightgbm")
    from fastce.boosting import lightgbm as bridge

    X, y = data_of("breast cancer")
    weight = np.random.default_rng(0).random(len(y))
    params = {"num_leaves": 7, "num_threads": 1, "verbose": -1, "deterministic": True, "seed": 0}
    own = lgb.train(
        params | {"objective": "binary", "scale_pos_weight": pos_weight}, lgb.Dataset(X, y, weight=weight), 10
    )
    start = bridge.init_score(y, sample_weight=weight)
    data = lgb.Dataset(X, y, weight=weight, init_score=start)
    model = lgb.train(params | {"objective": bridge.LogisticObjective(pos_weight=pos_weight)}, data, 10)
    assert np.abs(model.predict(X, raw_score=True) + start - own.predict(X, raw_score=True)).max() <= CLOSE


@pytest.mark.once
def test_lightgbm_classifier_pickles_and_clones():
    lgb = skipping("lightgbm")
    from fastce.boosting import lightgbm as bridge

    X, y = data_of("digits")
    weight = np.random.default_rng(1).random(len(y))
    start = bridge.init_score(y, 10, sample_weight=weight)
    common = {"n_estimators": 5, "num_leaves": 7, "n_jobs": 1, "verbose": -1, "deterministic": True}
    model = lgb.LGBMClassifier(objective=bridge.SoftmaxObjective(10), **common)
    model.fit(
        X,
        y,
        sample_weight=weight,
        init_score=start,
        eval_X=X,
        eval_y=y,
        eval_metric=bridge.softmax_loss,
        eval_init_score=[start],
    )
    own = lgb.LGBMClassifier(**common).fit(X, y, sample_weight=weight)
    raw = model.predict(X, raw_score=True)
    assert np.abs(bridge.predict_proba(raw + start) - own.predict_proba(X)).max() <= CLOSE
    loss = -np.log(bridge.predict_proba(raw + start)[np.arange(len(y)), y]).mean()
    assert abs(model.evals_result_["valid_0"]["fastce_softmax_loss"][-1] - loss) < 1e-9
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict(X, raw_score=True) == raw).all()
    fresh = clone(model).fit(X, y, sample_weight=weight, init_score=start)
    assert (fresh.predict(X, raw_score=True) == raw).all()


@pytest.mark.once
def test_lightgbm_native_metric_and_soft_labels():
    lgb = skipping("lightgbm")
    from fastce.boosting import lightgbm as bridge

    X, y = data_of("digits")
    soft = np.eye(10)[y] * 0.8 + 0.02
    params = {"num_class": 10, "num_leaves": 7, "num_threads": 1, "verbose": -1, "deterministic": True}
    results = []
    for objective in (
        bridge.SoftmaxObjective(10).with_soft_labels(soft),
        bridge.SoftmaxObjective(10, label_smoothing=0.2),
    ):
        data, seen = lgb.Dataset(X, y), {}
        model = lgb.train(
            params | {"objective": objective, "metric": "none"},
            data,
            5,
            valid_sets=[data],
            feval=bridge.softmax_loss,
            callbacks=[lgb.record_evaluation(seen)],
        )
        results.append(model.predict(X, raw_score=True))
        loss = -np.log(bridge.predict_proba(results[-1])[np.arange(len(y)), y]).mean()
        assert abs(seen["training"]["fastce_softmax_loss"][-1] - loss) < 1e-9
    assert np.abs(results[0] - results[1]).max() < 1e-4


@pytest.mark.once
def test_soft_labels_follow_no_folds():
    lgb = skipping("lightgbm")
    from fastce.boosting import lightgbm as bridge

    X, y = data_of("digits")
    soft = np.eye(10)[y] * 0.8 + 0.02
    objective = bridge.SoftmaxObjective(10).with_soft_labels(soft)
    params = {"objective": objective, "num_class": 10, "metric": "none", "num_threads": 1, "verbose": -1}
    message = r"given 1797 rows, and this data set has \d+; .* folds and subsets.*_labels\(labels\[rows"
    with pytest.raises(ValueError, match=message):
        lgb.cv(params, lgb.Dataset(X, y), 2, nfold=3, feval=bridge.softmax_loss)
    params["objective"] = bridge.SoftmaxObjective(10).with_soft_labels(soft[::2])
    assert lgb.train(params, lgb.Dataset(X[::2], y[::2]), 2).num_trees() == 20


@pytest.mark.once
def test_lightgbm_passes_the_arrays_on_without_a_copy():
    skipping("lightgbm")
    from fastce.boosting import lightgbm as bridge

    for a in derivatives_of(bridge.SoftmaxObjective(3), np.zeros((5, 3), order="F"), np.zeros(5)):
        assert a.dtype == np.float32
    grad, _ = bridge.SoftmaxObjective(3)(np.zeros(5), np.zeros((5, 3), order="F"))
    assert np.shares_memory(grad, grad.ravel(order="F"))


# ---- CatBoost --------------------------------------------------------------------------------------------

CATBOOST = {
    "iterations": 15,
    "depth": 4,
    "learning_rate": 0.2,
    "verbose": 0,
    "allow_writing_files": False,
    "random_seed": 0,
    "leaf_estimation_method": "Newton",
    "leaf_estimation_iterations": 1,
    "bootstrap_type": "No",
    "thread_count": 1,
}


def raw_of(model, X):
    return model.predict(X, prediction_type="RawFormulaVal")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.once
def test_catboost_has_the_trees_of_its_own_logloss(weighted):
    catboost = skipping("catboost")
    from fastce.boosting import catboost as bridge

    X, y = data_of("breast cancer")
    weight = np.random.default_rng(0).random(len(y)) if weighted else None
    settings = CATBOOST | {"boost_from_average": False}
    own = catboost.CatBoostClassifier(loss_function="Logloss", **settings).fit(X, y, sample_weight=weight)
    model = catboost.CatBoostClassifier(
        loss_function=bridge.LogisticObjective(), eval_metric=bridge.logistic_loss, **settings
    ).fit(X, y, sample_weight=weight)
    assert np.abs(raw_of(own, X) - raw_of(model, X)).max() <= CLOSE
    assert np.abs(bridge.predict_proba(raw_of(model, X)) - own.predict_proba(X)).max() <= CLOSE
    loss = model.get_best_score()["learn"]["LogisticLoss"]
    p = np.clip(own.predict_proba(X)[np.arange(len(y)), y], 1e-12, 1)
    assert abs(loss + np.average(np.log(p), weights=weight)) < 1e-6
    assert (raw_of(pickle.loads(pickle.dumps(model)), X) == raw_of(model, X)).all()


@pytest.mark.once
def test_catboost_has_the_trees_of_its_own_multiclass():
    catboost = skipping("catboost")
    from fastce.boosting import catboost as bridge

    X, y = data_of("digits")
    X, y = X[:300], y[:300]
    settings = CATBOOST | {"iterations": 4}
    own = catboost.CatBoostClassifier(loss_function="MultiClass", **settings).fit(X, y)
    model = catboost.CatBoostClassifier(
        loss_function=bridge.SoftmaxObjective(10),
        eval_metric=bridge.softmax_loss,
        classes_count=10,
        **settings,
    ).fit(X, y)
    assert np.abs(raw_of(own, X) - raw_of(model, X)).max() <= CLOSE
    loss = model.get_best_score()["learn"]["SoftmaxLoss"]
    assert abs(loss + np.log(own.predict_proba(X)[np.arange(len(y)), y]).mean()) < 1e-6


@pytest.mark.once
def test_catboost_takes_a_matrix_of_labels():
    catboost = skipping("catboost")
    from fastce.boosting import catboost as bridge

    X, y = data_of("digits")
    X, y = X[:300], y[:300]
    soft = np.eye(10)[y] * 0.9 + 0.01
    settings = CATBOOST | {"iterations": 3}
    model = catboost.CatBoost(
        settings | {"loss_function": bridge.SoftLabelObjective(10), "eval_metric": bridge.soft_label_loss}
    ).fit(X, soft)
    other = catboost.CatBoostClassifier(
        loss_function=bridge.SoftmaxObjective(10, label_smoothing=0.1),
        eval_metric="MultiClass",
        classes_count=10,
        **settings,
    ).fit(X, y)
    assert np.abs(model.predict(X) - raw_of(other, X)).max() < 1e-5
    p = bridge.predict_proba(model.predict(X))
    assert (
        abs(model.get_best_score()["learn"]["SoftLabelLoss"] + (soft * np.log(p)).sum(axis=1).mean()) < 1e-6
    )


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.once
def test_catboost_rows_are_the_derivatives_of_the_loss(gamma):
    skipping("catboost")
    from fastce.boosting import catboost as bridge

    rng = np.random.default_rng(0)
    x, weight, class_weight = rng.normal(size=4), 0.7, rng.random(4)
    options = {"gamma": gamma, "label_smoothing": 0.1, "class_weight": class_weight}
    first, second = bridge.SoftmaxObjective(4, **options, curvature="exact").calc_ders_multi(x, 2.0, weight)
    given = (x[None], np.array([2]), np.array([weight]), class_weight)
    exact = reference.softmax_derivatives(*given, "whole", 1.0, -np.inf, gamma, 0.1)
    np.testing.assert_allclose(-first, exact[0][0].astype(float), rtol=1e-13)
    np.testing.assert_allclose(-np.diag(second), exact[1][0].astype(float), rtol=1e-12)
    step = 1e-6
    for j in range(4):
        ahead = bridge.SoftmaxObjective(4, **options).calc_ders_multi(x + step * np.eye(4)[j], 2.0, weight)[0]
        np.testing.assert_allclose(second[j], (ahead - first) / step, atol=1e-5)
    for curvature, way in (
        ("upper", ("multiple", 2)),
        ("friedman", ("multiple", 4 / 3)),
        ("abs", ("magnitude", 1)),
    ):
        diagonal = bridge.SoftmaxObjective(4, **options, curvature=curvature).calc_ders_multi(x, 2.0, weight)[
            1
        ]
        expected = reference.softmax_derivatives(*given, *way, -np.inf, gamma, 0.1)[1][0]
        np.testing.assert_allclose(-diagonal, np.diag(expected.astype(float)), rtol=1e-12)


@pytest.mark.once
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.0), (2.0, 0.0), (1.0, 0.1)])
def test_catboost_derivatives_of_sure_rows_have_their_digits(gamma, smoothing, label):
    skipping("catboost")
    from fastce.boosting import catboost as bridge

    for margin in (10.0, 30.0, 40.0, 90.0):
        x = np.array([margin, 0.0, 1.0])
        objective = bridge.SoftmaxObjective(3, gamma=gamma, label_smoothing=smoothing, curvature="exact")
        first, second = objective.calc_ders_multi(x, label, 1.0)
        exact = reference.softmax_derivatives(
            x[None], np.array([label]), None, None, "whole", 1.0, -np.inf, gamma, smoothing
        )
        rtol = 1e-13 if smoothing else 1e-14  # sums of terms of both signs
        np.testing.assert_allclose(-first, exact[0][0].astype(float), rtol=rtol)
        np.testing.assert_allclose(-np.diag(second), exact[1][0].astype(float), rtol=rtol)


@pytest.mark.once
@pytest.mark.parametrize("label", [-1.0, 3.0, 1.5, np.nan])
def test_catboost_labels_are_classes(label):
    skipping("catboost")
    from fastce.boosting import catboost as bridge

    with pytest.raises(IndexError, match=rf"label {label}; expected a class, a whole number in \[0, 3\)"):
        bridge.SoftmaxObjective(3).calc_ders_multi(np.zeros(3), label, 1.0)
    with pytest.raises(IndexError, match=rf"label {label} at row 1; expected a class, a whole number"):
        bridge.softmax_loss.evaluate([np.zeros(2)] * 3, np.array([0, label]), None)
    with pytest.raises(ValueError, match="a row has 2 raw values; expected 3: pass classes_count=3"):
        bridge.SoftmaxObjective(3).calc_ders_multi(np.zeros(2), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"label nan at \[1\]; expected a number that is finite"):
        bridge.SoftLabelObjective(3).calc_ders_multi(np.zeros(3), [0.5, np.nan, 0.5], 1.0)


@pytest.mark.once
@pytest.mark.parametrize(
    ("objective", "metric", "options", "message"),
    [
        ("SoftmaxObjective", "softmax_loss", {}, "one raw value; expected 3: pass classes_count=3"),
        ("LogisticObjective", "MultiClass", {}, "3 raw values; expected one: use SoftmaxObjective.3."),
        ("LogisticObjective", "softmax_loss", {"classes_count": 3}, "3 raw values; expected one"),
        ("SoftmaxObjective", "logistic_loss", {"classes_count": 3}, "rows have 3 raw values; expected one: "),
        ("SoftLabelObjective", "soft_label_loss", {}, "one raw value; expected 3: give labels of 3 columns"),
    ],
)
def test_catboost_shows_what_to_pass_for_several_classes(objective, metric, options, message):
    """It asks objectives by the method that goes with its number of raw values, which it is told of."""
    catboost = skipping("catboost")
    from fastce.boosting import catboost as bridge

    n_classes = () if objective == "LogisticObjective" else (3,)
    settings = CATBOOST | options | {"loss_function": getattr(bridge, objective)(*n_classes)}
    model = catboost.CatBoost(settings | {"eval_metric": getattr(bridge, metric, metric)})
    with pytest.raises(catboost.CatBoostError, match=message):
        model.fit(np.arange(12).reshape(6, 2), np.arange(6) % 3)


@pytest.mark.once
def test_catboost_counts_two_classes_as_one_raw_value():
    catboost = skipping("catboost")
    from fastce.boosting import catboost as bridge

    X, y = np.arange(12).reshape(6, 2), np.arange(6) % 2
    settings = CATBOOST | {"loss_function": bridge.SoftmaxObjective(2)}
    with pytest.raises(catboost.CatBoostError, match="expected 2: LogisticObjective takes one"):
        catboost.CatBoostClassifier(**settings, eval_metric=bridge.softmax_loss, classes_count=2).fit(X, y)
    model = catboost.CatBoostClassifier(**settings, eval_metric="MultiClass").fit(X, y)
    assert raw_of(model, X).shape == (6, 2)


# ---- What all share --------------------------------------------------------------------------------------


@pytest.fixture(params=["xgboost", "lightgbm"])
def bridge(request):
    skipping(request.param)
    return pytest.importorskip(f"fastce.boosting.{request.param}")


WAYS = {
    "exact": ("whole", 1),
    "upper": ("multiple", 2),
    "friedman": ("multiple", 5 / 4),
    "abs": ("magnitude", 1),
    "gauss-newton": ("multiple", 1),
}


@pytest.mark.parametrize("curvature", WAYS)
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_options(bridge, level, curvature, gamma):
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(50, 5)).astype(np.float32), rng.integers(5, size=50), rng.random(50)
    least = 1e-16 if "xgboost" in bridge.__name__ else -np.inf
    for smoothing in (0.0, 0.1):
        objective = bridge.SoftmaxObjective(
            5, gamma=gamma, label_smoothing=smoothing, class_weight={1: 3.0, 4: 0.5}, curvature=curvature
        )
        grad, hess = derivatives_of(objective, x, y, weight)
        given = (x, y, weight, [1, 3, 1, 1, 0.5], *WAYS[curvature], least, gamma, smoothing)
        exact = reference.softmax_derivatives(*given)
        np.testing.assert_allclose(grad, exact[0].astype(float), rtol=2e-5, atol=2e-7)
        np.testing.assert_allclose(hess, exact[1].astype(float), rtol=2e-5, atol=2e-7)
        labels, factor = y > 2, {"friedman": 2}.get(curvature, WAYS[curvature][1])
        objective = bridge.LogisticObjective(
            gamma=gamma, label_smoothing=smoothing, pos_weight=3.0, curvature=curvature
        )
        grad, hess = derivatives_of(objective, x[:, 0], labels, weight)
        given = (x[:, 0], labels, weight, 3.0, 1.0, WAYS[curvature][0], factor, least, gamma, smoothing)
        exact = reference.logistic_derivatives(*given)
        np.testing.assert_allclose(grad, exact[0].astype(float), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(hess, exact[1].astype(float), rtol=1e-6, atol=1e-8)


@pytest.mark.once
def test_a_focal_loss_has_a_hessian_that_is_never_negative(bridge):
    x = np.random.default_rng(0).normal(size=(500, 5)) * 3
    y = np.arange(500) % 5
    assert (derivatives_of(bridge.SoftmaxObjective(5, gamma=2.0), x, y)[1] >= 0).all()
    assert (derivatives_of(bridge.LogisticObjective(gamma=2.0), x[:, 0], y > 2)[1] >= 0).all()
    exact = reference.softmax_derivatives(x, y, None, None, "whole", 1.0, -np.inf, 2.0, 0.0)[1]
    assert (exact < 0).any()


@pytest.mark.once
def test_calls_after_the_first_allocate_nothing(bridge):
    x, y = (
        np.zeros((20000, 10), np.float64 if "lightgbm" in bridge.__name__ else np.float32),
        np.zeros(20000, np.float32),
    )
    for objective, margins in (
        (bridge.SoftmaxObjective(10), x),
        (bridge.LogisticObjective(), x[:, 0].copy()),
    ):
        first = objective(y, margins)
        tracemalloc.start()
        again = objective(y, margins)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert all(a is b or np.shares_memory(a, b) for a, b in zip(first, again, strict=True))
        assert peak < 10_000


@pytest.mark.parametrize("again", [lambda objective: objective, copy.deepcopy], ids=["made", "copied"])
def test_each_thread_has_arrays_of_its_own(bridge, again):
    """Boosters that train at once with one objective must not write over each other's gradients."""
    objective, y = again(bridge.SoftmaxObjective(2)), np.zeros(3, np.float32)
    mine = objective(y, np.zeros((3, 2), np.float32))
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(objective, y, np.ones((3, 2), np.float32)).result()
    assert not any(np.shares_memory(a, b) for a, b in zip(mine, others, strict=True))


def test_lightgbm_starts_from_shares_above_zero():
    """Of a class that no row has: its kEpsilon."""
    skipping("lightgbm")
    from fastce.boosting import lightgbm as bridge

    assert bridge.init_score([0, 0, 1, 1], 3)[0].tolist() == [np.log(0.5), np.log(0.5), np.log(1e-15)]
    assert bridge.init_score([0, 0])[0] == np.log(1e-15 / (1 - 1e-15))


def test_xgboost_hessians_have_a_floor():
    skipping("xgboost")
    from fastce.boosting import xgboost as bridge

    sure, y = np.array([[100, 0, 0]], np.float32), np.zeros(1, np.float32)
    assert (bridge.SoftmaxObjective(3)(y, sure)[1] == np.float32(1e-16)).all()
    assert bridge.LogisticObjective()(y, sure[:, 0])[1] == np.float32(1e-16)


@pytest.mark.once
def test_objectives_copy_and_show_their_options(bridge):
    objective = bridge.SoftmaxObjective(3, gamma=2.0, curvature="abs")
    x, y = np.ones((4, 3), np.float32), np.arange(4) % 3
    grad, hess = objective(y, x)
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert repr(other) == repr(objective)
        assert "gamma=2.0" in repr(other)
        assert "'abs'" in repr(other)
        mine = other(y, x)
        assert (mine[0] == grad).all()
        assert (mine[1] == hess).all()
        assert not np.shares_memory(mine[0], grad)


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_classes": 1}, "n_classes is 1; expected an int of at least 2"),
        ({"gamma": -1}, "gamma is -1; expected a number that is finite and not negative"),
        ({"gamma": 10**5000}, "gamma is an int without a repr; expected a number that is finite"),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5; expected a number in \[0, 1\]"),
        ({"curvature": "flat"}, "curvature is 'flat'; expected None or one of 'exact'"),
        ({"curvature": ["abs"]}, r"curvature is \['abs'\]; expected None or one of 'exact'"),
        ({"class_weight": [1, 2]}, r"class_weight has shape \(2,\); expected \(3,\)"),
        ({"class_weight": {5: 1.0}}, r"class_weight names class 5; expected classes in \[0, 3\)"),
        ({"class_weight": "balanced"}, "numpy.bincount"),
        ({"class_weight": [1, 2, np.nan]}, "finite and not negative"),
    ],
)
def test_options_that_make_no_sense(bridge, options, message):
    with pytest.raises(ValueError, match=message):
        bridge.SoftmaxObjective(**{"n_classes": 3} | options)


@pytest.mark.once
@pytest.mark.parametrize("label", [-1, 3, 0.5, np.nan])
def test_starts_of_labels_that_are_no_classes(bridge, label):
    start = getattr(bridge, "base_score", None) or bridge.init_score
    with pytest.raises(IndexError, match=rf"label {label}(\.0)? at row 2; expected a class, a whole number"):
        start([0, 1, label], 3)
    for n_classes in (3, None):
        with pytest.raises(ValueError, match="all rows weigh 0"):
            start([0, 1], n_classes, sample_weight=[0, 0])
        with pytest.raises(ValueError, match="y is empty"):
            start([], n_classes)
        with pytest.raises(ValueError, match="sample_weight has 3 numbers; expected 2, one for each label"):
            start([0, 1], n_classes, sample_weight=[1, 1, 1])
        with pytest.raises(ValueError, match=r"sample_weight\[1\] is -1.0; expected a number that is finite"):
            start([0, 1], n_classes, sample_weight=[2, -1])
        column = start(np.array([[0], [1]]), n_classes, sample_weight=np.array([[1], [2]]))
        plain = start([0, 1], n_classes, sample_weight=[1, 2])
        np.testing.assert_array_equal(np.ravel(column), np.ravel(plain))
    if label != 0.5:
        with pytest.raises(ValueError, match=rf"label {label}(\.0)? at row 2; expected a number in \[0, 1\]"):
            start([0, 1, label])


@pytest.mark.once
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.0, 1.0]])
def test_starts_of_two_classes(bridge, weight):
    """The share of class 1, of which a soft label is a part."""
    y = np.array([0, 1, 1, 0.5])
    share = np.average(y, weights=weight)
    if "xgboost" in bridge.__name__:
        assert bridge.base_score(y, sample_weight=weight) == pytest.approx(share, rel=1e-15)
    else:
        start = bridge.init_score(y, sample_weight=weight)
        np.testing.assert_allclose(start, np.full(4, np.log(share / (1 - share))), rtol=1e-14)


@pytest.mark.once
@pytest.mark.parametrize("label", [-0.5, np.nan, np.inf])
def test_soft_labels_that_are_no_shares(bridge, label):
    soft, margins = np.full((4, 3), 1 / 3, np.float32), np.zeros((4, 3), np.float32)
    soft[2, 1] = label
    message = rf"label {label} at \[2, 1\]; expected a number that is finite and not negative"
    for call in (
        lambda: bridge.SoftmaxObjective(3).with_soft_labels(soft),
        lambda: bridge.SoftmaxObjective(3)(soft, margins),
        lambda: bridge.SoftmaxObjective(3)(soft.reshape(-1), margins),
        lambda: bridge.softmax_loss(soft, margins),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.once
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({1: "a"}, r"class_weight\[1\] is 'a'; expected a number"),
        (["a", "b", "c"], "class_weight has dtype <U1; expected float32"),
        ([1j, 1, 1], "class_weight has dtype complex128; expected float32"),
    ],
)
def test_class_weights_that_are_no_numbers(bridge, weight, message):
    with pytest.raises(TypeError, match=message):
        bridge.SoftmaxObjective(3, class_weight=weight)


@pytest.mark.once
def test_probabilities_of_integers(bridge):
    for margins in ([1, 2], [[1, 2, 3]], [True, False]):
        found = bridge.predict_proba(np.array(margins))
        assert (found == bridge.predict_proba(np.array(margins, float))).all()
    with pytest.raises(TypeError, match="raw has dtype <U1; expected float32"):
        bridge.predict_proba(np.array(["a"]))


@pytest.mark.once
@pytest.mark.parametrize("label", [-1.0, 3.0, 0.5, np.nan])
def test_metrics_refuse_the_labels_that_objectives_do(bridge, label):
    y, margins = np.array([0, 1, label, 2]), np.zeros((4, 3))
    for call in (bridge.SoftmaxObjective(3), bridge.softmax_loss):
        with pytest.raises(IndexError, match=rf"label {label} at row 2; expected a class, a whole number"):
            call(y, margins)


@pytest.mark.once
def test_margins_of_another_number_of_classes(bridge):
    with pytest.raises(ValueError, match=r"the margins have shape \(4, 5\); expected \(rows, 3\)"):
        bridge.SoftmaxObjective(3)(np.zeros(4), np.zeros((4, 5), np.float32))
    for rows in (399, 400):  # where three of them make a row of margins, and where not
        y, margins = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        with pytest.raises(ValueError, match=rf"shape \({rows},\); expected \(rows, 3\): is the library's"):
            bridge.SoftmaxObjective(3)(y, margins)
        for x in (margins, margins[:, None]):
            with pytest.raises(ValueError, match=r"expected \(rows, at least 2\): is the library's number"):
                bridge.softmax_loss(y, x)
    with pytest.raises(ValueError, match="expected \\(N, 3\\) floats"):
        bridge.SoftmaxObjective(3).with_soft_labels(np.zeros((4, 2)))
