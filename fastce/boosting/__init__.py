"""Objectives for gradient boosting: modules `xgboost`, `lightgbm` and `catboost`, each for its library."""
