"""Every knob of a retraining: one pydantic model a stage, composed into a Recipe."""

from enum import StrEnum
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.recipe.form import Stage
from tasks.recipe.methods import LoraMethod, Method, PrefixTuningMethod


class BaseModelRecipe(Stage):
    """The pinned weights that training starts from."""

    model_config = ConfigDict(title="Base model")
    model: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        title="Model",
        description="A bundled model (`tuneline fetch-base`), a folder, a hub name such as Qwen/Qwen3-0.6B, "
        "or models:/name@alias.",
    )
    revision: str = Field("", title="Revision", description="Hub revision to pin; empty means main.")
    trust_remote_code: bool = Field(
        False, title="Trust remote code", description="Run Python code that comes with the model."
    )


class DataFormat(StrEnum):
    """How one row of a source becomes messages."""

    auto = "auto"
    alpaca = "alpaca"
    messages = "messages"
    sharegpt = "sharegpt"
    prompt_completion = "prompt_completion"
    columns = "columns"


class ColumnMapping(Stage):
    """Which columns hold what; needed for any format of your own, empty names are not used."""

    model_config = ConfigDict(title="Columns")
    instruction: str = Field("", title="Instruction column", description="The column with the request.")
    input: str = Field("", title="Input column", description="The column with the text that the request refers to.")
    output: str = Field("", title="Output column", description="The column with the answer.")
    system: str = Field("", title="System column", description="The column with the system message.")
    instruction_text: str = Field(
        "", title="Instruction text", description="One instruction for every row, if no column holds it."
    )


class PersonalData(StrEnum):
    """What happens to e-mail addresses and card numbers found in records."""

    report = "report"
    redact = "redact"
    quarantine = "quarantine"


class DataRecipe(Stage):
    """Where records come from and what they must satisfy."""

    model_config = ConfigDict(title="Data")
    train: list[str] = Field(
        min_length=1,
        title="Training sources",
        description="Files, folders, globs, or Hugging Face dataset names (hf:org/name or hf:org/name:split).",
    )
    validation: list[str] = Field(
        [], title="Validation sources", description="Empty: split off from the training sources."
    )
    test: list[str] = Field([], title="Test sources", description="Empty: split off from the training sources.")
    validation_fraction: float = Field(
        0.1, ge=0, lt=0.5, title="Validation share", description="Fraction split off for validation."
    )
    test_fraction: float = Field(0.1, ge=0, lt=0.5, title="Test share", description="Fraction split off for the test.")
    format: DataFormat = Field(
        DataFormat.auto, title="Format", description="auto detects it from the rows and reports it."
    )
    columns: ColumnMapping = Field(ColumnMapping(), title="Columns", description="Used with the format 'columns'.")
    slice_columns: list[str] = Field(
        [], title="Slice columns", description="Columns by which test scores are also reported."
    )
    min_characters: int = Field(
        1, ge=1, title="Shortest answer", description="Characters; a shorter answer is quarantined."
    )
    max_characters: int = Field(
        20_000, ge=1, title="Longest record", description="Characters; a longer record is quarantined."
    )
    near_duplicate_similarity: float = Field(
        0.9,
        ge=0.5,
        le=1.0,
        title="Near-duplicate similarity",
        description="Prompts with at least this similarity share one split.",
    )
    personal_data: PersonalData = Field(
        PersonalData.report, title="Personal data", description="What to do with e-mail addresses and card numbers."
    )
    max_quarantined: float = Field(
        0.2, ge=0, le=1, title="Quarantine limit", description="Fraction of bad records above which the run stops."
    )
    limit: int = Field(0, ge=0, title="Row limit", description="Use at most this many training records; 0 means all.")


class PromptTemplate(StrEnum):
    """Where the text of a prompt comes from."""

    chat = "chat"
    guide = "guide"
    custom = "custom"


class PromptRecipe(Stage):
    """How messages are rendered and tokenised."""

    model_config = ConfigDict(title="Prompt")
    template: PromptTemplate = Field(
        PromptTemplate.chat,
        title="Template",
        description="chat: the tokenizer's template; guide: 指令/输入/输出; custom: the Jinja text below.",
    )
    custom_template: str = Field(
        "", title="Custom template", description="A Jinja chat template, for template 'custom'."
    )
    system: str = Field("", title="System message", description="Added to every record without a system message.")
    max_length: int = Field(
        1024, ge=8, title="Longest example", description="In tokens; longer answers are cut and reported."
    )

    @model_validator(mode="after")
    def _template_has_text(self) -> Self:
        if (self.template is PromptTemplate.custom) != bool(self.custom_template):
            raise ValueError("custom_template is for template 'custom', and template 'custom' needs it")
        return self


class Schedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class TrainingRecipe(Stage):
    """How the weights are trained."""

    model_config = ConfigDict(title="Training")
    method: Method = Field(LoraMethod(), title="Method", description="Training method.")
    epochs: float = Field(1.0, gt=0, title="Epochs", description="Passes over the training data.")
    max_steps: int = Field(
        0, ge=0, title="Step limit", description="Stop after this many optimiser steps; 0 means no limit."
    )
    batch_tokens: int = Field(1024, ge=8, title="Batch tokens", description="Tokens per forward pass.")
    gradient_accumulation: int = Field(
        1, ge=1, title="Gradient accumulation", description="Forward passes per optimiser step."
    )
    learning_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Learning rate",
        description="Peak learning rate; 0 means the method's default.",
    )
    schedule: Schedule = Field(Schedule.linear, title="Schedule", description="Learning rate schedule after warm-up.")
    warmup_ratio: float = Field(
        0.03, ge=0, lt=1, title="Warm-up", description="Fraction of steps with rising learning rate."
    )
    weight_decay: float = Field(0.0, ge=0, lt=1, title="Weight decay", description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(
        1.0, ge=0, title="Gradient clipping", description="Maximum gradient norm; 0 means no clipping."
    )
    validations: int = Field(
        5, ge=1, title="Validations", description="Number of validation loss measurements during training."
    )
    early_stopping_patience: int = Field(
        0,
        ge=0,
        title="Early stopping",
        description="Stop after this many validations without improvement; 0 means never.",
    )
    checkpoint_seconds: int = Field(
        60, ge=1, title="Checkpoint interval", description="Seconds between checkpoints: what a crash can cost."
    )

    @property
    def highest_rate(self) -> float:
        """The learning rate after the warm-up: the recipe's, or the method's own."""
        return self.learning_rate or self.method.starting_rate


class Precision(StrEnum):
    """Number format of the matrix products."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Strategy(StrEnum):
    """How the state of a training is spread over processes."""

    replicated = "replicated"
    fsdp2 = "fsdp2"
    zero2 = "zero2"
    zero3 = "zero3"


class ComputeRecipe(Stage):
    """On how many processes, in which number format, and how memory is saved."""

    model_config = ConfigDict(title="Compute")
    precision: Precision = Field(Precision.auto, title="Precision", description="auto chooses for the device.")
    gradient_checkpointing: bool = Field(False, title="Gradient checkpointing", description="Less memory, more time.")
    processes: int = Field(
        1, ge=1, title="Processes", description="Over all machines, one per GPU; they share each step."
    )
    machines: int = Field(1, ge=1, title="Machines", description="More than one needs MASTER_ADDR and NODE_RANK set.")
    strategy: Strategy = Field(
        Strategy.replicated,
        title="Strategy",
        description="replicated: a full copy per process; fsdp2 and zero3 (DeepSpeed) shard optimiser, gradients and "
        "weights; zero2 shards optimiser and gradients.",
    )

    @model_validator(mode="after")
    def _processes_fit_machines_and_strategy(self) -> Self:
        if self.processes % self.machines:
            raise ValueError(f"processes ({self.processes}) cannot be dealt out evenly to {self.machines} machines")
        if self.processes == 1 and self.strategy is not Strategy.replicated:
            raise ValueError(f"strategy {self.strategy.value} shares out over processes; with 1 process use replicated")
        return self


class MetricName(StrEnum):
    """Scores that compare an answer with its reference."""

    exact_match = "exact_match"
    token_f1 = "token_f1"
    rouge_l = "rouge_l"
    bleu = "bleu"
    chrf = "chrf"


class EvaluationRecipe(Stage):
    """How base, candidate and champion are compared on the test rows."""

    model_config = ConfigDict(title="Evaluation")
    metrics: list[MetricName] = Field(
        list(MetricName), min_length=1, title="Metrics", description="Metrics computed per row."
    )
    primary_metric: MetricName = Field(
        MetricName.exact_match, title="Primary metric", description="The metric that promotion compares."
    )
    max_new_tokens: int = Field(128, ge=1, title="Longest answer", description="Maximum tokens to generate.")
    batch_size: int = Field(64, ge=1, title="Batch size", description="Prompts per generation batch.")
    limit: int = Field(0, ge=0, title="Row limit", description="Score at most this many test rows; 0 means all.")
    perplexity_rows: int = Field(
        200, ge=0, title="Perplexity rows", description="Rows for which perplexity is measured; 0 means all."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, title="Confidence", description="Confidence level of all intervals.")
    resamples: int = Field(2000, ge=100, title="Resamples", description="Number of bootstrap resamples.")

    @model_validator(mode="after")
    def _primary_is_measured(self) -> Self:
        if self.primary_metric not in self.metrics:
            raise ValueError(f"primary_metric {self.primary_metric.value!r} is not among metrics")
        return self


class MergingRecipe(Stage):
    """What a merge must prove before it is registered."""

    model_config = ConfigDict(title="Merging")
    prompts: int = Field(
        32, ge=1, title="Prompts", description="Validation prompts used to compare merged and unmerged."
    )
    max_mean_kl: float = Field(
        1e-3, gt=0, title="Mean KL bound", description="Maximum mean KL divergence, in nats per token."
    )
    min_top1_agreement: float = Field(
        0.99, ge=0, le=1, title="Top-1 agreement bound", description="Minimum share of equal top-1 tokens."
    )
    min_answer_agreement: float = Field(
        0.9, ge=0, le=1, title="Answer agreement bound", description="Minimum share of equal greedy answers."
    )


class ServingRecipe(Stage):
    """What the registered model does when the caller says nothing."""

    model_config = ConfigDict(title="Serving")
    max_tokens: int = Field(256, ge=1, title="Longest answer", description="Maximum tokens to generate.")
    temperature: float = Field(0.0, ge=0, le=2, title="Temperature", description="0 means greedy.")
    description: str = Field("", title="Description", description="Shown on the model card.")


class PromotionTarget(StrEnum):
    """How far a candidate that passes the policy goes."""

    candidate = "candidate"
    staging = "staging"
    production = "production"


class PromotionRecipe(Stage):
    """Policy and target alias."""

    model_config = ConfigDict(title="Promotion")
    policy: str = Field("mlflow/promotion_policy.yaml", title="Policy", description="File with the promotion rules.")
    target: PromotionTarget = Field(
        PromotionTarget.production, title="Target", description="Alias to move if the policy allows it."
    )


class Recipe(Stage):
    """Everything one retraining is told."""

    model_config = ConfigDict(title="Recipe")
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$",
        title="Name",
        description="Registered model; the adapter is <name>-adapter.",
    )
    base: BaseModelRecipe = Field(BaseModelRecipe(), title="Base model", description="Weights to start from.")
    data: DataRecipe = Field(title="Data", description="Where records come from.")
    prompt: PromptRecipe = Field(PromptRecipe(), title="Prompt", description="How messages are rendered and tokenised.")
    training: TrainingRecipe = Field(TrainingRecipe(), title="Training", description="How the weights are trained.")
    compute: ComputeRecipe = Field(ComputeRecipe(), title="Compute", description="Devices, precision and processes.")
    evaluation: EvaluationRecipe = Field(EvaluationRecipe(), title="Evaluation", description="How models are compared.")
    merging: MergingRecipe = Field(MergingRecipe(), title="Merging", description="Checks on a merged model.")
    serving: ServingRecipe = Field(ServingRecipe(), title="Serving", description="Defaults of the registered model.")
    promotion: PromotionRecipe = Field(PromotionRecipe(), title="Promotion", description="Policy and target alias.")
    seed: int = Field(0, ge=0, lt=2**31, title="Seed", description="Seed for all random numbers.")

    @field_validator("base", mode="before")
    @classmethod
    def _a_base_may_be_just_a_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _compute_fits_the_method(self) -> Self:
        method, compute = self.training.method, self.compute
        if isinstance(method, PrefixTuningMethod) and compute.gradient_checkpointing:
            raise ValueError(
                "compute.gradient_checkpointing contradicts training.method prefix_tuning: the prefix lives in the "
                "cache, which checkpointing throws away"
            )
        if method.quantisation and compute.strategy in (Strategy.fsdp2, Strategy.zero3):
            raise ValueError(
                f"compute.strategy {compute.strategy.value} contradicts training.method {method.type}: quantised "
                "weights cannot be cut into shares; use replicated or zero2"
            )
        return self

    @model_validator(mode="after")
    def _a_pack_holds_the_longest_example(self) -> Self:
        if self.training.batch_tokens < self.prompt.max_length:
            raise ValueError(
                f"training.batch_tokens ({self.training.batch_tokens}) is smaller than prompt.max_length "
                f"({self.prompt.max_length}): the longest example would fit no batch"
            )
        return self
