"""The page of methods from measurements made up here, and the recipes it would run."""

import json

from benchmarks.gpu.page import Results
from benchmarks.methods.__main__ import METHODS, RESULTS, ROOT, recipe_of
from benchmarks.methods.page import page, plot

ESTIMATE = {"mean": 0.5, "low": 0.4, "high": 0.6, "rows": 64}
PARITY = {
    "prompts": 4,
    "tokens": 40,
    "mean_kl": 1e-9,
    "max_kl": 1e-8,
    "top1_agreement": 1.0,
    "answer_agreement": 1.0,
}
ONE = {
    "date": "2026-01-01",
    "learning_rate": 2e-3,
    "rows": 240,
    "steps": 50,
    "trainable": 1000,
    "peak_memory": 2**30,
    "tokens_per_second": 200.0,
    "saved": 2**20,
    "base": ESTIMATE,
    "score": ESTIMATE,
}
MERGED = {
    **ONE,
    "kind": "merged",
    "rule": "dequantised",
    "parity": PARITY,
    "candidates": [
        {"rule": rule, "saved": rule == "dequantised", "parity": PARITY, "score": 0.5}
        for rule in ("dequantised", "full_precision", "requantised")
    ],
}
FOUND = RESULTS.adapter.validate_json(json.dumps({"qlora": MERGED, "prompt_tuning": {**ONE, "kind": "adapter"}}))


def test_every_method_of_the_table_has_a_recipe_that_is_valid():
    kinds = {recipe_of(name).training.method.type for name in METHODS}
    assert len(METHODS) == 16
    assert {"full", "lora", "qlora", "lora_8bit", "ia3", "prompt_tuning", "prefix_tuning", "p_tuning"} < kinds


def test_the_page_shows_each_method_and_every_rule_of_a_merge():
    made = page(FOUND, 240, 64)
    assert "| qlora | 2e-03 | 1,000 | 1,024 | 200 | 1.0 | 0.500 [0.400, 0.600] | dequantised | 1.0e-09 | 100% |" in made
    assert "0.500 [0.400, 0.600] | stays an adapter | |  |" in made
    assert made.count("| qlora | ") == 4
    assert "**dequantised**" in made


def test_the_page_ends_with_what_a_gpu_took_and_how_it_was_measured():
    (newest,) = sorted((ROOT / "benchmarks" / "results").glob("gpu-*.json"))[-1:]
    made = page(FOUND, 240, 64, Results.read(newest))
    section = made[made.index("## On a GPU") :]
    assert "| 7b | full | 6,738,415,616 |" in section
    assert "`python -m benchmarks.gpu` with torch 2." in section
    assert "| 7b | dequantised |" in section


def test_the_same_measurements_draw_the_same_plot():
    assert plot(FOUND) == plot(FOUND)
    assert "prompt_tuning" in plot(FOUND)
