"""What is trained: one model a fine-tuning method, with the values to start from.

Beside its options a method says three things: `starting_rate`, the learning rate to start a search from; `gives`,
whether it makes an adapter or whole weights; `not_merged`, why an adapter stays one (empty where it folds into its
base). The values named as the guide's are the ones that introductions to fine-tuning teach.
"""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.recipe.form import Stage, as_tabs, kind

ALL_LINEAR = "all-linear"
SOFT_PROMPT = "it changes what the model reads, not its weights, so there is nothing to fold into the base"
# Types of PEFT that need more than a config: data of their own, hooks in the loop, or several adapters at once.
NOT_GENERIC = {
    "PROMPT_TUNING": "use the method prompt_tuning",
    "PREFIX_TUNING": "use the method prefix_tuning",
    "P_TUNING": "use the method p_tuning",
    "ADAPTION_PROMPT": "use the method adaption_prompt",
    "ADALORA": "it moves its ranks by calls from the training loop, which this loop does not make",
    "MULTITASK_PROMPT_TUNING": "it needs a task number in every record",
    "POLY": "it needs a task number in every record",
    "XLORA": "it mixes adapters that are trained already; use the method combine",
    "CPT": "it needs a mask of its own in every record",
    "CARTRIDGE": "it is distilled from a text, not trained on records",
}


class MethodRecipe(Stage):
    """What every method has."""

    starting_rate: ClassVar[float]
    gives: ClassVar[Literal["adapter", "full"]] = "adapter"
    not_merged: ClassVar[str] = ""
    type: str

    @property
    def quantisation(self) -> dict[str, Any]:
        """How the frozen base is held in training and when asked, in bitsandbytes' words; {} for as it is."""
        return {}


class FullMethod(MethodRecipe):
    """Every weight is trained. The guide's learning rate is 5e-5."""

    model_config = ConfigDict(title="Full")
    starting_rate = 5e-5
    gives = "full"
    type: Literal["full"] = kind("full")


class Initialisation(StrEnum):
    """What the update matrices start from."""

    default = "default"
    gaussian = "gaussian"
    pissa = "pissa"


def _targets(value: list[str]) -> list[str]:
    if ALL_LINEAR in value and len(value) > 1:
        raise ValueError(f"{ALL_LINEAR} is all of them already: drop the other names, or drop {ALL_LINEAR}")
    return value


