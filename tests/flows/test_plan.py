"""Which method is chosen, from a base's config and the machine; and what the command shows of it."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import run
from tasks.artifacts import TokenizedDataset, TrainedWeights
from tasks.errors import InvalidRecipe
from tasks.modeling.memory import Memory, PackSize, Prediction
from tasks.planning import plan
from tasks.planning.auto import resolve_method
from tasks.planning.plan import GIB, Option, Plan
from tasks.planning.workload import LARGEST_FILE, Workload, workload
from tasks.recipe.methods import EightBitLoraMethod, FullMethod, LoraMethod, QLoraMethod
from tasks.recipe.stages import ComputeRecipe, Recipe, Strategy
from tasks.steps.state import State


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "state"))


@pytest.fixture
def wide(tiny_base: Path, tmp_path: Path) -> Path:
    """A wide base's config and a tokenizer: no weights."""
    folder = tmp_path / "wide"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 4, "vocab_size": 32000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config | shape | heads | {"dtype": "bfloat16"}), "utf-8")
    return folder


def recipe(base: Path, colours: Path, **training: Any) -> Recipe:
    told = {"method": {"type": "auto"}, "batch_tokens": 128} | training
    prompt = {"max_length": 96}
    return Recipe.model_validate(
        {"name": "colours", "base": str(base), "data": {"train": [str(colours)]}, "prompt": prompt, "training": told}
    )


def option(kind: Any, gib: float) -> Option:
    memory = Memory(0, 0, 0, 0, round(gib * GIB), 0, 0)
    return Option(kind(), Prediction(memory, 1, 2, 3), fits=gib <= 0.9 * 10)


def planned(*options: Option) -> Plan:
    return Plan("base", "cpu", 10 * GIB, True, Workload(PackSize(8, 4), 1, measured=True), options)


def test_the_first_that_fits_with_a_margin_is_chosen() -> None:
    full, lora, eight = option(FullMethod, 50), option(LoraMethod, 9.5), option(EightBitLoraMethod, 8.9)
    assert plan.choose(planned(full, lora, eight, option(QLoraMethod, 4))) == EightBitLoraMethod()


def test_where_nothing_fits_the_error_names_each_and_says_what_to_do() -> None:
    broken = Option(QLoraMethod(), fault="needs the package bitsandbytes")
    with pytest.raises(InvalidRecipe) as refused:
        plan.choose(planned(option(FullMethod, 50), option(LoraMethod, 9.5), broken))
    text = str(refused.value)
    assert all(part in text for part in ("10.00 GiB", "full: 50.00 GiB", "lora: 9.50 GiB", "qlora: needs the package"))
    assert all(part in text for part in ("training.batch_tokens", "compute.gradient_checkpointing", "smaller base"))


@pytest.mark.parametrize(("gib", "chosen"), [(21, "full"), (6, "lora"), (3.4, "lora_8bit"), (3, "qlora")])
def test_auto_becomes_the_best_method_that_fits_without_any_weights(
    gib: float, chosen: str, wide: Path, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tuneline")
    told = recipe(wide, colours, method={"type": "auto", "memory_gib": gib}, learning_rate=1e-3)
    found = plan.resolve_auto(told)
    assert found.training.method.type == chosen
    assert found == told.model_copy(
        update={"training": told.training.model_copy(update={"method": type(found.training.method)()})}
    )
    assert f"plan: {chosen} on cpu" in caplog.text


def test_the_choice_is_made_anew_for_a_base_of_another_shape(wide: Path, colours: Path, tmp_path: Path) -> None:
    told = recipe(wide, colours, method={"type": "auto", "memory_gib": 6}, learning_rate=1e-3)
    state = State(tmp_path / "state")
    assert resolve_method(told, state).training.method.type == "lora"
    config = json.loads((wide / "config.json").read_text("utf-8"))
    (wide / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "vocab_size": 8000}), "utf-8")
    assert resolve_method(told, state).training.method.type == "full"


def test_a_recipe_that_says_its_method_stays_as_it_is(tiny_base: Path, colours: Path) -> None:
    told = recipe(tiny_base, colours, method={"type": "lora", "rank": 4})
    assert plan.resolve_auto(told) is told


