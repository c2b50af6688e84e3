"""A merge's numbers where people look for them, adapters that stay adapters, and versions that leave the registry."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flows.cli.main import run
from flows.preflight import preflight
from tasks.merge import merge
from tasks.registry.client import connect
from tasks.registry.merge_table import markdown


def test_the_measured_merge_is_in_the_run_the_release_and_the_card(released, shop):
    merged = released.merged
    (only,) = merged.candidates
    assert (merged.kind, merged.rule, only.saved) == ("merged", "full_precision", True)
    assert merged.parity == only.parity and merged.adapter_score == only.score

    client, run_id = connect(shop.uri), released.versions.mlflow_run_id
    metrics = client.get_run(run_id).data.metrics
    assert metrics["merge/full_precision/mean_kl"] == only.parity.mean_kl
    assert metrics["merge/full_precision/exact_match"] == metrics["merge/adapter/exact_match"] == only.score
    table = json.loads(Path(client.download_artifacts(run_id, "merge/candidates.json")).read_text("utf-8"))
    assert "mean_kl" in table["columns"] and len(table["data"]) == 1
    release = json.loads(released.versions.path("release.json").read_text("utf-8"))
    assert release["merge"]["candidates"] == [only.model_dump()]
    assert "| **full_precision**" in released.versions.path("MODEL_CARD.md").read_text("utf-8")


def test_an_adapter_that_cannot_be_folded_is_handed_on_with_the_reason(released, shop):
    why = "there is nothing to fold into the base"
    weights = released.weights.model_copy(update={"not_merged": why})
    recipe = shop.recipe("colours", merging={"prompts": 5})
    made = merge(weights, released.dataset, released.tokenized, recipe, preflight(recipe))
    assert (made.kind, made.rule, made.parity, made.candidates) == ("adapter", "", None, [])
    assert made.reason == why and why in markdown(made)
    there, here = (each / "adapter_model.safetensors" for each in (weights.path("weights"), made.path("model")))
    assert there.stat().st_ino == here.stat().st_ino


def test_a_registered_version_leaves_in_shards_of_the_format_asked_for(released, shop, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["export", "colours", str(out), "--dtype", "bf16", "--shard-size", "100KB"]) == 0
    said = capsys.readouterr().out
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 1 and f"bf16 in {len(shards)} files" in said
    found = set()
    for path in shards:
        with safe_open(path, framework="pt") as weights:
            found |= {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118 (it is no mapping)
    assert found == {torch.bfloat16}
    assert {"MODEL_CARD.md", "release.json", "origin.json", "chat_template.jinja", "generation_config.json"} <= {
        path.name for path in out.iterdir()
    }
    assert "of 2 greedy answers 2 equal" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["colours-adapter"], "colours/1 is the model that it is folded into"),
        (["colours", "--alias", "nowhere"], "production → 1"),
        (["colours", "--version", "99"], "colours/99 does not exist"),
    ],
)
def test_what_cannot_be_exported_says_why(released, shop, tmp_path, capsys, line, said):
    assert run(["export", line[0], str(tmp_path / "out"), *line[1:]]) == 1
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []
