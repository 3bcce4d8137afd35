"""The classifier on dask arrays against the one on arrays: coefficients, bits, predictions, refusals."""

import pickle

import numpy as np
import pytest
from scipy import sparse

dask = pytest.importorskip("dask", reason="dask is not installed: its LogisticRegression is NOT tested")
da = pytest.importorskip("dask.array")
pytest.importorskip("sklearn", "1.8")  # the first that fastce.sklearn takes

from sklearn.datasets import make_classification  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402

import fastce.sklearn  # noqa: E402
from fastce.dask import LogisticRegression, _objective  # noqa: E402
from fastce.linear import objective  # noqa: E402

pytestmark = pytest.mark.once

TOL = 1e-6


@pytest.fixture(autouse=True)
def scheduler():
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


def data(n_classes, dtype=np.float64, n_rows=600):
    X, y = make_classification(
        n_rows,
        12,
        n_informative=8,
        n_redundant=0,
        n_classes=n_classes,
        n_clusters_per_class=1,
        random_state=0,
    )
    return X.astype(dtype), y


def lazily(X, chunks=(170, 7)):
    """A dask array, of sparse chunks where X is."""
    if not sparse.issparse(X):
        return da.from_array(X, chunks=chunks)
    whole = da.from_array(X.toarray(), chunks=(chunks[0], -1))
    return whole.map_blocks(sparse.csr_matrix, meta=sparse.csr_matrix((0, 0), dtype=X.dtype))


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("kind", ["dense", "float32", "csr"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"C": np.inf},
        {"fit_intercept": False, "C": 0.1},
        {"class_weight": "balanced"},
        {"class_weight": {0: 2.0}, "weighted": True},
    ],
)
def test_coefficients(n_classes, kind, options, rng):
    X, y = data(n_classes, np.float32 if kind == "float32" else np.float64)
    if kind == "csr":
        X = sparse.csr_matrix(np.where(np.abs(X) > 0.5, X, 0))
    options = dict(options)
    weight = rng.integers(1, 4, len(y)).astype(float) if options.pop("weighted", False) else None
    tol = 1e-3 if kind == "float32" else TOL  # float32 sees no smaller ones of every objective here
    model = LogisticRegression(tol=tol, max_iter=1000, **options)
    model.fit(lazily(X), da.from_array(y, chunks=100), weight)
    expected = fastce.sklearn.LogisticRegression(tol=tol, max_iter=1000, **options).fit(X, y, weight)
    assert model.coef_.dtype == expected.coef_.dtype
    assert model.coef_.shape == expected.coef_.shape
    assert model.intercept_.shape == expected.intercept_.shape
    for name in ("classes_", "n_features_in_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(expected, name))

    weight = np.ones(len(y)) if weight is None else weight
    if "class_weight" in options:
        counts = np.bincount(y, weight)
        balanced = weight.sum() / (n_classes * counts)
        given = options["class_weight"]
        weight = weight * (balanced if given == "balanced" else np.r_[2.0, np.ones(n_classes - 1)])[y]
    f = objective(
        X,
        y,
        n_classes,
        sample_weight=weight,
        l2=1 / (model.C * weight.sum()),
        fit_intercept=model.fit_intercept,
    )
    coef = model.coef_
    if model.fit_intercept:
        coef = np.concatenate([coef, model.intercept_[:, None]], axis=1)
    # They stop where no element of the gradient is above tol; then coefficients are centred, which moves the
    # penalty's part, and rounded.
    assert np.abs(f.loss_and_grad(coef)[1]).max() <= 1.1 * tol
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e3 * tol * np.abs(expected.coef_).max())


def test_a_class_whose_rows_weigh_nothing():
    X, y = data(3)
    weight = (y != 2).astype(float)
    given = {k: weight.sum() / 3 / np.count_nonzero(y == k) for k in (0, 1)}
    models = [LogisticRegression(class_weight=of) for of in ("balanced", given)]
    balanced, same = (model.fit(lazily(X), y, weight) for model in models)
    np.testing.assert_allclose(balanced.coef_, same.coef_, atol=1e-8)
    assert np.abs(same.coef_[0]).max() > 0.1


