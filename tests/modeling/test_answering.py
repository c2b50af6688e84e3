import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tasks.errors import InvalidBaseModel, WorkRefused
from tasks.files.digests import model_digest
from tasks.modeling import generation, loading
from tasks.modeling.base_model import verified
from tasks.modeling.generation import generate, reference_nll
from tasks.modeling.loading import check_adapter_active, inference_dtype, load_model, stored_parameters
from tasks.prompts import Example, PromptRenderer, stop_ids
from tasks.recipe.methods import LoraMethod
from tasks.recipe.stages import BaseModelRecipe, PromptRecipe
from tasks.training.job import TrainingJob
from tasks.training.loop import Training

Make = Callable[..., TrainingJob]


@pytest.mark.parametrize(
    ("room", "capability", "format"),
    [(8, (8, 0), torch.float32), (5, (8, 0), torch.bfloat16), (5, (7, 5), torch.float16)],
)
def test_a_gpu_that_cannot_hold_a_model_in_fp32_is_asked_in_what_is_fast_there(
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    capability: tuple[int, int],
    format: torch.dtype,
) -> None:
    plain = load_model(tiny_base, None, "")
    assert stored_parameters(tiny_base) == sum(parameter.numel() for parameter in plain.parameters())
    assert inference_dtype(tiny_base) is torch.float32 or torch.cuda.is_available()
    card = SimpleNamespace(total_memory=room * stored_parameters(tiny_base))
    monkeypatch.setattr(loading, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert inference_dtype(tiny_base) is format


@pytest.fixture
def prompts(tiny_base: Path, colour_rows: list[dict[str, str]]) -> list[list[int]]:
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(tiny_base), PromptRecipe())
    return [renderer.prompt_ids([{"role": "user", "content": row["instruction"]}]) for row in colour_rows[::7]]


@pytest.fixture
def adapter(job: Make, tiny_base: Path) -> Path:
    made = job(method=LoraMethod(rank=4, alpha=16, dropout=0), learning_rate=2e-2, max_steps=25)
    made = made.model_copy(update={"origin": {"base": model_digest(tiny_base)}})
    Training(made).run()
    return Path(made.folder / "weights")


def test_a_batch_answers_as_each_prompt_alone(tiny_base: Path, prompts: list[list[int]]) -> None:
    model = load_model(tiny_base, None, "")
    together = generate(model, prompts, stop_ids(tiny_base), max_new_tokens=12, batch_size=8)
    alone = [generate(model, [prompt], stop_ids(tiny_base), 12, 1)[0] for prompt in prompts]
    assert together == alone


def test_a_batch_that_a_gpu_has_no_room_for_is_asked_by_halves(
    tiny_base: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stops, whole, sizes = load_model(tiny_base, None, ""), stop_ids(tiny_base), generation._generate_batch, []

    def small(model: Any, rows: Any, *options: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, rows, *options)

    expected = generate(model, prompts, stops, 6, 64)
    monkeypatch.setattr(generation, "_generate_batch", small)
    assert generate(model, prompts, stops, 6, 64) == expected
    assert sizes[0] == len(prompts) and max(sizes[-2:]) <= 3
    monkeypatch.setattr(generation, "_generate_batch", lambda *_: small(model, prompts))
    with pytest.raises(torch.OutOfMemoryError):
        generate(model, prompts[:1], stops, 6, 64)


def test_an_answer_ends_before_its_stop_token(tiny_base: Path, adapter: Path, prompts: list[list[int]]) -> None:
    model = load_model(tiny_base, adapter, model_digest(tiny_base))
    answers = generate(model, prompts, stop_ids(tiny_base), 12, 8)
    assert any(answer.stopped for answer in answers)
    assert all(token not in stop_ids(tiny_base) for answer in answers for token in answer.token_ids)


def test_the_likelihood_of_references_is_the_plain_models(tiny_base: Path, examples: list[Example]) -> None:
    model = load_model(tiny_base, None, "")
    rows = [(example.input_ids, example.labels) for example in examples[:6]]
    for (total, count), (ids, labels) in zip(reference_nll(model, rows), rows, strict=True):
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        assert total / count == pytest.approx(float(loss), abs=1e-4)


def test_a_live_adapter_changes_the_logits_and_a_dead_one_is_refused(
    tiny_base: Path, adapter: Path, prompts: list[list[int]]
) -> None:
    model = load_model(tiny_base, adapter, model_digest(tiny_base))
    assert check_adapter_active(model, prompts[0]) > 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    with pytest.raises(WorkRefused, match="not active"):
        check_adapter_active(model, prompts[0])


def test_an_adapter_is_refused_on_another_base_with_both_digests(tiny_base: Path, adapter: Path) -> None:
    with pytest.raises(InvalidBaseModel, match=f"{model_digest(tiny_base)}.*beef"):
        load_model(tiny_base, adapter, "beef")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickles run code"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: [path.unlink() for path in folder.glob("token*")], "no tokenizer"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})
            ),
            "incomplete",
        ),
        (
            lambda folder: (folder / "config.json").write_text(
                json.dumps({**json.loads((folder / "config.json").read_text()), "auto_map": {"AutoModel": "x.Y"}})
            ),
            "trust_remote_code",
        ),
    ],
)
def test_a_folder_that_is_no_base_model_says_why(tiny_base: Path, tmp_path: Path, damage: Any, words: str) -> None:
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    damage(folder)
    with pytest.raises(InvalidBaseModel, match=words):
        verified(folder, "base")


def test_a_name_that_is_nothing_says_what_is_known(tmp_path: Path) -> None:
    from tasks.modeling.base_model import resolve

    with pytest.raises(InvalidBaseModel, match="not a folder, a bundled model"):
        resolve(BaseModelRecipe(model="no-such-model"), tmp_path)
