"""Bytes that change between two steps, while they are read, and in the registry: refused, or made again; never kept."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import run
from flows.preflight import preflight
from tasks import models
from tasks.errors import InvalidBaseModel, InvalidData, PermanentError, StateUnusable, WorkRefused
from tasks.evaluate import evaluate
from tasks.files.digests import model_digest
from tasks.merge import merge
from tasks.modeling import combining
from tasks.models import base_of
from tasks.preprocess import preprocess
from tasks.promotion import decision
from tasks.recipe.methods import CombineMethod
from tasks.recipe.stages import BaseModelRecipe
from tasks.register import register
from tasks.registry import lookup, versions
from tasks.registry.client import connect
from tasks.train import train
from tasks.training import launch
from tasks.validate import validate

QUICK = {"max_steps": 2}


def flip(path: Path) -> None:
    """Change the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def key(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(content | values), "utf-8")

    return change


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("|>\n", "|> "), "utf-8")


def own_base(shop: Any) -> Path:
    """A copy of the base that a test may change."""
    return Path(shutil.copytree(shop.base, shop.home / "own-base"))


@pytest.mark.slow
def test_one_bit_that_flips_before_register_is_refused_and_the_step_is_made_again(shop, retrain):
    recipe = shop.recipe("flipped", training=QUICK)
    place = preflight(recipe)
    dataset = validate(recipe, place)
    tokenized = preprocess(dataset, recipe, place)
    weights = train(tokenized, recipe, place)
    report = evaluate(weights, dataset, tokenized, recipe, place)
    merged = merge(weights, dataset, tokenized, recipe, place)
    for path in (weights.path("weights/adapter_model.safetensors"), merged.path("model/model.safetensors")):
        flip(path)
        with pytest.raises(StateUnusable, match=rf"{path.name} does not hold its digest.*run again"):
            register(dataset, tokenized, weights, report, merged, recipe, place)
        flip(path)
    assert lookup.find(shop.uri, recipe.name, version=1) is None

    for path in (weights.path("weights/adapter_model.safetensors"), merged.path("model/model.safetensors")):
        flip(path)
    done = retrain(recipe)
    assert not done.weights.reused and not done.merged.reused
    assert (done.weights.digest, done.merged.digest) == (weights.digest, merged.digest)
    folder = versions.model_folder(shop.uri, recipe.name, 1, shop.state.root / "cache")
    assert model_digest(folder) == merged.model_digest == lookup.find(shop.uri, recipe.name, version=1).tags["model"]


SPOILT = {
    "validate": "train.jsonl",
    "preprocess": "train.parquet",
    "answers": "answers.jsonl",
    "evaluate": "rows.parquet",
    "merge": "manifest.json",
}


@pytest.mark.slow
def test_a_finished_step_with_other_bytes_of_the_same_size_is_not_used(fresh, retrain):
    recipe = fresh.recipe("spoilt", training=QUICK)
    first = retrain(recipe)
    before = {kind: fresh.finished(kind) for kind in SPOILT}
    folders = {kind: fresh.state.steps / kind / next(iter(names)) for kind, names in before.items()}
    contents = {kind: (folders[kind] / name).read_bytes() for kind, name in SPOILT.items()}
    for kind, name in SPOILT.items():
        flip(folders[kind] / name)
    again = retrain(recipe)
    for kind, name in SPOILT.items():
        after = fresh.finished(kind)
        assert {each for each in before[kind] if before[kind][each] != after[each]} == {folders[kind].name}, kind
        assert name == "manifest.json" or (folders[kind] / name).read_bytes() == contents[kind], kind
    assert again.weights.reused and again.versions.version == first.versions.version


def test_sources_that_change_after_the_run_began_are_refused(fresh, retrain):
    recipe = fresh.recipe("sources", training=QUICK)
    path = fresh.home / "train.jsonl"
    content = path.read_bytes()
    place = preflight(recipe)
    path.write_bytes(content + b'{"instruction": "Poisoned?", "input": "", "output": "yes"}\n')
    with pytest.raises(InvalidData, match="sources changed"):
        validate(recipe, place)
    assert not fresh.finished("validate")
    path.write_bytes(content)
    dataset = validate(recipe, preflight(recipe))
    assert "Poisoned" not in dataset.path("train.jsonl").read_text("utf-8")
    assert dataset.source_digest == place.sources


