"""A registered model's folder written for others."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.errors import StateUnusable, WorkRefused
from tasks.modeling.exporting import export

ASKED = [[{"role": "user", "content": f"What colour is {thing}?"}] for thing in ("grass", "the sky")]


def test_a_model_goes_out_in_shards_and_answers_as_before(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "card").write_text("# A card")
    done = export(tiny_base, tmp_path / "out", "fp32", "100KB", {"MODEL_CARD.md": tmp_path / "card"}, ASKED)
    out = tmp_path / "out"
    assert done.shards == len(list(out.glob("model-0000?-of-0000?.safetensors"))) > 1
    assert done.bytes == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert max(path.stat().st_size for path in out.glob("*.safetensors")) < 150_000
    assert (done.prompts, done.equal_answers, done.equal_tokens) == (2, 2, 1.0)
    files = {path.name for path in out.iterdir()}
    assert {"MODEL_CARD.md", "chat_template.jinja", "generation_config.json", "model.safetensors.index.json"} <= files
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    one, two = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tiny_base, out))
    assert all(torch.equal(two[name], weight) for name, weight in one.items())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(StateUnusable, match="not empty"):
        export(tiny_base, tmp_path, "fp32", "2GB", {}, ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_numbers_that_do_not_fit_the_format_are_refused_and_nothing_is_left(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(WorkRefused, match=r"fp16 cannot hold .*up_proj.*choose bf16 or fp32"):
        export(tmp_path / "large", tmp_path / "out", "fp16", "2GB", {}, ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_model_that_transformers_alone_cannot_ask_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    mute = Path(shutil.copytree(tiny_base, tmp_path / "mute"))
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(WorkRefused, match=r"clean process[\s\S]*chat_template"):
        export(mute, tmp_path / "out", "fp32", "2GB", {}, ASKED)
    assert list(tmp_path.iterdir()) == [mute]
