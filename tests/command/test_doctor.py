"""What `tuneline doctor` says of the methods."""

from typing import get_args

import pytest

from flows import doctor
from tasks.recipe_methods import Method


def test_every_method_is_named_where_bitsandbytes_works() -> None:
    found = doctor.runnable_methods("cpu")
    assert found.verdict == "good"
    union, _ = get_args(Method)
    assert len(get_args(union)) >= 12
    assert all(kind.model_fields["type"].default in found.found for kind in get_args(union))
    assert "qlora and lora_8bit save memory here and cost time" in found.found


def test_without_bitsandbytes_the_quantised_methods_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = doctor.runnable_methods("cpu")
    able, _, unable = found.found.partition("; not ")
    assert found.verdict == "note"
    assert "qlora" not in able and "lora" in able
    assert unable.startswith("qlora and lora_8bit: bitsandbytes is not installed")
