"""Objectives for gradient boosting: `fastce.boosting.xgboost`, `.lightgbm` and `.catboost`, each for its library."""
