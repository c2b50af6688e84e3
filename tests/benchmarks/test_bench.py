import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from benchmarks.speed.__main__ import DATA, main, options, plan
from benchmarks.speed.contenders import contend, training_job, write_examples
from benchmarks.speed.flops import adapter_weights, linear_weights, training_flop
from benchmarks.speed.jobs import LORA, PADDED, Job
from benchmarks.speed.results import ANSWERS, Findings, table, write
from benchmarks.speed.rounds import Measurement, measure
from benchmarks.speed.rows import ALPACA, BANKING, FILES, prompt_and_completion, read_rows

HERE = {"cpu": "a processor", "cores": 2, "memory_gb": 24, "python": "3.11", "waiting": "passive"}


@pytest.fixture
def data(tmp_path: Path, colour_rows: list[dict[str, str]]) -> Path:
    """The colour rows in the two files that the benchmark reads."""
    folder = tmp_path / "data"
    for file in FILES.values():
        (folder / file).parent.mkdir(parents=True)
    (folder / FILES[ALPACA]).write_text(json.dumps(colour_rows), "utf-8")
    lines = [f'"{row["instruction"]}",{row["output"]}' for row in colour_rows]
    (folder / FILES[BANKING]).write_text("\n".join(["text,category", *lines]) + "\n", "utf-8")
    return folder


def job(base: Path, rows: list[dict[str, str]]) -> Job:
    return Job("ours", rows, tokens=1, base=base, threads=1, pack_tokens=256)


def test_every_contender_measures_the_same_rows_and_the_guide_pads_them(data: Path, tiny_base: Path) -> None:
    told = options(["--quick", "--threads", "1", "--pack-tokens", "128", "--data", str(data)])
    findings = Findings(list(measure(plan(told, tiny_base), told.rounds, run=contend)))
    assert findings.entries() == [
        (ALPACA, "guide"),
        (ALPACA, "ours"),
        (BANKING, "guide"),
        (BANKING, "ours"),
        (ANSWERS, "guide-answers"),
        (ANSWERS, "our-answers"),
    ]
    assert all(one.tokens > 0 and one.seconds > 0 for one in findings.measured)
    for name in (ALPACA, BANKING):
        guide, ours = findings.of(name, "guide")[0], findings.of(name, "ours")[0]
        assert guide.tokens == ours.tokens
        assert guide.details["processed"] == guide.details["labels"] == 4 * PADDED
        # The template ends a row with a line break that is not counted.
        assert ours.details["processed"] == ours.tokens + 4
        assert 0 < ours.details["labels"] < ours.tokens
        assert len(ours.details["losses"]) > 1
    assert findings.answers() == (2, 2)
    assert 0 < findings.share_of_peak().median < 1


@pytest.mark.slow
def test_a_quick_run_as_processes_writes_both_files(
    data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    results = tmp_path / "results"
    told = ["--quick", "--threads", "1", "--data", str(data), "--base", str(tiny_base), "--results", str(results)]
    assert main(told) == 0
    page, numbers = (next(results.glob(f"*.{kind}")).read_text("utf-8") for kind in ("md", "json"))
    assert len(json.loads(numbers)["measured"]) == 6
    assert "| identical greedy answers | all | 2 of 2 | yes |" in page


def test_without_the_data_it_says_so_and_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "absent"), "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'absent'} is not there: nothing is measured.\n"
    assert not (tmp_path / "results").exists()


def test_a_row_longer_than_the_guide_pads_is_not_measured(data: Path, tiny_base: Path) -> None:
    rows = json.loads((data / FILES[ALPACA]).read_text("utf-8"))
    long = {"instruction": "Go on.", "input": "", "output": "red " * PADDED}
    (data / FILES[ALPACA]).write_text(json.dumps([long, *rows]), "utf-8")
    made = plan(options(["--quick", "--data", str(data)]), tiny_base)
    assert made[0].job.rows == rows[:4]


