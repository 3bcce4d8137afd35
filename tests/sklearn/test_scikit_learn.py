"""scikit-learn's own tests of logistic regression, with fastce's classes in their place."""

import importlib
import inspect

import pytest

pytest.importorskip("sklearn", "1.8")  # the first that fastce.sklearn takes

from fastce.sklearn import LogisticRegression, LogisticRegressionCV, _substituted

theirs = importlib.import_module("sklearn.linear_model.tests.test_logistic")
# What is tested is the solver; its sums are tested at each level.
# scikit-learn lets warnings pass, but for those that its tests turn into errors.
pytestmark = [pytest.mark.once, pytest.mark.slow, pytest.mark.filterwarnings("default"), theirs.pytestmark]
COLLECTED = {
    f"test_of_scikit_learn_{name.removeprefix('test_')}": test
    for name, test in vars(theirs).items()
    if name.startswith("test_") and inspect.isfunction(test)
}
CLASSES = {theirs.LogisticRegression: LogisticRegression, theirs.LogisticRegressionCV: LogisticRegressionCV}
for test in COLLECTED.values():
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":  # also instead of generators, which pytest deprecates
            values = [
                CLASSES.get(value, value) if inspect.isclass(value) else value for value in mark.args[1]
            ]
            object.__setattr__(mark, "args", (mark.args[0], values, *mark.args[2:]))
globals().update(COLLECTED)  # pytest finds them here, with their parameters
OURS = {
    "LogisticRegression": LogisticRegression,
    "LogisticRegressionCV": LogisticRegressionCV,
    "_log_reg_scoring_path": _substituted.log_reg_scoring_path,
    "_logistic_regression_path": _substituted.logistic_regression_path,
}


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """scikit-learn's tests use fastce's classes."""
    for name, replacement in OURS.items():
        assert hasattr(theirs, name)
        monkeypatch.setattr(theirs, name, replacement)


@pytest.fixture
def global_random_seed():
    """scikit-learn's own fixture, with its default."""
    return 42


def test_scikit_learn_has_tests():
    assert len(COLLECTED) >= 60
