"""fastce.sklearn's estimators: scikit-learn's conventions, its minimum, in fewer steps, also where it
warns."""

import importlib
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sklearn
from conftest import FLOATS
from scipy import sparse, special
from scipy.linalg import LinAlgWarning
from sklearn import linear_model
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_info, threadpool_limits

from fastce.calibration import fit_temperature
from fastce.cli.estimators import counted, words
from fastce.linear import objective

pytest.importorskip("sklearn", "1.8")  # the first that fastce.sklearn takes

import fastce.sklearn
from fastce.sklearn import LogisticRegression, LogisticRegressionCV, TemperatureScaling, _solver
from fastce.sklearn._span import Span

pytestmark = pytest.mark.once


def test_an_older_scikit_learn_is_refused(monkeypatch):
    monkeypatch.setattr(sklearn, "__version__", "1.7.2")
    with pytest.raises(ImportError, match=r"needs scikit-learn 1\.8 .* 1\.7\.2 is installed"):
        importlib.reload(fastce.sklearn)


@pytest.mark.filterwarnings("default")
@parametrize_with_checks(
    [
        LogisticRegression(),
        LogisticRegressionCV(Cs=2, cv=2, use_legacy_attributes=False, scoring="neg_log_loss"),
        TemperatureScaling(),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def value(model, X, y, C):
    """The objective, in float64, that scikit-learn's class minimises."""
    label = np.searchsorted(model.classes_, y)
    f = objective(X.astype(np.float64), label, len(model.classes_), l2=1 / (C * X.shape[0]))
    return f.loss(np.hstack([model.coef_, model.intercept_[:, None]]))


def one_hot(kind):
    """Columns that go together: those of each variable add up to one."""
    rng = np.random.default_rng(1)
    X = OneHotEncoder().fit_transform(rng.integers(20, size=(20000, 8)))
    y = X @ rng.normal(size=X.shape[1]) + rng.logistic(size=20000) > 0
    return X if kind == "csr" else X.toarray(), y.astype(int)


DATA = {
    "iris": lambda: load_iris(return_X_y=True),
    "digits": lambda: load_digits(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "one-hot": lambda: one_hot("dense"),
    "one-hot, csr": lambda: one_hot("csr"),
}


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "newton-cholesky"])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("C", [0.01, 1, 100])
def test_no_higher_than_scikit_learn(name, C, solver):
    X, y = DATA[name]()
    ours = LogisticRegression(C=C, solver=solver).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        theirs = linear_model.LogisticRegression(C=C, solver=solver).fit(X, y)
    # What is left to gain along columns that go together is an estimate, by what knows little of them; ten
    # steps of Newton's may be worth more than the hundred of ours that `max_iter` allows for.
    bound = 1e-6 if name.startswith("one-hot") else 1e-7
    bound = 1e-5 if name == "digits" and solver == "newton-cholesky" else bound
    assert value(ours, X, y, C) <= value(theirs, X, y, C) * (1 + bound)
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.n_iter_.dtype == theirs.n_iter_.dtype
    assert ours.n_iter_.shape == theirs.n_iter_.shape


def hard(kind, rng):
    X = rng.normal(size=(4000, 20))
    W = rng.normal(size=(20, 4))
    if kind == "unscaled":
        y = (X @ W + rng.gumbel(size=(4000, 4))).argmax(axis=1)
        return X * 10 ** rng.uniform(-3, 3, 20), y, 1.0
    if kind == "separable":
        return X, (X @ W).argmax(axis=1), 1e6
    W = rng.normal(size=(20, 200)) / 2
    y = (X @ W + rng.gumbel(size=(4000, 200))).argmax(axis=1)
    return X * 10 ** rng.uniform(-1, 1, 20), np.unique(y, return_inverse=True)[1], 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unscaled", "separable", "200 classes"])
def test_hard_cases_converge(kind, rng):
    X, y, C = hard(kind, rng)
    tol = 1e-7 if kind == "separable" else 1e-4
    with counted(len(X)) as our_passes:
        ours = LogisticRegression(C=C, tol=tol).fit(X, y)  # a warning would be an error
    with counted(len(X)) as their_passes, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = linear_model.LogisticRegression(C=C, tol=tol).fit(X, y)
    if kind != "separable":  # there scikit-learn's converges, to a higher objective
        assert issubclass(caught[0].category, ConvergenceWarning)
    assert our_passes[0] < their_passes[0]
    assert ours.n_iter_[0] < theirs.n_iter_[0]
    assert value(ours, X, y, C) <= value(theirs, X, y, C) * (1 + 1e-7)


def test_sparse_and_float32(rng):
    X = sparse.random(300, 40, 0.2, format="csr", random_state=0, dtype=np.float32)
    y = rng.integers(0, 3, 300)
    dense, csr = LogisticRegression(tol=1e-6).fit(X.toarray(), y), LogisticRegression(tol=1e-6).fit(X, y)
    assert dense.coef_.dtype == csr.coef_.dtype == csr.predict_proba(X).dtype == np.float32
    np.testing.assert_allclose(dense.coef_, csr.coef_, atol=1e-4)
    wide = LogisticRegression(tol=1e-6).fit(X.toarray().astype(np.float64), y)
    assert wide.coef_.dtype == np.float64
    np.testing.assert_allclose(dense.coef_, wide.coef_, atol=1e-4)


def test_a_sample_of_many_rows_leads_to_the_same_minimum(rng):
    X = rng.normal(size=(20000, 4))
    y = (X @ rng.normal(size=4) + rng.logistic(size=20000) > 0).astype(int)
    ours = LogisticRegression(tol=1e-8).fit(X, y)
    theirs = linear_model.LogisticRegression(tol=1e-8, solver="newton-cholesky").fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6)
    assert ours.n_iter_[0] <= 8


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_sample_does_not_lead_back_from_coefficients_that_are_better(rng):
    X = rng.normal(size=(20000, 4))
    y = (X @ rng.normal(size=(4, 3)) + rng.gumbel(size=(20000, 3))).argmax(axis=1)
    model = LogisticRegression(tol=1e-8, max_iter=1, warm_start=True)
    values = [value(model.fit(X, y), X, y, 1.0) for _ in range(10)]
    assert values == sorted(values, reverse=True)
    assert model.n_iter_[0] == 0
    theirs = linear_model.LogisticRegression(tol=1e-8, solver="newton-cg").fit(X, y)
    np.testing.assert_allclose(model.coef_, theirs.coef_, rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_all_logits_may_rise_together(rng, dtype):
    X = rng.normal(size=(2000, 10)).astype(dtype)
    y = (X @ rng.normal(size=(10, 5)) + rng.gumbel(size=(2000, 5))).argmax(axis=1)
    for C in (1, np.inf):
        model = LogisticRegression(C=C, tol=1e-6).fit(X, y)  # or it warns
        assert model.n_iter_[0] <= 8


def test_steps_of_many_coefficients_are_kept_in_the_features_precision(rng, monkeypatch):
    X = rng.normal(size=(3000, 30)).astype(np.float32)
    y = (X @ rng.normal(size=(30, 50)) + rng.gumbel(size=(3000, 50))).argmax(axis=1)
    with counted(len(X)) as passes:
        usual = LogisticRegression(tol=1e-6).fit(X, y)
    assert passes[0] <= 1.4 * usual.n_iter_[0] + 5  # few steps are taken back
    kept = []
    direction = _solver._direction
    monkeypatch.setattr(_solver, "LARGE", 0)
    monkeypatch.setattr(_solver, "_direction", lambda g, *a: kept.append(g.dtype) or direction(g, *a))
    model = LogisticRegression(tol=1e-6).fit(X, y)
    assert set(kept) == {np.dtype(np.float32)}
    np.testing.assert_allclose(model.coef_, usual.coef_, atol=1e-3)
    assert model.n_iter_[0] <= 1.3 * usual.n_iter_[0]


def test_blas_keeps_to_one_thread_where_coefficients_are_few(rng):
    X = rng.normal(size=(200, 3))
    seen = []

    def note(coef):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")

    with threadpool_limits(2, "blas"):
        _solver.minimize(
            X,
            rng.integers(0, 2, 200),
            2,
            np.zeros((1, 4)),
            sample_weight=None,
            fit_intercept=True,
            l2=0.1,
            limits=_solver.Limits(1e-4, 5, note),
        )
        after = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert set(seen) == {1}
    assert set(after) == {2}


@pytest.mark.parametrize("shape", [(200, 3), (50, 300)])
def test_who_follows_a_fit_sees_its_coefficients(rng, shape):
    """Not their coordinates in the span of the rows, where columns are many."""
    options = {"sample_weight": None, "fit_intercept": True, "l2": 0.1}
    X, y, seen = rng.normal(size=shape), rng.integers(0, 3, shape[0]), []
    found = _solver.minimize(
        X, y, 3, np.zeros((3, shape[1] + 1)), limits=_solver.Limits(1e-4, 5, seen.append), **options
    )
    assert len(seen) == found.n_iter
    np.testing.assert_array_equal(seen[-1], found.coef)


@pytest.mark.parametrize("shape", [(2000, 10), (50, 120)])
def test_what_all_classes_share_is_taken_away_first(rng, shape):
    """It changes no probability: a fit that has converged has no step to take."""
    X, y = rng.normal(size=shape), rng.integers(0, 3, shape[0])
    model = LogisticRegression(warm_start=True).fit(X, y)
    model.coef_ += 5
    assert model.fit(X, y).n_iter_[0] == 0


def in_a_thread(function, *arguments):
    """A thread that sets a limit keeps it to itself as long as it lives."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def test_fits_at_the_same_time_leave_blas_its_threads(rng):
    X, y = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)
    began, followed, ended = threading.Event(), threading.Event(), threading.Event()

    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def fit(begin, wait):
        options = {"sample_weight": None, "fit_intercept": True, "l2": 0.1}
        _solver.minimize(
            X,
            y,
            2,
            np.zeros((1, 4)),
            limits=_solver.Limits(1e-4, 5, lambda _: begin.set() or wait.wait(60)),
            **options,
        )

    usual = max(blas())
    in_a_thread(threadpool_limits, 2, "blas")
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(fit, began, followed)
            first.add_done_callback(lambda _: ended.set())
            began.wait(60)
            pool.submit(fit, followed, ended).result()
        assert set(blas()) == {2}
    finally:
        in_a_thread(threadpool_limits, usual, "blas")


def test_pickle(rng):
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression().fit(X, y)
    loaded = pickle.loads(pickle.dumps(model))
    assert (loaded.predict_proba(X) == model.predict_proba(X)).all()


def test_a_logit_that_is_infinite_is_a_class_that_is_sure():
    X = np.array([[-1], [0], [1], [2]], np.float32)
    model = LogisticRegression(C=1e6).fit(X, [0, 0, 1, 1])
    with np.errstate(over="ignore"):
        beyond = np.array([[-3e38], [3e38]], np.float32)
        assert np.isinf(model.decision_function(beyond)).all()
        assert model.predict_proba(beyond).tolist() == [[1, 0], [0, 1]]
        assert model.predict_log_proba(beyond).tolist() == [[0, -np.inf], [-np.inf, 0]]


def test_log_probabilities_keep_their_digits():
    model = LogisticRegression().fit([[-1.0], [1.0]], [0, 1])
    log_p = model.predict_log_proba([[1e4]])
    assert np.isfinite(log_p).all()
    z = model.decision_function([[1e4]])[0]
    assert log_p[0, 0] == pytest.approx(-z, rel=1e-15)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cv():
    X, y = load_iris(return_X_y=True)
    ours = LogisticRegressionCV(Cs=3, cv=3).fit(X, y)
    theirs = linear_model.LogisticRegressionCV(Cs=3, cv=3, max_iter=2000).fit(X, y)
    assert ours.C_[0] == theirs.C_[0]
    np.testing.assert_allclose(ours.scores_[0], theirs.scores_[0], atol=0.03)


def test_rows_of_no_weight_are_no_sample():
    """All that is sampled counts, however few they are."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5000, 400))
    y = np.argmax(X @ rng.normal(size=(400, 7)) + 5 * rng.gumbel(size=(5000, 7)), axis=1)
    weight = np.zeros(5000)
    y[::700], weight[::700] = np.arange(8) % 7, 1
    model = LogisticRegression(C=np.inf, max_iter=50).fit(X, y, sample_weight=weight)
    assert (model.predict(X[weight > 0]) == y[weight > 0]).all()
    few = (rng.random(5000) < 0.1).astype(float)
    model = LogisticRegression(max_iter=50).fit(X, y, sample_weight=few)
    alone = LogisticRegression(max_iter=50).fit(X[few > 0], y[few > 0])
    np.testing.assert_allclose(model.predict_proba(X), alone.predict_proba(X), atol=2e-3)


def test_negative_weights_may_have_no_minimum():
    rng = np.random.default_rng(1)
    X, y, weight = rng.normal(size=(200, 5)), rng.integers(3, size=200), rng.normal(size=200) - 0.2
    with pytest.warns(ConvergenceWarning):
        LogisticRegression(C=1e-3).fit(X, y, sample_weight=weight)


def test_columns_of_any_scale():
    rng = np.random.default_rng(5)
    Z = rng.normal(size=(2000, 10))
    y = Z.sum(axis=1) + rng.logistic(size=2000) > 0
    fit = LogisticRegression(C=np.inf, max_iter=20).fit
    wide = Z * 10.0 ** np.linspace(-4, 4, 10)
    np.testing.assert_allclose(fit(wide, y).predict_proba(wide), fit(Z, y).predict_proba(Z), atol=1e-3)


def test_rare_classes_that_weigh_much(rng):
    """No sample of the rows would have them, but for their weight."""
    X = rng.normal(size=(30000, 8))
    X[:3] += 2 * np.eye(3, 8)
    y = (np.arange(30000) < 3).astype(int)
    ours = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=12).fit(X, y)  # or it warns
    theirs = linear_model.LogisticRegression(class_weight="balanced", tol=1e-8).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4)


