"""scikit-learn's estimators on fastce's kernels."""

from fastce.sklearn._logistic import LogisticRegression, LogisticRegressionCV
from fastce.sklearn._temperature import TemperatureScaling

__all__ = ["LogisticRegression", "LogisticRegressionCV", "TemperatureScaling"]
