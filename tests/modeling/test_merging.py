"""Adapters folded into their base by every rule, and measured against base plus adapter as trained."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tasks.artifacts import MergeCandidate, Parity
from tasks.errors import WorkRefused
from tasks.files.digests import model_digest
from tasks.modeling import loading, merging
from tasks.modeling.base_model import verified
from tasks.modeling.loading import load_model
from tasks.modeling.merging import BoundAdapter, Questions, merge_best
from tasks.prompts import PromptRenderer, stop_ids
from tasks.recipe.methods import EightBitLoraMethod, LoraMethod, QLoraMethod
from tasks.recipe.stages import MergingRecipe, PromptRecipe
from tasks.training.job import TrainingJob
from tasks.training.loop import Training

Make = Callable[..., TrainingJob]
Train = Callable[[str], BoundAdapter]
SHAPE = {"rank": 4, "alpha": 16, "dropout": 0.0, "target_modules": ["all-linear"]}
METHODS = {"full": LoraMethod(**SHAPE), "nf4": QLoraMethod(**SHAPE), "int8": EightBitLoraMethod(**SHAPE)}


@pytest.fixture
def trained(job: Make, tiny_base: Path) -> Train:
    def train(kind: str) -> BoundAdapter:
        method = METHODS[kind]
        made = job(method=method, learning_rate=2e-2, max_steps=25, validations=1)
        digest = model_digest(tiny_base)
        made = made.model_copy(update={"origin": {"base": digest, "quantisation": method.quantisation}})
        Training(made).run()
        return BoundAdapter(made.folder / "weights", tiny_base, digest)

    return train


@pytest.fixture
def questions(tiny_base: Path, colour_rows: list[dict[str, str]]) -> Questions:
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(tiny_base), PromptRecipe())
    prompts = [renderer.prompt_ids([{"role": "user", "content": row["instruction"]}]) for row in colour_rows[::3]]
    wanted = [row["output"] for row in colour_rows[::3]]

    def score(answers: Any) -> float:
        texts = [renderer.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        return sum(text == right for text, right in zip(texts, wanted, strict=True)) / len(wanted)

    return Questions(prompts, stop_ids(tiny_base), 8, 8, score)


def by_rule(candidates: list[MergeCandidate]) -> dict[str, MergeCandidate]:
    return {each.rule: each for each in candidates}


def test_on_a_plain_base_there_is_one_way_and_the_merged_model_answers_as_base_plus_adapter(
    trained: Train, questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, loads = trained("full"), []
    monkeypatch.setattr(merging, "load_model", lambda *given: loads.append(given) or load_model(*given))
    merge = merge_best(adapter, questions, MergingRecipe(), tmp_path / "model")
    (only,), score = merge.candidates, merge.adapter_score
    assert (only.rule, only.saved, only.score) == ("full_precision", True, score)
    assert 0 < only.parity.mean_kl < 1e-8
    assert (only.parity.top1_agreement, only.parity.answer_agreement) == (1.0, 1.0)
    assert len(loads) == 2  # base plus adapter, and the merged model from its files
    assert verified(tmp_path / "model", "merged").digest == model_digest(tmp_path / "model")
    assert (tmp_path / "model" / "origin.json").read_bytes() == (adapter.weights / "origin.json").read_bytes()


def test_a_merge_that_answers_as_the_bare_base_is_refused(trained: Train, questions: Questions) -> None:
    adapter = trained("full")
    model, bare = adapter.load(), load_model(adapter.base, None, "")
    answers, others = questions.answers(model), questions.answers(bare)
    both = [merging.distributions(each, questions.prompts, answers) for each in (model, bare)]
    parity = merging.measure(*both, answers, others)
    assert parity.mean_kl > 1e-2
    assert any("is above merging.max_mean_kl" in one for one in merging.breaches(parity, MergingRecipe()))


def test_after_four_bits_the_base_passed_through_them_keeps_the_answers_and_is_saved(
    trained: Train, questions: Questions, tmp_path: Path
) -> None:
    adapter = trained("nf4")
    merge = merge_best(adapter, questions, MergingRecipe(), tmp_path / "model")
    candidates, score = merge.candidates, merge.adapter_score
    best, found = candidates[0], by_rule(candidates)
    assert [each.rule for each in candidates if each.saved] == ["dequantised"] == [best.rule]
    assert best.parity.mean_kl < 1e-6 < 1e-4 < found["full_precision"].parity.mean_kl
    assert found["requantised"].parity.mean_kl > 1e-4
    assert (best.parity.top1_agreement, best.parity.answer_agreement, best.score) == (1.0, 1.0, score)
    assert [path.name for path in tmp_path.glob("model*")] == ["model"]
    saved = load_model(tmp_path / "model", None, "")
    assert {weight.dtype for weight in saved.parameters()} == {torch.float32}
    assert not hasattr(saved.config, "quantization_config")
    assert questions.answers(saved) == questions.answers(adapter.load())


@pytest.mark.slow
def test_after_eight_bits_the_default_bounds_let_the_nearest_pass(
    trained: Train, questions: Questions, tmp_path: Path
) -> None:
    candidates = merge_best(trained("int8"), questions, MergingRecipe(), tmp_path / "model").candidates
    assert len(candidates) == 3
    kept = [each for each in candidates if each.rule != "requantised"]
    assert candidates[0] == min(kept, key=lambda each: each.parity.mean_kl)
    assert 0 < candidates[0].parity.mean_kl < MergingRecipe().max_mean_kl


def test_on_a_plain_base_a_bound_that_is_broken_refuses_the_merge(
    trained: Train, questions: Questions, tmp_path: Path
) -> None:
    with pytest.raises(WorkRefused, match=r"best rule: full_precision.*above merging\.max_mean_kl 1\.00e-30"):
        merge_best(trained("full"), questions, MergingRecipe(max_mean_kl=1e-30), tmp_path / "model")


@pytest.mark.slow
def test_on_a_quantised_base_a_bound_that_the_best_breaks_leaves_the_adapter_and_every_measurement(
    trained: Train, questions: Questions, tmp_path: Path
) -> None:
    merge = merge_best(trained("int8"), questions, MergingRecipe(max_mean_kl=1e-30), tmp_path / "model")
    assert len(merge.broken) == 1 and "is above merging.max_mean_kl 1.00e-30" in merge.broken[0]
    assert len(merge.candidates) == 3 and not any(each.saved for each in merge.candidates)
    assert not list(tmp_path.glob("model*"))


def test_what_is_folded_in_bf16_for_want_of_room_is_not_refused_for_its_rounding(
    trained: Train, questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained("full")
    for module in (loading, merging):
        monkeypatch.setattr(module, "inference_dtype", lambda _: torch.bfloat16)
    (only,) = merge_best(adapter, questions, MergingRecipe(max_mean_kl=1.0), tmp_path / "model").candidates
    assert only.saved and 1e-8 < only.parity.mean_kl < 1e-1
    assert {weight.dtype for weight in load_model(tmp_path / "model", None, "").parameters()} == {torch.bfloat16}
    assert merge_best(adapter, questions, MergingRecipe(max_mean_kl=1e-30), tmp_path / "other").broken


def candidate(rule: str, kl: float, answers: float = 1.0) -> MergeCandidate:
    found = Parity(prompts=4, tokens=9, mean_kl=kl, max_kl=kl, top1_agreement=1, answer_agreement=answers)
    return MergeCandidate(rule=rule, parity=found, score=0)


@pytest.mark.parametrize(
    ("dequantised", "full_precision", "nearest"),
    [
        ((1e-9,), (1e-3,), "dequantised"),
        ((1e-3,), (1e-9,), "full_precision"),
        ((1e-9, 0.5), (1e-9, 1.0), "full_precision"),
        ((math.nan,), (1e-3,), "full_precision"),
        ((1e-3,), (math.nan,), "dequantised"),
    ],
)
def test_the_least_divergence_wins_then_equal_answers(
    dequantised: tuple[float, ...], full_precision: tuple[float, ...], nearest: str
) -> None:
    given = {"dequantised": dequantised, "full_precision": full_precision, "requantised": (0.0,)}
    found = merging.nearest([candidate(rule, *measured) for rule, measured in given.items()])
    assert found.rule == nearest


def test_what_is_not_a_number_passes_no_bound() -> None:
    fine, broken = torch.zeros(2, 5).double().log_softmax(-1), torch.full((2, 5), torch.nan).double()
    measured = merging.measure([fine], [broken], [[1]], [[1]])
    assert math.isnan(measured.mean_kl)
    assert "mean KL nan" in merging.breaches(measured, MergingRecipe(min_top1_agreement=0))[0]