def test_rounding_errors_of_float32_are_no_steps():
    """Of a column that large the gradient is never as small as tol."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 4))
    y = (X @ rng.normal(size=(4, 3)) + rng.gumbel(size=(400, 3))).argmax(axis=1)
    X[:, 0] *= 1e6
    X = X.astype(np.float32)
    narrow = LogisticRegression(max_iter=12).fit(X, y)  # or it warns
    exact = LogisticRegression(tol=1e-9).fit(X.astype(np.float64), y)
    assert value(narrow, X, y, 1) <= value(exact, X, y, 1) * (1 + 1e-7)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((400, 4), np.array), ((9000, 4), np.array), ((4000, 410), np.array), ((400, 600), sparse.csr_array)],
)
def test_columns_whose_squares_float32_does_not_have(rng, shape, kind):
    """In the Hessian, that of a sample, X'X and the diagonal."""
    X = rng.normal(size=shape).astype(np.float32)
    z = X @ rng.normal(size=(shape[1], 3)) / shape[1] ** 0.5
    y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    scale = 2.0**66
    large = LogisticRegression(C=scale**-2, fit_intercept=False)
    large.fit(kind(X * np.float32(scale)), y)  # or it warns
    exact = LogisticRegression(tol=1e-6, fit_intercept=False).fit(kind(X), y)
    large.coef_ = large.coef_.astype(np.float64) * scale
    assert value(large, X, y, 1.0) <= value(exact, X, y, 1.0) * (1 + 1e-5)


