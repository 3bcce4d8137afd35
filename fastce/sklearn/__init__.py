"""scikit-learn's estimators on fastce's kernels."""

import sklearn

if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8):  # whose functions run here, see _substituted
    raise ImportError(
        f"fastce.sklearn needs scikit-learn 1.8 or newer; {sklearn.__version__} is "
        "installed: pip install 'fastce[sklearn]'"
    )

from fastce.sklearn._logistic import LogisticRegression, LogisticRegressionCV
from fastce.sklearn._temperature import TemperatureScaling

__all__ = ["LogisticRegression", "LogisticRegressionCV", "TemperatureScaling"]
