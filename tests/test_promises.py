"""The page "What fastce promises" names tests that exist."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

TESTS = {path.name: path for path in Path(__file__).parent.rglob("test_*.py")}
PAGE = Path(__file__).parents[1].joinpath("docs/promises.md").read_text()
NAMED = sorted(set(re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=["::".join(filter(None, names)) for names in NAMED])
def test_exists(file, name):
    definition = rf"^def {name}\(" if name else r"^def test_"
    assert re.search(definition, TESTS[file].read_text(), re.MULTILINE)


def test_every_promise_names_one():
    promises = re.findall(r"^- \*\*.+?(?=^[-#\n]|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert len(promises) > 25
    for promise in promises:
        assert "Kept by `test_" in promise, promise
