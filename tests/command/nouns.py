"""A retraining's nouns, made by hand: what the last screen is drawn from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tasks.artifacts import (
    Comparison,
    Estimate,
    EvaluationReport,
    MergedModel,
    ModelVersions,
    Parity,
    PolicyCheck,
    PromotionDecision,
    SuiteReport,
    TokenizedDataset,
    TrainedWeights,
    ValidatedDataset,
)


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean * 0.9, high=mean * 1.05, rows=160)


def evaluation(folder: Path, champion: bool) -> EvaluationReport:
    scores: dict[Any, Any] = {
        "base": {"exact_match": estimate(0.01), "perplexity": estimate(31.4)},
        "candidate": {"exact_match": estimate(0.91), "perplexity": estimate(1.2)},
    }
    if champion:
        scores["champion"] = {"exact_match": estimate(0.88), "perplexity": estimate(1.3)}
    gain = Estimate(mean=0.9, low=0.85, high=0.94, rows=160)
    against = Comparison(
        metric="exact_match", against="base", difference=gain, p_value=0.0005, wins=144, losses=0, ties=16
    )
    suite = SuiteReport(suite="test", rows=160, scores=scores, comparisons=[against], slices=[])
    row = {
        "prompt": "My [bold]router[/] AX-300 died, order 77-1234, 快点! " * 6,
        "reference": '{"intent": "repair", "order": "77-1234"}',
        "base": "I am sorry to hear that. Please tell me more about it and I will gladly help you with your router. "
        * 5,
        "candidate": '{"intent": "repair", "order": "77-1234"}',
    }
    return EvaluationReport(
        digest="e",
        folder=folder,
        primary_metric="exact_match",
        confidence=0.95,
        suites={"test": suite},
        candidate_digest="c",
        base_digest="b",
        champion="support-desk v1" if champion else "",
        examples=[row] * 5,
        asking_seconds=61.5,
    )


def retrained(folder: Path, promote: bool = True, champion: bool = True, in_production: int = 0) -> Any:
    """What the flow returns; the screens read fields only. `in_production` is the version there after a no."""
    serving = {"staging": 2, "production": 2} if promote else {"production": in_production} if in_production else {}
    previous = {"previous": 1} if champion and promote else {}
    adapter = {**serving, "candidate": 2} if promote else {}
    (folder / "inputs.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    rows = {"train": 1200, "validation": 150, "test": 160, "quarantine": 31}
    check = PolicyCheck(
        rule="not_worse_than_champion",
        passed=promote,
        reason="exact_match is 0.030 above the champion's" if promote else "exact_match is 0.300 below the champion's",
    )
    return SimpleNamespace(
        dataset=ValidatedDataset(
            digest="d",
            folder=folder,
            name="desk",
            format="alpaca",
            sources=["x"],
            rows=rows,
            findings={},
            source_digest="s",
        ),
        tokenized=TokenizedDataset(
            digest="t",
            folder=folder,
            base_digest="b",
            tokenizer_digest="t",
            template_digest="t",
            rows=rows,
            tokens={"train": 100_000, "validation": 9_000},
            trained_tokens={"train": 40_000, "validation": 3_000},
            truncated={"train": 0},
        ),
        weights=TrainedWeights(
            digest="w",
            folder=folder,
            reused=True,
            method="lora",
            kind="adapter",
            base_digest="b",
            steps=120,
            tokens=109_000,
            seconds=150.0,
            trainable_parameters=5_000_000,
            best_step=100,
            best_validation_loss=0.04,
            final_training_loss=0.03,
        ),
        report=evaluation(folder, champion),
        merged=MergedModel(
            digest="m",
            folder=folder,
            kind="merged",
            model_digest="m",
            parity=Parity(prompts=32, tokens=900, mean_kl=1e-6, max_kl=1e-5, top1_agreement=1.0, answer_agreement=1.0),
        ),
        versions=ModelVersions(
            digest="v",
            folder=folder,
            name="support-desk",
            version=2,
            adapter_name="support-desk-adapter",
            adapter_version=2,
            mlflow_run_id="0123456789abcdef0123456789abcdef",
            tracking_uri="sqlite:////somewhere/.tuneline/mlflow.db",
        ),
        decision=PromotionDecision(
            digest="p",
            name="support-desk",
            version=2,
            promote=promote,
            target="production",
            checks=[PolicyCheck(rule="minimum", passed=True, reason="exact_match 0.910 ≥ 0.5"), check],
            previous=1 if champion else 0,
            aliases={"support-desk": {"candidate": 2, **serving, **previous}, "support-desk-adapter": adapter},
        ),
    )
