"""What `tuneline doctor` says of the methods."""

import os
from typing import get_args

import pytest

from flows.cli import doctor
from tasks.recipe.methods import Method
from tasks.steps.state import State


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


def test_a_prefect_server_that_is_set_and_does_not_answer_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = "http://ann:secret-1@127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url}):
        found = next(doctor.servers(State(tmp_path)))
    assert (found.what, found.verdict) == ("Prefect", "broken")
    assert "127.0.0.1:9/api" in found.found and "secret-1" not in found.found


def test_a_state_folder_that_cannot_be_made_is_one_finding_among_others(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    (tmp_path / "state").write_text("in the way")
    found = {finding.what: finding for finding in doctor.examine(State(tmp_path / "state"))}
    assert found["state folder"].verdict == "broken" and "TUNELINE_HOME" in found["state folder"].found
    assert {"python", "memory", "MLflow"} <= found.keys()
