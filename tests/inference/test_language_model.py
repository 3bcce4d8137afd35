"""The example that trains, scores and samples a language model, with fewer steps."""

import re
from pathlib import Path

import matplotlib
import pytest

pytestmark = pytest.mark.once
EXAMPLE = Path(__file__).parents[2] / "docs/examples/plot_09_language_model.py"


def test_learns_and_writes(capsys, monkeypatch):
    matplotlib.use("Agg")
    source = EXAMPLE.read_text().replace("n_steps, n_batch = 600, 512", "n_steps, n_batch = 120, 128")
    assert "= 120, 128" in source
    names: dict = {"__name__": "example"}
    exec(compile(source, EXAMPLE.name, "exec"), names)
    printed = capsys.readouterr().out
    bits = float(re.search(r"bits per token\s+([\d.]+)", printed)[1])
    assert names["status"] == 0
    assert bits < 4.2  # the frequencies of single characters alone are 4.6
    assert printed.count("The object ") == 3
    names["plt"].close("all")
