"""Runs of the benchmark: kept in files and read again, and shown by the README and the page of benchmarks."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import fastce
from fastce.cli import goals, linear_goals, main, neighbours, relatives
from fastce.cli.measure import Case
from fastce.cli.report import Run

pytestmark = pytest.mark.once  # times nothing

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))


def test_pages_show_their_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/benchmarks.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_a_page_that_shows_something_else_is_named(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("benchmarks", ROOT / "tools/benchmarks.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/benchmarks.md"):
        text = (ROOT / page).read_text()
        (tmp_path / page).write_text(text.replace("8192", "8193") if page == "README.md" else text)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks.py", "--check"])
    assert tool.main() == 1
    assert capsys.readouterr().out.startswith("README.md is not what its run says")
    assert "8193" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_read_and_written(path, tmp_path):
    run = Run.read(path)
    run.write(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text() == path.read_text()
    assert len(run.cases) == 24


def test_summary():
    seconds = {"fastce": 1.0, "stream": 0.5, "numpy": 8.0, "torch": 2.0}
    cases = [
        Case((2, 3), "float32", "loss", seconds),
        Case((2, 3), "float32", "loss+grad", seconds | {"torch": 32.0}),
    ]
    run = Run(
        "a processor",
        "v3",
        2,
        3,
        "2026-01-01",
        {"fastce": "0", "Python": "3", "NumPy": "2", "numpy": "2", "torch": "2"},
        cases,
    )
    assert run.rivals == ["numpy", "torch"]
    assert run.mean_of_best() == pytest.approx(4.0)  # of 2 and 8
    assert run.cells(cases[0])[5:] == ["50%", "8.00x", "[bold]2.00x[/]"]


def test_times_of_a_level_come_from_a_run_at_it(monkeypatch):
    monkeypatch.setattr(goals, "LEVEL_SHAPES", "32x10")
    times = goals._times_at_level("baseline", goals.Setting([], rounds=1, n_threads=1))
    assert set(times) == {"32x10 loss", "32x10 loss+grad"}
    assert all(seconds > 0 for seconds in times.values())


def test_a_goal_without_its_rival_is_left_out(monkeypatch):
    monkeypatch.setattr("fastce.cli.rivals.find_spec", lambda module: None)
    assert linear_goals._head_torch(1, 1)[1] == "no torch"


def test_neighbours_are_timed_in_the_order_of_their_names(monkeypatch):
    def seconds(calls, rounds):
        assert all(call() is not None for call in calls.values())
        return dict(zip(calls, (3.0, 2.0), strict=True))

    monkeypatch.setattr(neighbours, "interleaved", seconds)
    ratios = {name: function(1, fastce.get_num_threads()) for name, function, _ in neighbours.figures()}
    assert all("÷" in name for name in ratios)
    assert set(ratios.values()) == {(1.5, "3.00 s ÷ 2.00 s")}


def test_what_is_missing_is_in_the_extras_that_are_named(monkeypatch, capsys):
    monkeypatch.setattr("fastce.cli.common.find_spec", lambda module: None if module == "torch" else module)
    assert main(["bench", "--rivals", "torch"]) == 2
    assert "'fastce[bench,torch]'" in capsys.readouterr().err


@pytest.mark.parametrize("option", relatives.OPTIONS)
def test_options_are_held_against_the_plain_call(option, monkeypatch):
    calls, compute = set(), fastce.cross_entropy_and_grad

    def noted(logits, *, target, **options):
        calls.add((target.dtype.kind, *sorted(options)))
        return compute(logits, target, **options)

    monkeypatch.setattr(fastce, "cross_entropy_and_grad", noted)
    n_threads = fastce.get_num_threads()  # which the benchmark sets
    ratio, _ = relatives.option_cost(option, (64, 5), rounds=1, n_threads=n_threads)
    assert ratio > 0
    given = {"out", *relatives.OPTIONS[option]}
    kind = "f" if "target" in given else "i"
    assert calls == {("i", "out"), (kind, *sorted(given - {"target"}))}


@pytest.mark.parametrize("option", ["--plot", "--json"])
def test_what_cannot_be_written_is_said_before_the_work(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastce.cli.bench._run_peers", None)
    suffix = {"--plot": ".png", "--json": ".json"}[option]
    for name, message in (
        ("none/run" + suffix, "that can be written to"),
        ("run.txt", f"ending in {suffix}"),
    ):
        assert main(["bench", option, str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
