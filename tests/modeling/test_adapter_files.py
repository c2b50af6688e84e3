"""Adapters of anybody: safetensors with the keys of a plain LoRA, or refused before a model is loaded."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tasks.errors import InvalidBaseModel, InvalidRecipe
from tasks.modeling import combining
from tasks.modeling.combining import combine
from tasks.modeling.loading import load_model
from tasks.modeling.methods import load_base
from tasks.modeling.saving import keep_start, save
from tasks.models import check_adapters
from tasks.recipe.methods import CombineMethod
from tasks.steps.state import State
from tasks.steps.store import weights_digest

SAVED: dict[str, dict[str, Any]] = {
    "lora": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "several ranks": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.0.self_attn.q_proj": 4}},
}


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Adapters as this project saves them."""
    root = tmp_path_factory.mktemp("adapters")

    def make(name: str, **options: Any) -> Path:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
        torch.manual_seed(0)
        model = get_peft_model(load_base(tiny_base), config)
        start = keep_start(model, root / f"{name}-start")
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.1)
        save(model, tiny_base, root / name, {"base": weights_digest(tiny_base), "base_name": "tiny"}, start)
        return root / name

    return make


@pytest.fixture
def adapter(saved: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved("lora"), tmp_path / "adapter"))


def method(*adapters: Path, combination: str = "svd") -> CombineMethod:
    return CombineMethod(adapters=[str(path) for path in adapters], combination=combination)


@pytest.mark.parametrize("kind", SAVED)
def test_what_is_saved_here_can_be_combined_and_combined_again(
    tiny_base: Path, saved: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    adapters = [saved("lora"), saved(kind.replace(" ", "-"), **SAVED[kind])]
    check_adapters(method(*adapters), State(tmp_path))
    origin = {"base": weights_digest(tiny_base), "base_name": "tiny"}
    combine(tiny_base, adapters, method(*adapters), origin, tmp_path / "both", 0)
    again = [tmp_path / "both", adapters[0]]
    check_adapters(method(*again), State(tmp_path))
    assert combine(tiny_base, again, method(*again), origin, tmp_path / "again", 0) > 0


FOREIGN: dict[str, dict[str, Any]] = {
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "auto_mapping": {"auto_mapping": {"base_model_class": "C", "parent_library": "os"}},
    "megatron_config": {"megatron_config": {"hidden_size": 8}},
    "megatron_core": {"megatron_core": "own.core"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "target_modules": {"target_modules": r"(.*)*(.*)*q_proj$"},
    "a pattern in target_modules": {"target_modules": ["(a+)+$"]},
    "rank_pattern": {"rank_pattern": {"(.*)*(.*)*x": 4}},
    "alpha_pattern": {"alpha_pattern": {"(a|a)*$": 4}},
    "layers_pattern": {"layers_pattern": "(.*)*x"},
    "exclude_modules": {"exclude_modules": "(.*)*x"},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "eva_config": {"eva_config": {"rho": 2.0}},
    "bias": {"bias": "all"},
    "r": {"r": "4"},
    "a rank without end": {"r": 10**12},
    "a rank below one for a module": {"rank_pattern": {"q_proj": -1}},
    "an alpha that is no number": {"lora_alpha": float("nan")},
    "an alpha that is text": {"lora_alpha": "16"},
    "an alpha that is text for a module": {"alpha_pattern": {"q_proj": "16"}},
    "more dropout than there is": {"lora_dropout": 5},
    "trainable_token_indices": {"trainable_token_indices": [1]},
    "a key of a later PEFT": {"runs_on_load": "own.module"},
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_key_that_no_plain_lora_has_is_refused_and_named(adapter: Path, tmp_path: Path, key: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **FOREIGN[key]}), "utf-8")
    with pytest.raises(InvalidRecipe, match=rf"adapter_config\.json sets {next(iter(FOREIGN[key]))} to"):
        check_adapters(method(adapter, adapter), State(tmp_path))


class Runs:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "optimizer.pt", "x.pth", "x.pkl"])
def test_an_adapter_with_pickled_files_is_refused_and_nothing_is_unpickled(
    tiny_base: Path, adapter: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    (adapter / name).write_bytes(pickle.dumps(Runs(marker)))
    loaded: list[Path] = []
    monkeypatch.setattr(combining, "load_base", lambda *args, **_: loaded.append(args[0]))
    origin = {"base": weights_digest(tiny_base)}
    for attempt in (
        lambda: check_adapters(method(adapter, adapter), State(tmp_path)),
        lambda: combine(tiny_base, [adapter, adapter], method(adapter, adapter), origin, tmp_path / "both", 0),
        lambda: load_model(tiny_base, adapter, weights_digest(tiny_base)),
    ):
        with pytest.raises(InvalidBaseModel, match=rf"pickled files \({name}\)"):
            attempt()
    assert not marker.exists() and not loaded


def test_an_adapter_without_safetensors_is_refused(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    for attempt in (
        lambda: check_adapters(method(adapter, adapter), State(tmp_path)),
        lambda: load_model(tiny_base, adapter, weights_digest(tiny_base)),
    ):
        with pytest.raises(InvalidBaseModel, match=r"no adapter_model\.safetensors"):
            attempt()


def test_tensors_that_combining_would_drop_are_refused(adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(InvalidRecipe, match=r"holds base_model\.model\.lm_head\.weight"):
        check_adapters(method(adapter, adapter), State(tmp_path))


@pytest.mark.parametrize("name", ["adapter_config.json", "origin.json"])
@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000], ids=lambda text: text[:2])
def test_a_file_of_an_adapter_that_is_no_json_object_is_named(
    tiny_base: Path, adapter: Path, name: str, text: str
) -> None:
    (adapter / name).write_text(text)
    with pytest.raises(InvalidBaseModel, match=name):
        combining.check([adapter, adapter], method(adapter, adapter), weights_digest(tiny_base))
    with pytest.raises(InvalidBaseModel, match=name):
        load_model(tiny_base, adapter, weights_digest(tiny_base))
