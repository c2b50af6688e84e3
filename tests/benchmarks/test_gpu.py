"""The GPU benchmark on a tiny shape on a processor: known to work before a GPU is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.page import row
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.trainings import METHODS, Measured
from tasks.modeling.memory import GIB, Memory

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
sys.modules.update(prefect=None, mlflow=None)  # as if neither were installed
from benchmarks.gpu.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def benchmark(place: Path, *arguments: str) -> tuple[str, dict[str, object]]:
    sizes = ["--shape", "tiny", "--steps", "4", "--tokens", "256", "--document", "64"]
    command = [sys.executable, "-c", RUN, *sizes, "--folder", str(place), "--results", str(place), *arguments]
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (page,), (numbers,) = place.glob("gpu-*.md"), place.glob("gpu-*.json")
    return page.read_text("utf-8"), json.loads(numbers.read_text("utf-8"))


@pytest.mark.slow
def test_it_trains_and_writes_its_page_without_prefect_or_mlflow(tmp_path: Path) -> None:
    page, numbers = benchmark(tmp_path, "--method", "lora")
    (lora,) = numbers["measured"]
    assert (lora["shape"], lora["method"], lora["fault"]) == ("tiny", "lora", "")
    assert lora["tokens_per_second"] > 0
    assert lora["predicted"]["total"] == pytest.approx(lora["peak"], rel=0.25)
    assert f"| tiny | lora | {lora['parameters']:,} | {lora['trainable_parameters']:,} |" in page
    assert "gradient checkpointing" in page
    page, numbers = benchmark(tmp_path, "--method", "full")
    assert [one["method"] for one in numbers["measured"]] == ["lora", "full"]
    assert numbers["measured"][0] == lora
    assert page.count("| tiny |") == 2


@pytest.mark.slow
def test_every_method_is_measured_and_the_4_bit_adapter_merged_by_every_rule(tmp_path: Path) -> None:
    page, numbers = benchmark(tmp_path)
    assert [one["method"] for one in numbers["measured"]] == list(METHODS)
    parities = next(one for one in numbers["measured"] if one["method"] == "qlora")["parities"]
    assert set(parities) == {"dequantised", "full_precision", "requantised"}
    assert parities["dequantised"]["mean_kl"] < 1e-6
    assert "| tiny | full_precision |" in page


def test_a_method_that_does_not_fit_has_a_row_that_says_so() -> None:
    memory = Memory(120 * GIB, 0, 0, 0, 0, 0, 0)
    line = row(Measured("7b", "full", 7, 7, memory, fault="does not fit into 80 GiB"))
    assert line == "| 7b | full | 7 | 7 | 120.00 | – | – | does not fit into 80 GiB |"


def test_the_shapes_have_the_parameters_of_their_names() -> None:
    from tasks.modeling.memory import PackSize, predict
    from tasks.recipe.methods import FullMethod
    from tasks.recipe.stages import ComputeRecipe

    sizes = {
        name: predict(
            {"model_type": "llama", "tie_word_embeddings": False} | shape,
            FullMethod(),
            ComputeRecipe(),
            PackSize(8, 4),
        ).parameters
        for name, shape in SHAPES.items()
    }
    assert sizes["1b"] == 1_100_048_384
    assert sizes["7b"] == 6_738_415_616