@pytest.mark.parametrize("C", [1, 100, np.inf])
@pytest.mark.parametrize("classes", [2, 5])
def test_more_columns_than_rows(classes, C):
    """In the span of the rows; from given coefficients on, whose part beside it only a penalty takes away."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(75, 3000)), rng.integers(classes, size=75)
    model = LogisticRegression(C=C, max_iter=50, warm_start=True).fit(X, y)
    theirs = linear_model.LogisticRegression(C=C, max_iter=500).fit(X, y)
    assert value(model, X, y, C) <= value(theirs, X, y, C) + 1e-12
    beside = np.linalg.qr(np.vstack([X, rng.normal(size=3000)]).T)[0][:, -1]
    model.coef_ = model.coef_ + np.linspace(-5, 5, len(model.coef_))[:, None] * beside
    given = model.coef_ @ beside
    left = model.fit(X, y).coef_ @ beside
    np.testing.assert_allclose(left, given if np.isinf(C) else 0, atol=1e-8)


@pytest.mark.parametrize("shape", [(200, 900), (400, 900)])
@pytest.mark.parametrize("classes", [2, 4])
def test_wide_and_ill_conditioned(shape, classes, rng):
    """Singular values of X fall like 1 / k: outside of the span of its rows steps are hundreds."""
    U, _, V = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    X = (U / np.arange(1, len(V) + 1)) @ V * np.prod(shape) ** 0.5
    z = X @ rng.normal(size=(shape[1], classes))
    y = (3 * z / z.std() + rng.gumbel(size=z.shape)).argmax(axis=1)
    model = LogisticRegression(max_iter=1000).fit(X, y)
    theirs = linear_model.LogisticRegression(max_iter=1000).fit(X, y)
    assert value(model, X, y, 1.0) <= value(theirs, X, y, 1.0) * (1 + 1e-6)
    assert 1.5 * model.n_iter_[0] <= theirs.n_iter_[0]
    of_float32 = LogisticRegression(max_iter=1000).fit(X.astype(np.float32), y)
    assert value(of_float32, X, y, 1.0) <= value(theirs, X, y, 1.0) * (1 + 1e-4)


def test_wide_of_low_rank(rng, capfd):
    X, y = np.zeros((30, 900)), np.arange(30) % 2
    assert not LogisticRegression().fit(X, y).coef_.any()
    X[:, :450] = np.outer(rng.normal(size=30), rng.normal(size=450))
    X[20:] = X[:10]
    theirs = linear_model.LogisticRegression(tol=1e-8).fit(X, y)
    np.testing.assert_allclose(LogisticRegression(tol=1e-8).fit(X, y).coef_, theirs.coef_, atol=1e-7)
    assert capfd.readouterr() == ("", "")  # LAPACK prints what it is given wrongly


@pytest.mark.parametrize(
    "kind", ["as it is", "large row", "large column", "equal rows", "nearly equal rows", "zeros"]
)
def test_coordinates_of_wide_data(kind, rng):
    """Of coefficients in the span of the rows, also where X X' has lost what is small beside the largest."""
    X, coef = rng.normal(size=(50, 300)), rng.normal(size=(3, 300))
    if kind == "large row":
        X[7] *= 1e8
    elif kind == "large column":
        X[:, 3] = 2e9
    elif kind == "equal rows":
        X[20:40] = X[:20]
    elif kind == "nearly equal rows":
        X[20:40] = X[:20] + 1e-6 * rng.normal(size=(20, 300))
    elif kind == "zeros":
        X[:] = 0
    span = Span(X, coef, stays_beside=True)
    noise = 1e-14 * np.linalg.norm(X, axis=1)[:, None] * np.linalg.norm(coef)
    assert (np.abs(span.rows @ span.start.T - X @ coef.T) <= 10 * noise).all()
    np.testing.assert_allclose(span.coef(span.start), coef, atol=1e-12)
    u = rng.normal(size=(3, 50))
    inside = Span(X, np.zeros_like(coef), stays_beside=False).coef(u)
    assert (np.abs(span.rows @ u.T - X @ inside.T) <= 10 * noise).all()
    # As long as the coordinates, which a penalty asks for; of a millionth of a row's square X X' knows 1e-10.
    np.testing.assert_allclose(inside @ inside.T, u @ u.T, rtol=1e-9, atol=1e-8)


