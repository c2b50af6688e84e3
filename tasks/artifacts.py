"""The nouns between the verbs: small frozen records of paths, digests and numbers; never tensors, never datasets.

A record is stored as `manifest.json` in its own step folder. `folder` is not stored: it is where the manifest was
found, so that a state folder can be moved. Paths inside a record are relative to it.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Who = Literal["base", "candidate", "champion"]


class Value(BaseModel):
    """A frozen, closed record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepRecord(Value):
    """What a finished step left behind."""

    key: str = Field("", description="Digest of everything that went in; the folder's name.")
    digest: str = Field(description="Digest of what came out; the next step's input.")
    folder: Path = Field(Path(), description="Where the files are; filled in when the manifest is read.")
    reused: bool = Field(False, description="Found, not made, in this flow run.")

    def path(self, name: str) -> Path:
        """A file of this step, by its relative name."""
        return self.folder / name


class ChosenMethod(StepRecord):
    """The method that stands for `method: auto` of one recipe on one machine."""

    method: dict[str, Any]


class SupportedBase(StepRecord):
    """A base whose architecture was tried, and passed, on a small model of its kind."""


class ValidatedDataset(StepRecord):
    """Splits as JSON lines (`train.jsonl`, `validation.jsonl`, `test.jsonl`), `quarantine.jsonl` and the report.

    The reports are `report.json`, `report.md` and `report.html`.
    """

    name: str
    format: str
    sources: list[str]
    rows: dict[str, int] = Field(description="Records a split, and 'quarantine'.")
    findings: dict[str, int] = Field(description="Records a check found, by check.")
    source_digest: str


class TokenizedDataset(StepRecord):
    """`train.parquet` and `validation.parquet` (input_ids, labels), `tokenizer/` with the template it was made with.

    The mask report is `masks.html` and `masks.md`; `lengths.parquet` has the rows that models will be asked.
    """

    base_digest: str
    tokenizer_digest: str
    template_digest: str
    rows: dict[str, int]
    tokens: dict[str, int] = Field(description="Tokens a split.")
    trained_tokens: dict[str, int] = Field(description="Tokens that carry a label, a split.")
    truncated: dict[str, int] = Field(description="Answers cut at the longest length, a split.")
    dropped: dict[str, int] = Field({}, description="Records left out: the prompt alone is too long, a split.")
    max_length: int = Field(0, description="Tokens at which an example was cut; 0 where an older version made this.")
    context: int = Field(0, description="Tokens that the base model reads; 0: it names no limit.")


class TrainedWeights(StepRecord):
    """`weights/` (an adapter or full weights as safetensors, with the tokenizer) and `events.jsonl`.

    `weights/origin.json` says what they are bound to.
    """

    method: str
    kind: Literal["adapter", "full"]
    base_digest: str
    steps: int
    tokens: int = Field(description="Tokens that went through training.")
    seconds: float
    trainable_parameters: int
    best_step: int
    best_validation_loss: float | None
    final_training_loss: float
    stopped_early: bool = False
    peak_memory: int = Field(
        0, description="Bytes that training held at most, of the GPU where there was one; 0: no training."
    )
    not_merged: str = Field("", description="Why an adapter of this method stays one; empty where it is merged.")


class ModelAnswers(StepRecord):
    """`answers.jsonl`: what one model answered on the rows of one suite, in their order."""

    who: Who
    model_digest: str
    rows: int
    seconds: float


class Estimate(Value):
    """A mean over rows with its bootstrap interval."""

    mean: float
    low: float
    high: float
    rows: int


class Comparison(Value):
    """Candidate minus another model on the same rows, a metric; higher is better for the candidate."""

    metric: str
    against: Who
    difference: Estimate
    p_value: float = Field(description="Two-sided paired permutation test.")
    wins: int
    losses: int
    ties: int


class SliceScores(Value):
    """Scores on the rows where a column has one value."""

    column: str
    value: str
    rows: int
    scores: dict[Who, dict[str, Estimate]]