@pytest.mark.slow
def test_a_base_that_is_swapped_for_the_training_process_and_put_back_is_refused(fresh, monkeypatch):
    base = own_base(fresh)
    recipe = fresh.recipe("swapped", base={"model": str(base)}, training=QUICK)
    place = preflight(recipe)
    tokenized = preprocess(validate(recipe, place), recipe, place)
    real = launch.train

    def swapped(*given):
        flip(base / "model.safetensors")
        try:
            return real(*given)
        finally:
            flip(base / "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(launch, "train", swapped)
        with pytest.raises(PermanentError, match="files changed before it was read"):
            train(tokenized, recipe, place)
    assert not fresh.finished("train")
    trained = train(tokenized, recipe, place)
    straight = fresh.recipe("swapped", base={"model": str(base)}, training={**QUICK, "checkpoint_seconds": 7.0})
    shutil.rmtree(fresh.state.steps / "train")
    assert train(tokenized, straight, place).digest == trained.digest


def test_a_base_that_changes_during_training_is_refused_and_nothing_kept_as_finished(fresh, monkeypatch):
    base = own_base(fresh)
    recipe = fresh.recipe("changing", base={"model": str(base)}, training=QUICK)
    place = preflight(recipe)
    tokenized = preprocess(validate(recipe, place), recipe, place)
    real, content = launch.train, (base / "config.json").read_bytes()

    def changing(*given):
        summary = real(*given)
        key("config.json", rms_norm_eps=0.5)(base)
        return summary

    with monkeypatch.context() as patch:
        patch.setattr(launch, "train", changing)
        with pytest.raises(InvalidBaseModel, match="changed while it was read"):
            train(tokenized, recipe, place)
    assert not fresh.finished("train")
    with pytest.raises(InvalidBaseModel, match="changed while this ran"):
        train(tokenized, recipe, place)
    (base / "config.json").write_bytes(content)
    assert train(tokenized, recipe, place).base_digest == tokenized.base_digest


@pytest.mark.slow
def test_an_adapter_that_changes_while_it_is_combined_is_refused(released, fresh, monkeypatch):
    parts = [Path(shutil.copytree(released.weights.path("weights"), fresh.home / name)) for name in ("one", "two")]
    method = {"type": "combine", "adapters": [str(part) for part in parts], "combination": "svd"}
    recipe = fresh.recipe("combined", training={"method": method})
    place = preflight(recipe)
    tokenized = preprocess(validate(recipe, place), recipe, place)
    real = combining.combine

    def changing(*given):
        done = real(*given)
        key("adapter_config.json", lora_alpha=1)(parts[1])
        return done

    with monkeypatch.context() as patch:
        patch.setattr(combining, "combine", changing)
        with pytest.raises(InvalidBaseModel, match=rf"{parts[1]}: its files changed while it was read"):
            train(tokenized, recipe, place)
    assert not fresh.finished("train")
    assert not train(tokenized, recipe, place).reused


BASES = {
    "layers": key("config.json", num_hidden_layers=1),
    "norm": key("config.json", rms_norm_eps=0.5),
    "positions": key("config.json", rope_theta=5e5),
    "stop tokens": key("generation_config.json", eos_token_id=3),
    "tokenizer": key("tokenizer_config.json", model_max_length=77),
    "template": other_template,
}


@pytest.mark.parametrize("change", BASES)
def test_a_base_of_the_same_weights_is_another_base_by_config_stop_tokens_tokenizer_or_template(shop, tmp_path, change):
    recipe = shop.recipe("colours")
    place = preflight(recipe)
    dataset = validate(recipe, place)
    plain = preprocess(dataset, recipe, place)
    base = Path(shutil.copytree(shop.base, tmp_path / "base"))
    assert preprocess(dataset, shop.recipe("colours", base={"model": str(base)}), place).reused
    BASES[change](base)
    other = preprocess(dataset, shop.recipe("colours", base={"model": str(base)}), place)
    assert not other.reused
    assert other.base_digest != plain.base_digest and other.digest != plain.digest


@pytest.mark.slow
def test_nothing_that_was_made_with_other_stop_tokens_is_used_again(shop, retrain, tmp_path):
    retrain(shop.recipe("stops", training=QUICK))
    base = Path(shutil.copytree(shop.base, tmp_path / "base"))
    key("generation_config.json", eos_token_id=[0, 2])(base)
    answers = shop.finished("answers")
    done = retrain(shop.recipe("stops", base={"model": str(base)}, training=QUICK))
    assert done.dataset.reused
    made = (done.tokenized, done.weights, done.report, done.merged, done.versions)
    assert not any(step.reused for step in made)
    assert len(shop.finished("answers")) == len(answers) + 2
    assert done.versions.version == 2
    assert done.weights.base_digest == model_digest(base)


@pytest.fixture
def tampered(released, shop) -> Iterator[None]:
    """One bit of production's merged model and of its adapter is another for the length of a test."""
    cache = shop.state.root / "cache"
    folders = [versions.model_folder(shop.uri, name, 1, cache) for name in ("colours", "colours-adapter")]
    files = [next(folder.glob("*.safetensors")) for folder in folders]
    for file in files:
        flip(file)
    yield
    for file in files:
        flip(file)
    for name in ("colours", "colours-adapter"):
        versions.model_folder(shop.uri, name, 1, cache)


def test_a_registered_version_with_other_bytes_is_not_used_anywhere(tampered, shop):
    recipe = shop.recipe("colours")
    place = preflight(recipe)
    adapter = CombineMethod(adapters=["models:/colours-adapter/1", "models:/colours-adapter/1"])
    uses = {
        "evaluated": lambda: models.version_of("colours", 1, place),
        "compared with": lambda: models.champion_of("colours", "another candidate", place),
        "a base": lambda: base_of(BaseModelRecipe(model="models:/colours@production"), place),
        "combined": lambda: models.adapter_folders(adapter, place),
    }
    for use in uses.values():
        with pytest.raises(WorkRefused, match=r"colours(-adapter)?/1 .*other bytes than were registered"):
            use()


@pytest.mark.parametrize(
    "words",
    [["export", "colours", "OUT"], ["promote", "colours", "1", "--to", "staging"]],
    ids=["export", "promote"],
)
def test_commands_that_use_a_version_with_other_bytes_say_so(tampered, shop, tmp_path, capsys, words):
    before = lookup.aliases(shop.uri, "colours")
    assert run([str(tmp_path / "out") if word == "OUT" else word for word in words]) == 1
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "colours/1" in said and "other bytes than were registered" in said
    assert lookup.aliases(shop.uri, "colours") == before
    assert not (tmp_path / "out").exists()


def test_a_version_with_other_bytes_is_asked_nothing_before_an_alias_moves(tampered, released, shop):
    with pytest.raises(WorkRefused, match="other bytes"):
        decision.loads_and_answers(released.versions, [{"instruction": "Who are you?"}], shop.state)


@pytest.mark.slow
def test_a_base_version_that_was_deleted_is_made_again_with_the_adapter_that_names_it(fresh, retrain):
    recipe = fresh.recipe("based", training=QUICK)
    first = retrain(recipe)
    name, _, number = first.versions.base_address.removeprefix("models:/").partition("/")
    assert lookup.find(fresh.uri, name, version=int(number))
    assert retrain(recipe).versions.reused
    connect(fresh.uri).delete_model_version(name, number)

    done = retrain(recipe)
    assert not done.versions.reused and done.merged.reused
    assert done.versions.base_address == f"models:/{name}/{int(number) + 1}"
    assert (done.versions.version, done.versions.adapter_version) == (1, 2)
    assert decision.loads_and_answers(done.versions, [{"instruction": "What colour is grass?"}], fresh.state).passed
    assert retrain(recipe).versions.reused
