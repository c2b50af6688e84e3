"""Bases that cannot be trained or asked here are refused by their configuration, before anything is spent."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import InvalidBaseModel
from tasks.modeling import attention, generation, support
from tasks.modeling.small_model import HEADS, VOCABULARY, WINDOW, smaller
from tasks.modeling.stored_format import check_stored_format
from tests.modeling.architectures import ARCHITECTURES, config_of

READS_ITS_NEIGHBOURS = "does not compute packed records as it computes each alone"
OWN_ATTENTION = "takes no attention but its own"
REFUSED = {
    **dict.fromkeys(("falcon", "gptj", "bloom"), OWN_ATTENTION),
    **dict.fromkeys(("stablelm", "lfm2", "granitemoehybrid", "bamba", "jamba", "qwen3_next"), READS_ITS_NEIGHBOURS),
    **dict.fromkeys(("falcon_h1", "minimax", "mamba"), READS_ITS_NEIGHBOURS),
    "gpt_neo": OWN_ATTENTION,
    "mpt": "cannot be trained on packed records",
}
QUICK = ("llama", "gemma2", "gpt_oss", "falcon", "stablelm", "mpt")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_an_architecture_passes_whole_or_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    config_of(name).save_pretrained(tmp_path)
    if name not in REFUSED:
        support.check(tmp_path, "a base")
        return
    with pytest.raises(InvalidBaseModel) as refused:
        support.check(tmp_path, "a base")
    assert f"base.model: a base: {name} " in str(refused.value) and REFUSED[name] in str(refused.value)


def test_the_list_has_both_kinds() -> None:
    assert set(REFUSED) < set(ARCHITECTURES) and len(ARCHITECTURES) - len(REFUSED) >= 12


@pytest.mark.parametrize(
    ("name", "without"), [("gemma2", "softcap"), ("gpt_oss", "s_aux"), ("mistral", "sliding_window")]
)
def test_attention_that_is_not_the_models_own_is_noticed(
    name: str, without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attention.document_attention

    def partial(*tensors: Any, **options: Any) -> Any:
        return whole(*tensors, **{**options, without: None})

    monkeypatch.setattr(attention, "document_attention", partial)
    config_of(name).save_pretrained(tmp_path)
    with pytest.raises(InvalidBaseModel, match=READS_ITS_NEIGHBOURS):
        support.check(tmp_path, "a base")


def test_pads_that_take_room_in_a_window_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "may_share", lambda *_: True)
    config_of("mistral").save_pretrained(tmp_path)
    with pytest.raises(InvalidBaseModel, match="answers otherwise in a batch than alone"):
        support.check(tmp_path, "a base")


def test_a_small_model_keeps_what_tells_architectures_apart() -> None:
    from transformers import AutoConfig

    large = AutoConfig.for_model("gemma3_text", num_attention_heads=8, num_key_value_heads=4, head_dim=256)
    small = smaller(large)
    assert set(small.layer_types) == {"sliding_attention", "full_attention"} and small.head_dim == 256
    assert (small.num_attention_heads, small.num_key_value_heads, small.hidden_size) == (HEADS, 2, 1024)
    assert (small.sliding_window, small.vocab_size) == (WINDOW, VOCABULARY)
    assert json.loads(large.to_json_string())["sliding_window"] > WINDOW


def test_what_cannot_be_tried_small_is_said_and_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(support, "MOST_PARAMETERS", 10)
    config_of("llama").save_pretrained(tmp_path)
    support.check(tmp_path, "a base")
    assert "a base: no small model of type llama can be tried first" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t5", "does not continue texts"),
        ("clip", "does not continue texts"),
        ("nosuch", "does not take its config.json"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_and_not_let_through(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}), "utf-8")
    with pytest.raises(InvalidBaseModel, match=reason):
        support.check(tmp_path, "a base")


def test_a_configuration_that_contradicts_itself_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "head_dim": 7}), "utf-8")
    with pytest.raises(InvalidBaseModel, match=r"(?s)a base: transformers does not take its config\.json.*head_dim"):
        support.check(tmp_path, "a base")


@pytest.mark.parametrize(
    ("stored", "quantisation", "reason"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None, "bitsandbytes.*cannot be folded"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, None, "gptq.*cannot be loaded here"),
        ({"quant_method": "zip"}, None, "zip.*cannot be loaded here"),
        ("4 bits", None, "unknown.*cannot be loaded here"),
        ({"quant_method": "mxfp4"}, {"load_in_4bit": True}, "mxfp4.*a second time"),
    ],
)
@pytest.mark.parametrize("part", ["", "text_config"])
def test_a_base_that_is_quantised_already_is_refused_by_its_format(
    stored: Any, quantisation: dict[str, Any] | None, reason: str, part: str
) -> None:
    own = {"quantization_config": stored}
    with pytest.raises(InvalidBaseModel, match=reason):
        check_stored_format({part: own} if part else own, "a base", quantisation)


def test_a_base_that_is_not_quantised_or_unpacked_when_it_is_loaded_passes() -> None:
    check_stored_format({"quantization_config": {"quant_method": "mxfp4"}}, "a base", None)
    check_stored_format({"model_type": "llama"}, "a base", {"load_in_4bit": True})
