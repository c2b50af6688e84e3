"""The manifest and the card of a release."""

import json
import subprocess

import pytest

from tasks.artifacts import (
    Estimate,
    EvaluationReport,
    MergedModel,
    SuiteReport,
    TokenizedDataset,
    TrainedWeights,
    ValidatedDataset,
)
from tasks.recipe.stages import Recipe
from tasks.registry.release import code_version, model_card, release_manifest


@pytest.fixture
def evaluated() -> EvaluationReport:
    scores = {
        who: {"exact_match": Estimate(mean=m, low=m - 0.1, high=m, rows=150)}
        for who, m in (("base", 0.1), ("candidate", 0.9))
    }
    suite = SuiteReport(suite="test", rows=150, scores=scores, comparisons=[], slices=[])
    return EvaluationReport(
        digest="e",
        primary_metric="exact_match",
        confidence=0.95,
        suites={"test": suite},
        candidate_digest="m",
        base_digest="b",
        examples=[{"prompt": "Where's my order?", "reference": "", "base": "", "candidate": ""}],
    )


@pytest.fixture
def manifest(evaluated):
    return release_manifest(
        Recipe.model_validate({"name": "desk", "data": {"train": ["a.jsonl"]}}),
        ValidatedDataset(
            digest="d",
            name="a",
            format="alpaca",
            sources=["a.jsonl"],
            rows={"train": 900},
            findings={},
            source_digest="s",
        ),
        TokenizedDataset(
            digest="t",
            base_digest="b",
            tokenizer_digest="k",
            template_digest="p",
            rows={},
            tokens={},
            trained_tokens={},
            truncated={},
        ),
        TrainedWeights(
            digest="w",
            method="lora",
            kind="adapter",
            base_digest="b" * 64,
            steps=100,
            tokens=5000,
            seconds=1.0,
            trainable_parameters=1000,
            best_step=80,
            best_validation_loss=0.5,
            final_training_loss=0.4,
        ),
        evaluated,
        MergedModel(digest="m", kind="merged", model_digest="m", parity=None),
        {"training": 0},
    )


def test_the_manifest_is_plain_json_with_every_digest(manifest):
    assert json.loads(json.dumps(manifest)) == manifest
    assert set(manifest["digests"]) == {
        "recipe", "sources", "data", "base", "tokenizer", "template", "weights", "model", "evaluation",
    }  # fmt: skip
    assert manifest["evaluation_rows"] == {"test": 150} and manifest["seeds"] == {"training": 0}
    assert {"torch", "transformers", "mlflow"} <= set(manifest["packages"])


def test_the_card_shows_how_to_ask_and_what_was_measured(manifest, evaluated):
    card = model_card(manifest, evaluated, "Sorts customer messages.")
    assert 'load_model("models:/desk@production")' in card
    assert "| exact_match | 0.100 (0.000 to 0.100) | 0.900 (0.800 to 0.900) |" in card
    assert "Sorts customer messages." in card and "## Limits" in card
    command = next(line for line in card.splitlines() if line.startswith("curl "))
    sent = subprocess.run(
        ["bash", "-c", f'curl() {{ echo "${{@: -1}}"; }}; {command}'], capture_output=True, text=True, check=True
    )
    assert json.loads(sent.stdout)["dataframe_records"][0]["messages"][0]["content"] == "Where's my order?"


def test_the_code_version_is_the_commit_or_the_package(tmp_path):
    assert set(code_version(tmp_path)) == {"package"}

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "One")
    found = code_version(tmp_path)
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "a.py").write_text("2")
    assert code_version(tmp_path)["dirty"] is True