class LowRankMethod(MethodRecipe):
    """Low-rank update matrices beside frozen weights: what the three forms of LoRA share."""

    starting_rate = 2e-4
    rank: int = Field(16, ge=1, le=1024, title="Rank", description="Rank of the update matrices.")
    alpha: int = Field(32, ge=1, title="Alpha", description="Updates are scaled by alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, title="Dropout", description="Dropout on the update's inputs in training.")
    target_modules: list[str] = Field(
        [ALL_LINEAR],
        min_length=1,
        title="Target modules",
        description="Layer names, or all-linear (learns more than q_proj and v_proj alone at the same rank).",
    )
    rslora: bool = Field(False, title="Rank-stabilised", description="Scale by alpha / √rank; for ranks above 32.")
    dora: bool = Field(
        False, title="DoRA", description="Train magnitude and direction separately: better at low ranks, slower."
    )
    _check_targets = field_validator("target_modules")(_targets)


class LoraMethod(LowRankMethod):
    """LoRA on a base in full precision."""

    model_config = ConfigDict(title="LoRA")
    type: Literal["lora"] = kind("lora")
    initialisation: Initialisation = Field(
        Initialisation.default,
        title="Initialisation",
        description="pissa starts from the weights' own largest directions (exact, not the fast approximation).",
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.dora and self.initialisation is Initialisation.pissa:
            raise ValueError(
                "dora and initialisation pissa contradict each other: DoRA measures its sizes on the untouched "
                "weights, PiSSA takes their largest part away; choose one"
            )
        return self


class QLoraMethod(LowRankMethod):
    """LoRA on a base in 4 bits. The guide: rank 16, alpha 32 on q, k, v and o_proj, NF4, quantised twice."""

    model_config = ConfigDict(title="QLoRA")
    type: Literal["qlora"] = kind("qlora")
    format: Literal["nf4", "fp4"] = Field(
        "nf4", title="Number format", description="nf4 assumes normally distributed weights."
    )
    double_quantisation: bool = Field(
        True, title="Double quantisation", description="Quantise the scales too: saves 0.4 bits per weight."
    )

    @property
    def quantisation(self) -> dict[str, Any]:
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.format,
            "bnb_4bit_use_double_quant": self.double_quantisation,
        }


class EightBitLoraMethod(LowRankMethod):
    """LoRA on a base in 8 bits. The guide: rank 8, alpha 16, dropout 0.1 on q_proj and v_proj."""

    model_config = ConfigDict(title="8-bit LoRA")
    type: Literal["lora_8bit"] = kind("lora_8bit")
    rank: int = Field(8, ge=1, le=1024, title="Rank", description="Rank of the update matrices.")
    alpha: int = Field(16, ge=1, title="Alpha", description="Updates are scaled by alpha / rank.")
    dropout: float = Field(0.1, ge=0, lt=1, title="Dropout", description="Dropout on the update's inputs in training.")
    outlier_threshold: float = Field(
        6.0, ge=0, title="Outlier threshold", description="Activations above it stay in 16 bits; 0 turns this off."
    )

    @property
    def quantisation(self) -> dict[str, Any]:
        return {"load_in_8bit": True, "llm_int8_threshold": self.outlier_threshold}


class Ia3Method(MethodRecipe):
    """IA3: one learned factor a channel of keys, values and feed-forward layers."""

    model_config = ConfigDict(title="IA3")
    starting_rate = 5e-3
    type: Literal["ia3"] = kind("ia3")
    target_modules: list[str] = Field(
        ["k_proj", "v_proj", "down_proj"], min_length=1, title="Target modules", description="Layers to scale."
    )
    feedforward_modules: list[str] = Field(
        ["down_proj"],
        title="Feed-forward modules",
        description="Target modules whose input is scaled instead of the output.",
    )

    @model_validator(mode="after")
    def _are_targets(self) -> Self:
        if stray := sorted(set(self.feedforward_modules) - set(self.target_modules)):
            raise ValueError(f"feedforward_modules {', '.join(stray)} are not among target_modules; add them there")
        return self


class SoftPromptMethod(MethodRecipe):
    """Vectors that are learned and read before every prompt: what the soft prompts share."""

    not_merged = SOFT_PROMPT
    virtual_tokens: int = Field(20, ge=1, le=1024, title="Virtual tokens", description="Length of the soft prompt.")


class PromptTuningMethod(SoftPromptMethod):
    """Prompt tuning: the soft prompt is a row of input embeddings."""

    model_config = ConfigDict(title="Prompt")
    starting_rate = 3e-2
    type: Literal["prompt_tuning"] = kind("prompt_tuning")
    initial_text: str = Field("", title="Initial text", description="Text to start from; empty means random tokens.")


class PrefixTuningMethod(SoftPromptMethod):
    """Prefix tuning: keys and values of the soft prompt, in every layer."""

    model_config = ConfigDict(title="Prefix")
    starting_rate = 1e-2
    type: Literal["prefix_tuning"] = kind("prefix_tuning")
    projection_size: int = Field(
        0, ge=0, title="Projection size", description="Width of a network that produces the prefix; 0 means none."
    )


class PTuningMethod(SoftPromptMethod):
    """P-tuning: the soft prompt comes out of a small network."""

    model_config = ConfigDict(title="P-tuning")
    starting_rate = 1e-2
    type: Literal["p_tuning"] = kind("p_tuning")
    encoder: Literal["mlp", "lstm"] = Field("mlp", title="Encoder", description="Network that produces the prompt.")
    encoder_size: int = Field(128, ge=1, title="Encoder size", description="Width of that network.")


class AdaptionPromptMethod(MethodRecipe):
    """LLaMA-Adapter, the "adapter" of the guide in PEFT's terms: prompts in the upper layers behind a gate of zero."""

    model_config = ConfigDict(title="LLaMA-Adapter")
    starting_rate = 1e-2
    not_merged = "its gated prompts are asked beside the attention of every token, so no weight can hold them"
    type: Literal["adaption_prompt"] = kind("adaption_prompt")
    prompt_tokens: int = Field(10, ge=1, le=1024, title="Prompt tokens", description="Length of each layer's prompt.")
    layers: int = Field(0, ge=0, title="Layers", description="How many, counted from the top; 0 means all.")


class PeftMethod(MethodRecipe):
    """Any other type of PEFT by its own name, its options checked against PEFT's own configuration class."""

    model_config = ConfigDict(title="PEFT")
    starting_rate = 1e-3
    type: Literal["peft"] = kind("peft")
    peft_type: str = Field(
        "LOHA",
        title="PEFT type",
        description="For example LOHA, LOKR, OFT, BOFT, VERA, FOURIERFT, HRA, LN_TUNING, MISS.",
    )
    options: dict[str, Any] = Field(
        {}, title="Options", description="Keys of that type's configuration class, for example {r: 8}."
    )

    @model_validator(mode="after")
    def _peft_knows_it(self) -> Self:
        from tasks.recipe.peft_options import check_options

        if self.peft_type in NOT_GENERIC:
            raise ValueError(f"peft_type {self.peft_type}: {NOT_GENERIC[self.peft_type]}")
        check_options(self.peft_type, self.options)
        return self


class CombineMethod(MethodRecipe):
    """No training: adapters of one base, weighed and put together into one."""

    model_config = ConfigDict(title="Combine")
    starting_rate = 1e-4
    type: Literal["combine"] = kind("combine")
    adapters: list[str] = Field(
        ["models:/first-adapter@production", "models:/second-adapter@production"],
        min_length=2,
        title="Adapters",
        description="Folders, or models:/<name>-adapter@alias or /version; LoRA adapters of the recipe's base.",
    )
    weights: list[float] = Field([], title="Weights", description="One per adapter; empty means equal weights.")
    combination: Literal["linear", "svd", "ties", "dare_ties"] = Field(
        "linear",
        title="Combination",
        description="linear adds the matrices, svd the updates (any ranks); ties and dare_ties drop small ones first.",
    )
    density: float = Field(
        0.5, gt=0, le=1, title="Density", description="Fraction of updates kept by ties and dare_ties."
    )

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if self.weights and len(self.weights) != len(self.adapters):
            raise ValueError(f"weights has {len(self.weights)} numbers for {len(self.adapters)} adapters")
        return self


class AutoMethod(MethodRecipe):
    """The best method whose predicted memory fits: full, then LoRA, 8-bit LoRA, QLoRA, prompt tuning."""

    model_config = ConfigDict(title="Auto")
    starting_rate = 2e-4
    type: Literal["auto"] = kind("auto")
    memory_gib: float = Field(
        0, ge=0, title="Memory", description="Memory limit for training in GiB; 0 means the free memory of the device."
    )


Method = Annotated[
    LoraMethod
    | QLoraMethod
    | EightBitLoraMethod
    | FullMethod
    | Ia3Method
    | PromptTuningMethod
    | PrefixTuningMethod
    | PTuningMethod
    | AdaptionPromptMethod
    | PeftMethod
    | CombineMethod
    | AutoMethod,
    Field(discriminator="type", json_schema_extra=as_tabs),
]