def test_auto_on_a_machine_where_nothing_fits_is_refused(tiny_base: Path, colours: Path) -> None:
    with pytest.raises(InvalidRecipe, match="nothing fits into 0"):
        plan.resolve_auto(recipe(tiny_base, colours, method={"type": "auto", "memory_gib": 0.1}))


def test_lengths_come_from_the_records(tiny_base: Path, colours: Path) -> None:
    work = workload(recipe(tiny_base, colours, epochs=3), tiny_base)
    assert work.measured
    assert 0 < work.pack.labels < work.pack.tokens / 2
    assert work.pack.documents > 1
    limited = workload(recipe(tiny_base, colours, epochs=3, max_steps=5, gradient_accumulation=2), tiny_base)
    assert limited.packs == 10 < work.packs


def test_records_that_are_not_here_count_as_labels_throughout(tiny_base: Path, colours: Path) -> None:
    elsewhere = recipe(tiny_base, colours).model_copy(
        update={"data": recipe(tiny_base, colours).data.model_copy(update={"train": ["hf:org/name"]})}
    )
    work = workload(elsewhere, tiny_base)
    assert (work.measured, work.pack) == (False, PackSize(128, 128))


def test_a_packed_file_counts_for_what_it_unpacks_to(tiny_base: Path, colours: Path, tmp_path: Path) -> None:
    packed = tmp_path / "many.jsonl.gz"
    packed.write_bytes(gzip.compress(colours.read_bytes() * (LARGEST_FILE // colours.stat().st_size + 1)))
    assert packed.stat().st_size < 1 << 20
    assert not workload(recipe(tiny_base, packed), tiny_base).measured
    packed.write_bytes(gzip.compress(colours.read_bytes()))
    assert workload(recipe(tiny_base, packed), tiny_base).measured


def test_methods_that_contradict_the_recipe_are_shown_with_the_reason(tiny_base: Path, colours: Path) -> None:
    told = recipe(tiny_base, colours, method={"type": "lora"})
    told = told.model_copy(update={"compute": ComputeRecipe(processes=2, strategy=Strategy.zero3)})
    faults = {found.method.type: found.fault for found in plan.plan(told).options}
    assert "contradicts" in faults["qlora"]
    assert not faults["lora"]


def test_the_command_shows_every_method_and_marks_the_choice(
    tiny_base: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(tiny_base, colours, method={"type": "lora"}).model_dump(mode="json")), "utf-8")
    assert run(["plan", str(path), "--no-timed"]) == 0
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in ("lora_8bit", "qlora", "prompt_tuning"))
    assert "▸ full" in text
    assert "lora (the recipe’s)" in text
    assert "lengths from a sample" in " ".join(text.split())


def test_time_comes_from_a_probe_of_one_layer(tiny_base: Path, colours: Path) -> None:
    found = plan.plan(recipe(tiny_base, colours, epochs=2), timed=True, stop=True)
    (full,) = found.options
    assert 0 < full.seconds < 600


def test_prediction_and_outcome_become_points(tiny_base: Path, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}", "utf-8")
    tokenized = TokenizedDataset(
        digest="d",
        base_digest="b",
        tokenizer_digest="t",
        template_digest="p",
        rows={"train": 50},
        tokens={"train": 1000},
        trained_tokens={"train": 200},
        truncated={},
    )
    weights = TrainedWeights(
        digest="w",
        folder=tmp_path,
        method="lora",
        kind="adapter",
        base_digest="b",
        steps=7,
        tokens=1000,
        seconds=1.0,
        trainable_parameters=1,
        best_step=7,
        best_validation_loss=None,
        final_training_loss=1.0,
        peak_memory=600 << 20,
    )
    told = recipe(tiny_base, colours, method={"type": "lora"})
    points = {point.key: point for point in plan.memory_points(told, tiny_base, tokenized, weights)}
    assert set(points) == {"plan/predicted_memory", "plan/measured_memory", "plan/error"}
    predicted, measured = points["plan/predicted_memory"].value, points["plan/measured_memory"].value
    assert points["plan/error"].value == pytest.approx(predicted / measured - 1)
    assert {point.step for point in points.values()} == {7}
    assert list(points.values()) == plan.memory_points(told, tiny_base, tokenized, weights)
    combined = {"type": "combine", "adapters": ["a", "b"]}
    assert plan.memory_points(recipe(tiny_base, colours, method=combined), tiny_base, tokenized, weights) == []