def test_a_class_without_weight(rng):
    """Its logits fall without end, slower and slower: the objective is not to stay above scikit-learn's."""
    X = rng.normal(size=(500, 10))
    y = (X @ rng.normal(size=(10, 3)) + rng.gumbel(size=(500, 3))).argmax(axis=1)
    weight = np.where(y == 2, 0.0, 1.0)

    def objective(kind, C):
        model = kind(C=C, max_iter=500).fit(X, y, sample_weight=weight)
        losses = -model.predict_log_proba(X)[np.arange(500), y]
        return losses @ weight + np.square(model.coef_).sum() / (2 * C)

    for C in (0.01, 1, 100):
        assert objective(LogisticRegression, C) <= objective(linear_model.LogisticRegression, C) * (1 + 1e-7)


@pytest.mark.parametrize("C", [1, 100, 10_000])
def test_weights_are_repeated_rows(C):
    """As many columns as make the rows few, and the repeated ones not."""
    rng = np.random.RandomState(42)
    X, y, times = rng.rand(15, 30), rng.randint(0, 3, 15), rng.randint(0, 5, 15)
    weighted = LogisticRegression(C=C).fit(X, y, sample_weight=times)
    repeated = LogisticRegression(C=C).fit(X.repeat(times, axis=0), y.repeat(times))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-7)


def test_frequent_words_are_seen_together():
    X, y = words(5000, 10_000, 5)
    for kind in (sparse.csr_array, sparse.csr_matrix):
        model = LogisticRegression().fit(kind(X), y)
        assert model.n_iter_[0] <= 34  # 68 by the diagonal alone
    theirs = linear_model.LogisticRegression(solver="newton-cg").fit(X, y)
    assert value(model, X, y, 1.0) <= value(theirs, X, y, 1.0) * (1 + 1e-6)


def test_no_hessian_is_made_to_finish(monkeypatch):
    of_hessian, gradients = _solver.of_hessian, []

    def noting(f, w):
        gradients.append(np.abs(f.loss_and_grad(w)[1]).max())
        return of_hessian(f, w)

    monkeypatch.setattr(_solver, "of_hessian", noting)
    LogisticRegression().fit(*load_iris(return_X_y=True))
    assert len(gradients) > 3
    assert min(gradients) > 1e-4


def test_other_solvers_are_scikit_learns():
    X, y = load_iris(return_X_y=True)
    ours = LogisticRegression(solver="saga", random_state=0, max_iter=5000).fit(X, y)
    theirs = linear_model.LogisticRegression(solver="saga", random_state=0, max_iter=5000).fit(X, y)
    assert (ours.coef_ == theirs.coef_).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_temperature_of_a_fitted_classifier(classes):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < classes, 1:2], np.array(["a", "b", "c"])[y[y < classes]]
    fitted = LogisticRegression().fit(X[::2], y[::2])
    model = TemperatureScaling(fitted).fit(X[1::2], y[1::2])
    assert model.estimator_ is fitted
    z = fitted._logits(X[1::2])
    assert model.temperature_ == fit_temperature(z, np.searchsorted(model.classes_, y[1::2]))
    np.testing.assert_allclose(np.log(model.predict_proba(X)), model.predict_log_proba(X), rtol=1e-12)
    bayes = TemperatureScaling(GaussianNB().fit(X[::2], y[::2])).fit(X[1::2], y[1::2])
    assert bayes.predict_proba(X).shape == (len(X), classes)


