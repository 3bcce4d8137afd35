"""scikit-learn's own tests of logistic regression, with fastce's classes in their place."""

import importlib
import inspect

import pytest

from fastce.sklearn import LogisticRegression, LogisticRegressionCV, _substituted

pytestmark = pytest.mark.once  # what is tested is the solver; its sums are tested at each level

theirs = importlib.import_module("sklearn.linear_model.tests.test_logistic")
COLLECTED = {
    f"test_of_scikit_learn_{name.removeprefix('test_')}": test
    for name, test in vars(theirs).items()
    if name.startswith("test_") and inspect.isfunction(test)
}
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


def test_scikit_learn_has_tests():
    assert len(COLLECTED) >= 60
