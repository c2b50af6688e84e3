"""What the pages say against what is there: links, commands, the tree, the table of the recipe's keys."""

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.main import get_command

from flows.cli.main import app
from tasks.recipe import reference
from tasks.recipe.stages import Recipe

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh.md")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
# Written by `python -m benchmarks.real_sets`, which takes its time and its data.
MADE_LATER = {"docs/results.md"}


def pages() -> list[Path]:
    folders = ("docs", "examples", "deployments", "benchmarks")
    inside = (page for folder in folders for page in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *inside])


def code(page: str) -> str:
    """Every command line and every word set as code."""
    return "\n".join(block or word for block, word in CODE.findall((ROOT / page).read_text("utf-8")))


def test_the_pages_are_where_this_test_looks() -> None:
    assert len(pages()) >= 18
    assert sum(len(LINK.findall(page.read_text("utf-8"))) for page in pages()) >= 40


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    targets = [unquote(target).partition("#")[0] for target in LINK.findall(text) if "://" not in target]
    broken = [target for target in targets if target and not (page.parent / target).exists()]
    assert [target for target in broken if target not in MADE_LATER] == []


@pytest.mark.parametrize("page", [*READMES, "CONTRIBUTING.md", "docs/operations.md", "docs/recipe.md"])
def test_every_command_on_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = set(get_command(app).commands)
    text = code(page)
    made = set(re.findall(r"\bmake ([a-z-]+)", text))
    called = set(re.findall(r"(?<![\w.-])tuneline ([a-z][a-z-]+)", text))
    assert made | called, "this test has found nothing to look at"
    assert made - targets == set()
    assert called - commands == set()


def test_the_readme_shows_both_first_commands() -> None:
    for page in READMES:
        assert {"make quickstart", "make test"} <= set(re.findall(r"^make \w+", code(page), re.MULTILINE))


def test_the_readmes_tree_names_every_top_level_folder() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith((".", '"'))}
    assert len(folders) >= 9
    for page in READMES:
        named = set(re.findall(r"^\| `([a-z]+)/` \|", (ROOT / page).read_text("utf-8"), re.MULTILINE))
        assert named == folders, page


def test_the_files_that_the_pages_name_as_tests_are_there() -> None:
    named = {path for page in pages() for path in re.findall(r"`(tests/[\w/.]+)`", page.read_text("utf-8"))}
    assert len(named) >= 6
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_table_of_keys_is_what_the_recipe_is() -> None:
    page = reference.TARGET.read_text("utf-8")
    assert page == reference.with_tables(page), "run `python -m tasks.recipe.reference`"
    assert all(f"| `{key}` |" in page for key in Recipe.model_fields)


def test_the_recipe_page_shows_a_fault_as_it_is_shown() -> None:
    from tasks.errors import InvalidRecipe
    from tasks.recipe.file import build_recipe

    wrong = {"name": "my-model", "data": {"train": ["a"]}, "training": {"learning_rate": 3, "epochs": "one"}}
    with pytest.raises(InvalidRecipe) as refused:
        build_recipe(wrong)
    shown = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    faults = [line.partition(": ")[2] for line in str(refused.value).splitlines()]
    assert len(faults) == 2
    assert all(fault in shown for fault in faults)


def test_decisions_are_numbered_without_a_gap_and_have_four_parts() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    assert len(decisions) >= 10
    for page in decisions:
        text = page.read_text("utf-8")
        assert text.startswith(f"# {page.name[:4]} "), page.name
        assert all(f"**{part}.**" in text for part in ("Context", "Choice", "Refused", "Would change it")), page.name