def test_bits_depend_on_the_chunks_alone():
    X, y = data(4)
    lazy = lazily(X, (37, 12))
    results = set()
    for scheduler in ("synchronous", "threads"):
        for _ in range(2):
            with dask.config.set(scheduler=scheduler):
                model = LogisticRegression().fit(lazy, y)
                results.add(model.coef_.tobytes() + model.intercept_.tobytes())
    assert len(results) == 1


def test_chunks_without_rows_and_of_unknown_size(rng):
    X, y = data(3)
    keep = rng.random(len(y)) < 0.5
    keep[:100] = False
    lazy, labels, kept = (da.from_array(a, chunks=(100, *a.shape[1:])) for a in (X, y, keep))
    model = LogisticRegression(tol=TOL).fit(lazy[kept], labels[kept])
    expected = fastce.sklearn.LogisticRegression(tol=TOL).fit(X[keep], y[keep])
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e3 * TOL)
    with pytest.raises(ValueError, match=r"y is no dask array.*compute_chunk_sizes\(\)"):
        LogisticRegression().fit(lazy[kept], y[keep])


def test_columns_of_data_frames():
    pd, dd = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    X, y = data(3)
    names = [f"x{k}" for k in range(X.shape[1])]
    frame = dd.from_pandas(pd.DataFrame(X, columns=names).assign(y=y), npartitions=3)
    model = LogisticRegression(tol=TOL).fit(frame[names].to_dask_array(), frame["y"])
    expected = fastce.sklearn.LogisticRegression(tol=TOL).fit(X, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e3 * TOL)


def test_data_frames():
    """As arrays of them, and with scikit-learn's rules for the names of columns."""
    pd, dd = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    X, y = data(3)
    table = pd.DataFrame(X, columns=[f"x{k}" for k in range(X.shape[1])]).assign(above=X[:, 0] > 0, one=1)
    labels = np.array(["ant", "bee", "cat"])[y]
    frame = dd.from_pandas(table.assign(y=labels, w=np.arange(len(y)) % 3), npartitions=3)
    features = frame[list(table)]
    model = LogisticRegression(tol=TOL).fit(features, frame["y"], sample_weight=frame["w"])
    expected = fastce.sklearn.LogisticRegression(tol=TOL).fit(table, labels, np.arange(len(y)) % 3)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e3 * TOL)
    assert model.feature_names_in_.tolist() == list(table)
    assert isinstance(model.predict(features), da.Array)
    assert model.predict(features).compute().tolist() == model.predict(table).tolist()
    np.testing.assert_allclose(model.predict_proba(features), model.predict_proba(table), rtol=1e-6)
    assert model.score(features, frame["y"]) == model.score(table, labels)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(features[features.columns[::-1]])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(features.to_dask_array())
    with pytest.raises(TypeError, match="only supported if all input features have string names"):
        LogisticRegression().fit(features.rename(columns={"x0": 0}), frame["y"])
    assert not hasattr(model.fit(features.to_dask_array().astype(float), frame["y"]), "feature_names_in_")
    for other in (table, dask.delayed(table)):
        with pytest.raises(TypeError, match="expected a dask array or data frame"):
            LogisticRegression().fit(other, y)


def test_labels_of_any_kind():
    X, y = data(3)
    names = np.array(["ant", "bee", "cat"])[y]
    model = LogisticRegression().fit(lazily(X), da.from_array(names, chunks=90))
    assert model.classes_.tolist() == ["ant", "bee", "cat"]
    assert model.predict(lazily(X)).compute().tolist() == model.predict(X).tolist()
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        LogisticRegression().fit(lazily(X), y + 0.5)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_predictions(n_classes, kind):
    X, y = data(n_classes, np.float32)
    if kind == "csr":
        X = sparse.csr_matrix(X)
    model = LogisticRegression().fit(lazily(X), y)
    lazy = lazily(X)
    for method in ("decision_function", "predict", "predict_proba", "predict_log_proba"):
        result, expected = getattr(model, method)(lazy), getattr(model, method)(X)
        assert isinstance(result, da.Array)
        assert result.shape == expected.shape
        assert result.dtype == expected.dtype
        # Products of blocks and of the whole differ by the rounding of BLAS.
        np.testing.assert_allclose(result.compute(), expected, rtol=1e-5, atol=1e-6)
    assert model.score(lazy, y) == pytest.approx(model.score(X, y), rel=1e-15)
    weight = np.arange(len(y))
    assert model.score(lazy, y, weight) == pytest.approx(model.score(X, y, weight), rel=1e-12)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_warm_start_and_max_iter():
    X, y = data(3)
    lazy = lazily(X)
    model = LogisticRegression(tol=TOL, warm_start=True).fit(lazy, y)
    assert model.fit(lazy, y).n_iter_[0] == 0
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge after 1 iterations"):
        LogisticRegression(tol=1e-12, max_iter=1).fit(lazy, y)


