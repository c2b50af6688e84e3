"""The examples in docstrings are run: each shows what its function gives."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOWN = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("flows", "tasks", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


def test_the_examples_are_where_this_test_looks() -> None:
    assert len(SHOWN) >= 30


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_docstring_shows_is_what_its_function_gives(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.attempted and not outcome.failed