class Votes(ClassifierMixin, BaseEstimator):
    """Logits that are whole numbers."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]

    def decision_function(self, X):
        return np.rint(9 * X[:, : len(self.classes_)] - 30).astype(int)


class Column(Votes):
    """One logit, in a column."""

    def predict(self, X):
        return self.classes_[(self.decision_function(X)[:, 0] > 0).astype(int)]

    def decision_function(self, X):
        return X[:, 2:3] - 2.5


def test_temperature_of_logits_that_are_integers_or_one_column():
    X, y = load_iris(return_X_y=True)
    model = TemperatureScaling(Votes().fit(X, y)).fit(X, y)
    z = model.estimator_.decision_function(X) / model.temperature_
    np.testing.assert_allclose(model.predict_proba(X), special.softmax(z, axis=1), rtol=1e-12)
    model = TemperatureScaling(Column().fit(X[:100], y[:100])).fit(X[50:100], y[49:99])
    p = special.expit(model.estimator_.decision_function(X)[:, 0] / model.temperature_)
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], p, rtol=1e-12)


@pytest.mark.parametrize(
    "classifier",
    [KNeighborsClassifier(50), LinearDiscriminantAnalysis(), Pipeline([("last", LogisticRegression())])],
)
def test_temperature_of_a_classifier_without_weights(classifier):
    X, y = load_iris(return_X_y=True)
    X, y = X[50:], y[50:]
    weight = np.arange(1.0, len(y) + 1)
    with pytest.warns(
        UserWarning, match=r"\.fit has no parameter sample_weight: weights serve the temperature"
    ):
        model = TemperatureScaling(classifier).fit(X, y, sample_weight=weight)
    fitted = TemperatureScaling(clone(classifier).fit(X, y)).fit(X, y, sample_weight=weight)
    assert model.temperature_ == fitted.temperature_


def test_temperature_of_a_classifier_that_excludes_classes():
    X, y = load_iris(return_X_y=True)
    classifier = KNeighborsClassifier(1).fit(X[::2], y[::2])
    with pytest.raises(ValueError, match=r"gives y\[35\], .*, a probability of 0, which no temp"):
        TemperatureScaling(classifier).fit(X[1::2], np.r_[y[1:71:2], 2, y[73::2]])


@pytest.mark.filterwarnings("ignore:every target has the largest logit")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [LogisticRegression, linear_model.LogisticRegression])
def test_probabilities_of_long_doubles_are_float64(kind, classes):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < classes], y[y < classes]
    wide, model = X.astype(np.longdouble), LogisticRegression(C=0.01).fit(X, y)
    for method in ("predict_proba", "predict_log_proba"):
        p = getattr(model, method)(wide)
        assert p.dtype == np.float64
        np.testing.assert_allclose(p, getattr(model, method)(X), rtol=1e-12)
    for logits in ("decision_function", "log_proba"):
        scaled = TemperatureScaling(kind(C=0.01).fit(X, y), logits=logits)
        temperature = scaled.fit(X, y).temperature_
        np.testing.assert_allclose(scaled.fit(wide, y).temperature_, temperature, rtol=1e-8)


class Unsorted(Votes):
    def fit(self, X, y):
        self.classes_ = np.unique(y)[[2, 0, 1]]
        return self


def test_temperature_of_a_classifier_whose_classes_are_in_any_order():
    X, y = load_iris(return_X_y=True)
    sorted_ = TemperatureScaling(Votes().fit(X, y)).fit(X, y)
    names = np.array(["c", "a", "b"])[y]  # the columns' order
    model = TemperatureScaling(Unsorted().fit(X, names)).fit(X, names)
    assert model.temperature_ == sorted_.temperature_
    with pytest.raises(ValueError, match=r"y\[1\] is .*'d'.*expected one of"):
        model.fit(X, np.r_[names[:1], ["d"], names[2:]])


def test_temperature_of_probabilities_of_0_does_not_warn():
    X, y = load_iris(return_X_y=True)
    forest = RandomForestClassifier(10, max_depth=3, random_state=0).fit(X, y)
    p = TemperatureScaling(forest).fit(X, y).predict_proba(X)  # a warning would be an error
    assert ((p == 0) == (forest.predict_proba(X) == 0)).all()


def test_temperature_refuses():
    X, y = load_iris(return_X_y=True)
    pairs = SVC(decision_function_shape="ovo").fit(*(a[:500] for a in load_digits(return_X_y=True)))
    with pytest.raises(ValueError, match=r"shape \(500, 45\); expected a column for each of its 10 classes"):
        TemperatureScaling(pairs).fit(*(a[:500] for a in load_digits(return_X_y=True)))
    three = SVC(decision_function_shape="ovo").fit(X, y)
    for classifier in (three, Pipeline([("last", three)])):
        with pytest.raises(ValueError, match=r"of pairs of classes have shape \(150, 3\); .*='ovr'"):
            TemperatureScaling(classifier).fit(X, y)
    two = SVC(decision_function_shape="ovo").fit(X[50:], y[50:])
    assert TemperatureScaling(two).fit(X[50:], y[50:]).temperature_ > 0
    with pytest.raises(ValueError, match="logits is 'margins'; expected 'auto'"):
        TemperatureScaling(logits="margins").fit(X, y)
    fitted = LogisticRegression().fit(X[y < 2], y[y < 2])
    with pytest.raises(ValueError, match=r"y\[100\] is .*expected one of the classifier's classes"):
        TemperatureScaling(fitted).fit(X, y)
