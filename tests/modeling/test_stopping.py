"""Folders that this project writes stop, under transformers alone, where the model was scored to stop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.errors import WorkRefused
from tasks.modeling import exporting, merging
from tasks.modeling.exporting import export
from tasks.modeling.generation import generate
from tasks.modeling.loading import load_model
from tasks.prompts import PromptRenderer, stop_ids
from tasks.recipe.methods import FullMethod
from tasks.recipe.stages import PromptRecipe
from tasks.training.job import TrainingJob
from tasks.training.loop import Training

ASKED = [[{"role": "user", "content": f"What colour is {thing}?"}] for thing in ("grass", "the sky", "snow")]
OTHER_STOP = 5


@pytest.fixture(scope="module")
def disagreeing(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose folder names another stop token than its tokenizer, as many with a chat tokenizer do."""
    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("disagreeing") / "base"))
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**values, "eos_token_id": OTHER_STOP}), "utf-8")
    return folder


def stops_of(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text("utf-8"))["eos_token_id"]


def answers_alone(folder: Path, tokens: int) -> list[list[int]]:
    """New tokens, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    answers = []
    for messages in ASKED:
        read = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**read, do_sample=False, max_new_tokens=tokens, pad_token_id=7)
        answers.append(output[0, read["input_ids"].shape[1] :].tolist())
    return answers


@pytest.fixture(scope="module")
def trained(module_job: Callable[..., TrainingJob], disagreeing: Path) -> Path:
    """Full weights that learned to stop."""
    job = module_job("stopping", method=FullMethod(), learning_rate=4e-3, max_steps=40)
    job = job.model_copy(update={"base": disagreeing})
    Training(job).run()
    return Path(job.folder / "weights")


def test_full_weights_stop_where_they_were_scored_to_stop(trained: Path, disagreeing: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    renderer = PromptRenderer(tokenizer, PromptRecipe(), stop_ids(disagreeing))
    model = load_model(disagreeing, trained, "")
    scored = generate(model, [renderer.prompt_ids(messages) for messages in ASKED], renderer.stop_ids, 12, 4)
    alone = answers_alone(trained, 12)
    assert stops_of(trained) == [tokenizer.eos_token_id, OTHER_STOP]
    assert any(answer.stopped for answer in scored)
    for answer, ids in zip(scored, alone, strict=True):
        assert ids[: len(answer.token_ids)] == answer.token_ids
        assert len(ids) == len(answer.token_ids) + answer.stopped


def test_a_merged_model_holds_every_stop_token_and_no_sampling_default(disagreeing: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(disagreeing)
    model.generation_config.repetition_penalty = 1.5
    merging.write(model, disagreeing, tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text("utf-8"))
    assert written["eos_token_id"] == [0, OTHER_STOP] and "repetition_penalty" not in written
    assert stop_ids(tmp_path / "merged") == {0, OTHER_STOP}


def test_a_folder_with_one_stop_token_keeps_it_as_a_number(tiny_base: Path, tmp_path: Path) -> None:
    merging.write(AutoModelForCausalLM.from_pretrained(tiny_base), tiny_base, tmp_path / "merged")
    assert stops_of(tmp_path / "merged") == 0


@pytest.mark.slow
def test_a_version_registered_before_is_exported_with_the_stop_tokens_it_was_scored_with(
    trained: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(trained, tmp_path / "old"))
    values = json.loads((old / "generation_config.json").read_text("utf-8"))
    (old / "generation_config.json").write_text(json.dumps({**values, "eos_token_id": OTHER_STOP}), "utf-8")
    done = export(old, tmp_path / "out", "fp32", "2GB", {}, ASKED)
    assert (done.prompts, done.equal_answers) == (3, 3)
    assert stops_of(tmp_path / "out") == [0, OTHER_STOP]
    assert answers_alone(tmp_path / "out", 12) == answers_alone(trained, 12)
    assert any(ids[-1] == 0 and len(ids) < 12 for ids in answers_alone(tmp_path / "out", 12))


def test_an_export_that_would_not_stop_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgotten(model: Any, tokenizer: Any) -> list[int]:
        model.generation_config.eos_token_id = OTHER_STOP
        return [0, OTHER_STOP]

    monkeypatch.setattr(exporting, "stops_as_scored", forgotten)
    with pytest.raises(WorkRefused, match=r"stops at the tokens \[5\], the scored model at \[0, 5\]"):
        export(trained, tmp_path / "out", "fp32", "2GB", {}, ASKED)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_export_that_answers_otherwise_with_the_same_numbers_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exporting.stops_as_scored

    def penalised(model: Any, tokenizer: Any) -> list[int]:
        stops = whole(model, tokenizer)
        model.generation_config.repetition_penalty = 30.0
        return stops

    monkeypatch.setattr(exporting, "stops_as_scored", penalised)
    with pytest.raises(WorkRefused, match=r"answers \d of 3 prompts otherwise"):
        export(trained, tmp_path / "out", "fp32", "2GB", {}, ASKED)