def test_a_sample_takes_the_first_steps():
    """Of many rows, most steps are those of the rows that chunks gave."""
    X, y = data(2, n_rows=40_000)
    model = LogisticRegression().fit(lazily(X, (5_000, 12)), y)
    assert model.n_iter_[0] <= 4


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_sample_does_not_lead_back_from_coefficients_that_are_better():
    X, y = data(3, n_rows=40_000)
    lazy = lazily(X, (5_000, 12))
    model = LogisticRegression(tol=TOL, max_iter=1, warm_start=True)
    assert [model.fit(lazy, y).n_iter_[0] for _ in range(16)][-1] == 0
    expected = fastce.sklearn.LogisticRegression(tol=TOL).fit(X, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e3 * TOL)


def test_a_task_has_one_thread(monkeypatch):
    seen = []

    def spied(*args, **kwargs):
        seen.append(kwargs["n_threads"])
        return objective(*args, **kwargs)

    monkeypatch.setattr(_objective, "objective", spied)
    X, y = data(2)
    LogisticRegression().fit(lazily(X), y)
    assert set(seen) == {1}


def test_what_is_refused():
    X, y = data(3)
    lazy = lazily(X)
    with pytest.raises(TypeError, match=r"X is a ndarray; expected a dask array"):
        LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match="solver is 'saga'; on dask arrays expected one of lbfgs"):
        LogisticRegression(solver="saga").fit(lazy, y)
    with pytest.raises(ValueError, match="expected l1_ratio=0 and dual=False"):
        LogisticRegression(l1_ratio=1).fit(lazy, y)
    with pytest.raises(ValueError, match=r"y has shape \(599,\); expected \(600,\)"):
        LogisticRegression().fit(lazy, y[1:])
    with pytest.raises(ValueError, match=r"y has the classes \[0\]; expected at least 2"):
        LogisticRegression().fit(lazy, 0 * y)
    with pytest.raises(ValueError, match="The 'C' parameter"):
        LogisticRegression(C=-1).fit(lazy, y)
    model = LogisticRegression().fit(lazy, y)
    for method in (model.predict, model.predict_proba, model.predict_log_proba, model.decision_function):
        with pytest.raises(ValueError, match=r"X has shape \(600,\); expected \(n_samples, n_features\)"):
            method(lazy[:, 0])
    with pytest.raises(ValueError, match=r"X has shape \(600,\)"):
        model.score(lazy[:, 0], y)
    weight = np.zeros(len(y))
    with pytest.raises(ValueError, match="weights of all rows are 0"):
        LogisticRegression().fit(lazy, y, sample_weight=weight)
    weight[7] = np.nan
    with pytest.raises(ValueError, match="Input sample_weight contains NaN"):
        LogisticRegression().fit(lazy, y, sample_weight=weight)
    model = LogisticRegression(warm_start=True).fit(lazy, y)
    with pytest.raises(ValueError, match=r"coef has shape \(39,\); expected \(3, 7\)"):
        model.fit(lazy[:, :6], y)
    X[450, 3] = np.nan
    with pytest.raises(ValueError, match=r"chunk 2 of the rows: Input contains NaN"):
        LogisticRegression().fit(lazily(X), y)


def test_a_sample_without_rare_classes_leads_back():
    """Its minimum is where these have no probability, and no step of its leads away from there."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20000, 8)), np.zeros(20000, int)
    for label in (1, 2, 3):
        y[rng.choice(20000, 4, replace=False)] = label
    options = {"class_weight": "balanced", "tol": 1e-6}
    model = LogisticRegression(**options).fit(da.from_array(X, chunks=(5000, 8)), y)  # or it warns
    np.testing.assert_allclose(
        model.coef_, fastce.sklearn.LogisticRegression(**options).fit(X, y).coef_, atol=1e-3
    )
