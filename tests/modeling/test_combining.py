"""Several LoRA adapters of one base put together into one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tasks.errors import InvalidBaseModel, InvalidRecipe
from tasks.modeling.combining import combine
from tasks.modeling.loading import load_model, origin_of
from tasks.modeling.methods import load_base
from tasks.modeling.saving import save
from tasks.recipe.methods import CombineMethod
from tasks.steps.store import weights_digest

Make = Callable[..., Path]
IDS = torch.arange(5, 25)[None]


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Make:
    """A LoRA adapter with random weights in both halves, saved as a trained one is."""

    def make(name: str, seed: int, rank: int = 4, **changes: Any) -> Path:
        origin = {"base": weights_digest(tiny_base), "base_name": "tiny", **changes.pop("origin", {})}
        torch.manual_seed(seed)
        model = get_peft_model(
            load_base(tiny_base),
            LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                target_modules="all-linear",
                init_lora_weights=False,
                task_type="CAUSAL_LM",
                **changes,
            ),
        )
        save(model, tiny_base, tmp_path / name, origin)
        return tmp_path / name

    return make


def method(combination: str = "linear", weights: tuple[float, ...] = (), density: float = 0.5) -> CombineMethod:
    return CombineMethod(adapters=["a", "b"], combination=combination, weights=list(weights), density=density)


def logits(base: Path, weights: Path | None) -> torch.Tensor:
    model = load_model(base, weights, weights_digest(base))
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def change(base: Path, weights: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each layer's weights."""
    model = load_model(base, weights, weights_digest(base))
    return {
        name: module.get_delta_weight("default") for name, module in model.named_modules() if hasattr(module, "lora_A")
    }


@pytest.fixture
def combined(tiny_base: Path, tmp_path: Path) -> Make:
    def make(name: str, adapters: list[Path], how: CombineMethod, seed: int = 0) -> Path:
        origin = {"base": weights_digest(tiny_base), "base_name": "tiny", "template": "t"}
        combine(tiny_base, adapters, how, origin, tmp_path / name, seed)
        return tmp_path / name

    return make


def test_all_the_weight_on_the_first_gives_the_first_adapter(tiny_base: Path, adapter: Make, combined: Make) -> None:
    first, second = adapter("first", 1), adapter("second", 2)
    both = combined("both", [first, second], method(weights=(1, 0)))
    assert not torch.allclose(logits(tiny_base, first), logits(tiny_base, None), atol=0.1)
    torch.testing.assert_close(logits(tiny_base, both), logits(tiny_base, first), atol=1e-4, rtol=1e-4)
    assert {"adapter_config.json", "adapter_model.safetensors", "origin.json", "tokenizer.json"} <= {
        path.name for path in both.iterdir()
    }
    assert origin_of(both) == {
        "base": weights_digest(tiny_base), "base_name": "tiny", "template": "t", "quantisation": {},
    }  # fmt: skip


@pytest.mark.parametrize("rslora", [False, True])
def test_svd_keeps_the_largest_directions_of_the_sum_of_two_ranks(
    tiny_base: Path, adapter: Make, combined: Make, rslora: bool
) -> None:
    first = adapter("first", 1, rank=2, use_rslora=rslora)
    second = adapter("second", 2, rank=6, use_rslora=rslora)
    both = change(tiny_base, combined("both", [first, second], method("svd", weights=(0.5, -2))))
    parts = [change(tiny_base, each) for each in (first, second)]
    assert len(both) == 14
    for name, found in both.items():
        left, sizes, right = torch.linalg.svd(0.5 * parts[0][name] - 2 * parts[1][name], full_matrices=False)
        torch.testing.assert_close(found, left[:, :6] * sizes[:6] @ right[:6], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("combination", ["ties", "dare_ties"])
def test_dropping_combinations_are_the_same_bytes_for_the_same_seed(
    tiny_base: Path, adapter: Make, combined: Make, combination: str
) -> None:
    adapters = [adapter("first", 1), adapter("second", 2)]
    one, two = (combined(name, adapters, method(combination)) for name in ("one", "two"))
    assert weights_digest(one) == weights_digest(two)
    other = combined("other", adapters, method(combination), seed=1)
    assert (weights_digest(other) == weights_digest(one)) == (combination == "ties")
    assert not torch.allclose(logits(tiny_base, one), logits(tiny_base, adapters[0]), atol=0.1)


def test_adapters_of_another_base_are_refused_with_both_digests(tiny_base: Path, adapter: Make, combined: Make) -> None:
    adapters = [adapter("first", 1), adapter("second", 2, origin={"base": "beef"})]
    with pytest.raises(InvalidBaseModel, match=f"second.*beef.*{weights_digest(tiny_base)}"):
        combined("both", adapters, method())


def test_adapters_that_do_not_fit_together_are_refused_with_the_reason(adapter: Make, combined: Make) -> None:
    first = adapter("first", 1)
    with pytest.raises(InvalidRecipe, match=r"linear needs equal ranks.*4, 8; choose svd"):
        combined("ranks", [first, adapter("wide", 2, rank=8)], method())
    with pytest.raises(InvalidRecipe, match="is DoRA; plain LoRA"):
        combined("dora", [first, adapter("sized", 2, use_dora=True)], method())
    with pytest.raises(InvalidRecipe, match=r"different forms: full precision; \{\"load_in_4bit\": true\}"):
        combined("held", [first, adapter("4bit", 2, origin={"quantisation": {"load_in_4bit": True}})], method())
    with pytest.raises(InvalidRecipe, match=r"no adapter lies there"):
        combined("nothing", [first, first.parent], method())
    ia3 = Path(shutil.copytree(first, first.with_name("ia3"))) / "adapter_config.json"
    ia3.write_text(json.dumps({**json.loads(ia3.read_text()), "peft_type": "IA3"}))
    with pytest.raises(InvalidRecipe, match="is IA3; plain LoRA"):
        combined("ia3-too", [first, ia3.parent], method())


def test_what_was_trained_on_a_quantised_base_stays_bound_to_its_form(adapter: Make, combined: Make) -> None:
    form = {"quantisation": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    both = combined("both", [adapter("first", 1, origin=form), adapter("second", 2, origin=form)], method())
    assert origin_of(both)["quantisation"] == form["quantisation"]