def test_our_prompt_is_the_guides_and_only_answers_carry_labels(
    tiny_base: Path, tmp_path: Path, colour_rows: list[dict[str, str]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = [colour_rows[0], colour_rows[1] | {"input": "at night"}]
    examples = write_examples(job(tiny_base, rows), tmp_path)
    for row, example in zip(rows, examples, strict=True):
        prompt, completion = prompt_and_completion(row)
        assert tokenizer.decode(example.input_ids) == prompt + completion + tokenizer.eos_token + "\n"
        trained = [label for label in example.labels if label != -100]
        assert tokenizer.decode(trained) == completion + tokenizer.eos_token


def test_weights_are_counted_as_the_model_has_them(tiny_base: Path, tmp_path: Path) -> None:
    from tasks.modeling.methods import load_for_training
    from tasks.recipe.stages import ComputeRecipe

    config = AutoConfig.from_pretrained(tiny_base).to_dict()
    recipe = training_job(job(tiny_base, []), tmp_path).recipe
    model = load_for_training(tiny_base, recipe.method, ComputeRecipe())
    moved = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for n, p in model.named_parameters() if n.endswith("proj.weight") or "base_layer" in n)
    assert (linear_weights(config), adapter_weights(config, LORA["r"])) == (frozen, moved)


def test_the_products_are_those_that_torch_counts_forward_and_backward(
    tiny_base: Path, tmp_path: Path, colour_rows: list[dict[str, str]]
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from tasks.modeling.losses import pack_loss
    from tasks.modeling.methods import load_for_training
    from tasks.modeling.packs import collate
    from tasks.recipe.stages import ComputeRecipe

    told = job(tiny_base, colour_rows[:6])
    examples = write_examples(told, tmp_path)
    model = load_for_training(tiny_base, training_job(told, tmp_path).recipe.method, ComputeRecipe())
    with FlopCounterMode(display=False) as counter:
        pack_loss(model, collate([(e.input_ids, e.labels) for e in examples])).backward()
    config = AutoConfig.from_pretrained(tiny_base).to_dict()
    lengths, labels = [len(e.input_ids) for e in examples], sum(e.trained_tokens for e in examples)
    attention = 6 * config["num_hidden_layers"] * config["hidden_size"] * sum(length**2 for length in lengths)
    # The first block's inputs are embeddings: nothing flows back to them through q, k, v and the adapters.
    unneeded = 2 * sum(lengths) * config["hidden_size"] * (64 + 32 + 32 + 2 * LORA["r"])
    products = sum(
        count for kind, count in counter.get_flop_counts()["Global"].items() if str(kind).startswith("aten.mm")
    )
    assert training_flop(config, LORA["r"], lengths, labels) - attention - unneeded == products


def measurement(name: str, contender: str, turn: int, speed: float, **details: Any) -> Measurement:
    usual = {"versions": {"torch": "2"}, "processed": 100, "labels": 50, "gflop": 50.0, "peak_gflop_per_second": 100.0}
    return Measurement(name, contender, turn, 100, 100 / speed, details.pop("busy", 0.0), usual | details)


@pytest.fixture
def findings() -> Callable[..., Findings]:
    def make(answers: list[list[int]] | None = None, busy: float = 0.0) -> Findings:
        same = [[1, 2], [3]]
        return Findings(
            [
                *(measurement(ALPACA, "trl-packed", turn, speed) for turn, speed in enumerate([80, 60, 100], 1)),
                *(measurement(ALPACA, "trl-grouped", turn, speed) for turn, speed in enumerate([50, 90, 50], 1)),
                *(measurement(ALPACA, "ours", turn, 160, busy=busy) for turn in (1, 2, 3)),
                measurement(ANSWERS, "guide-answers", 1, 10, answers=same),
                measurement(ANSWERS, "our-answers", 1, 100, answers=answers or [*same, [4]]),
            ]
        )

    return make


def test_the_better_mode_is_chosen_round_by_round(findings: Callable[..., Findings]) -> None:
    ratio = findings().ratio(ALPACA, ("trl-packed", "trl-grouped"))
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.6, 160 / 90, 2.0))
    assert findings().ratio(ALPACA, ("guide",)) is None


def test_the_page_says_which_goals_were_not_reached(findings: Callable[..., Findings]) -> None:
    page = table(findings(answers=[[1, 2], [4]]), HERE, "2026-01-01")
    assert "| alpaca-en: training, times TRL's better mode | 1.5 | 1.78 (1.60 to 2.00) | yes |" in page
    assert "| alpaca-en: share of the fp32 matrix peak | 65% | 80% | yes |" in page
    assert "| identical greedy answers | all | 1 of 2 | no |" in page
    assert "Not quiet" not in page


def test_a_busy_machine_is_confessed(findings: Callable[..., Findings], tmp_path: Path) -> None:
    page = write(findings(busy=55.0), vars(SimpleNamespace(rounds=3)), tmp_path)
    assert "**Not quiet: other processes used 20 % or more of the processors before 3 of 11 measurements.**" in page


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_the_real_sets_have_the_columns_that_are_read() -> None:
    alpaca, banking = read_rows(DATA, ALPACA), read_rows(DATA, BANKING)
    assert len(alpaca) == 999
    assert len(banking) == 10_003
    assert all(set(prompt_and_completion(row)) for row in [*alpaca, *banking])
