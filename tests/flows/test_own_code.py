"""A base that brings Python of its own: refused before anything runs, or trusted all the way into the registry."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import run
from tasks.errors import InvalidBaseModel
from tasks.registry import versions

ROOT = Path(__file__).parents[2]
TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

with Path({marker!r}).open("a") as stream:
    stream.write("tokenizer\\n")


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

with Path({marker!r}).open("a") as stream:
    stream.write("model\\n")


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


@pytest.fixture
def own_code(tiny_base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base with a tokenizer and a model of its own code, of a type that transformers does not know; and a file that
    the code writes to when it runs."""
    folder, marker = Path(shutil.copytree(tiny_base, tmp_path / "own")), tmp_path / "ran"
    (folder / "own_tokenizer.py").write_text(TOKENIZER.format(marker=str(marker)), "utf-8")
    (folder / "own_model.py").write_text(MODEL.format(marker=str(marker)), "utf-8")
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]},
    )
    names = {"AutoConfig": "own_model.OwnConfig", "AutoModelForCausalLM": "own_model.OwnForCausalLM"}
    change(folder / "config.json", model_type="own_llama", architectures=["OwnForCausalLM"], auto_map=names)
    return folder, marker


def test_python_that_is_not_trusted_ends_a_run_before_its_first_step_and_asks_nobody(fresh, own_code):
    folder, marker = own_code
    # As a base that only its tokenizer gives away.
    shutil.copy(fresh.base / "config.json", folder)
    recipe = fresh.recipe("own", base={"model": str(folder)})
    with (fresh.home / "answers").open("w+") as answers:
        answers.write("y\n" * 100)
        answers.seek(0)
        process = fresh.start("retrain", str(fresh.file(recipe)), stdin=answers)
        said, _ = process.communicate(timeout=300)
        assert answers.tell() == 0, "somebody read from the terminal"
    assert process.returncode == 1, said
    text = " ".join(said.replace("│", "").split())
    assert "auto_map in tokenizer_config.json" in text and "trust_remote_code" in text and "custom code?" not in text
    assert not marker.exists()
    assert not list(fresh.state.steps.glob("*/*"))


def test_planning_does_not_run_it_either(fresh, own_code, capsys):
    folder, marker = own_code
    assert run(["plan", str(fresh.file(fresh.recipe("own", base={"model": str(folder)})))]) == 1
    assert "auto_map in config.json" in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not marker.exists()


@pytest.mark.slow
def test_a_trusted_base_goes_the_whole_path_and_its_code_goes_with_it(fresh, own_code, retrain: Callable[..., Any]):
    folder, marker = own_code
    trusted = {"model": str(folder), "trust_remote_code": True}
    first = retrain(fresh.recipe("own", base=trusted))
    assert first.decision.promote, first.decision
    assert set(marker.read_text().split()) == {"tokenizer", "model"}
    registered = versions.model_folder(fresh.uri, "own", first.versions.version, fresh.home)
    assert (registered / "own_tokenizer.py").is_file() and (registered / "own_model.py").is_file()
    # The one in production is asked by the next release: only where that one trusts it.
    recipe = fresh.recipe("own", base=trusted, training={"max_steps": 30})
    assert retrain(recipe).report.champion == "own/1"
    with pytest.raises(InvalidBaseModel, match=r"champion .*own_tokenizer|champion .*auto_map"):
        retrain(fresh.recipe("own", base={"model": str(fresh.base)}))


@pytest.mark.slow
def test_a_whole_run_imports_no_file_of_the_working_folder(fresh):
    """Prefect's temporary server, the training process and the versions that are asked are all started in it."""
    marker, littered = fresh.home / "ran", fresh.home / "littered"
    littered.mkdir()
    for name in ("torch", "random", "datasets", "sqlalchemy", "uvicorn", "usercustomize", "evaluate"):
        (littered / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r} + chr(10))\n", "utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTHON"))}
    recipe = fresh.file(fresh.recipe("littered", training={"max_steps": 60}))
    done = subprocess.run(
        # As the console script starts, whose own folder is first on the search path.
        [sys.executable, "-P", "-c", "from flows.cli.main import main; main()", "retrain", str(recipe)],
        cwd=littered,
        env={**kept, "TUNELINE_HOME": str(fresh.state.root), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert not marker.exists(), marker.read_text("utf-8")
    assert done.returncode == 0, done.stderr
    assert fresh.versions("littered") == [1]
