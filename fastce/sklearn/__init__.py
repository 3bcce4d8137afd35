"""scikit-learn's estimators on fastce's kernels."""

from fastce.sklearn._logistic import LogisticRegression, LogisticRegressionCV

__all__ = ["LogisticRegression", "LogisticRegressionCV"]
