"""Benchmarks for asv. In this folder: ``asv run --quick --python=same``, or ``asv run``."""