class SuiteReport(Value):
    """One suite: the same rows answered by each model."""

    suite: str
    rows: int
    scores: dict[Who, dict[str, Estimate]] = Field(description="Also perplexity, answer_tokens and stop_rate.")
    comparisons: list[Comparison]
    slices: list[SliceScores]


class EvaluationReport(StepRecord):
    """`report.json`, `report.md`, `report.html` (self-contained) and `rows.parquet` (every row, every answer)."""

    primary_metric: str
    confidence: float
    suites: dict[str, SuiteReport]
    candidate_digest: str
    base_digest: str
    champion: str = Field("", description="Registry name and version of the champion; empty when there was none.")
    champion_digest: str = ""
    examples: list[dict[str, str]] = Field(description="A few rows: prompt, reference, base, candidate.")
    asking_seconds: float = Field(0.0, description="What the answers took that were not known before.")


class Parity(Value):
    """How far a merged model is from base plus adapter."""

    prompts: int
    tokens: int
    mean_kl: float
    max_kl: float
    top1_agreement: float
    answer_agreement: float


MergeRule = Literal["full_precision", "dequantised", "requantised"]


class MergeCandidate(Value):
    """One way of folding an adapter into its base, measured; `requantised` needs bitsandbytes and is never saved."""

    rule: MergeRule
    saved: bool = Field(False, description="This one is the merged model.")
    parity: Parity
    score: float = Field(description="Mean of the primary metric on the same validation prompts.")


class MergedModel(StepRecord):
    """`model/`: a folder that transformers loads by itself; otherwise the trained weights as they are.

    Those are full weights, or an adapter that cannot be folded, by its method or within the recipe's bounds. Rules that
    were compared are also in `candidates.parquet`.
    """

    kind: Literal["merged", "full", "adapter"]
    model_digest: str
    parity: Parity | None = Field(description="None where nothing is folded: full weights, adapters that stay so.")
    rule: MergeRule | Literal[""] = Field("", description="How the adapter was folded; empty where it was not.")
    reason: str = Field("", description="Why an adapter was not folded.")
    candidates: list[MergeCandidate] = Field([], description="Every rule that was measured, the nearest first.")
    metric: str = Field("", description="The metric behind the scores.")
    adapter_score: float | None = Field(None, description="The metric's mean for base plus adapter, as trained.")


class ModelVersions(StepRecord):
    """The registry's versions of one release, tied together; `release.json` says how they came to be."""

    name: str
    version: int
    adapter_name: str = ""
    adapter_version: int = 0
    base_address: str = Field(
        "", description="`models:/name/version` of the base that the adapter names, if it has one."
    )
    mlflow_run_id: str
    tracking_uri: str


class PolicyCheck(Value):
    """One rule of the policy, applied."""

    rule: str
    passed: bool
    reason: str


class Basis(Value):
    """What a decision rests on: a report and a policy, and where each of them is from."""

    report: str = Field("", description="Digest of the evaluation report; empty where there was none.")
    report_from: str = Field("", description="The steps of this machine, or an MLflow run.")
    policy: str = Field("", description="The policy's file on the machine that decided.")
    policy_digest: str = Field("", description="Digest of its rules.")


class PromotionDecision(StepRecord):
    """What was decided, why, and which aliases moved; kept in the ledger whether it was yes or no."""

    name: str
    version: int
    adapter_version: int = 0
    promote: bool
    target: str
    checks: list[PolicyCheck]
    previous: int = Field(0, description="Version that `previous` points at now; 0 for none.")
    basis: Basis = Basis()
    aliases: dict[str, dict[str, int]] = Field(
        {}, description="Every alias of the model and of its adapter and its version, when the decision was last read."
    )

    @property
    def stays_in_production(self) -> bool:
        """The version is in production and this decision, a no, left it there."""
        return not self.promote and self.aliases.get(self.name, {}).get("production") == self.version

    @property
    def reasons(self) -> list[str]:
        """The reasons that decided: the failures of a no, every check of a yes."""
        return [check.reason for check in self.checks if check.passed == self.promote]
