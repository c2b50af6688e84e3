"""The rules of promotion: a YAML file in, a frozen policy out; `gate.py` applies it."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.errors import InvalidRecipe
from tasks.output.escaping import listed, shortened
from tasks.project import shipped
from tasks.recipe.stages import MetricName
from tasks.recipe.yaml_text import InvalidYaml, YamlText, parse, text_of

PRIMARY = "primary"
NOT_SCORES = ("perplexity", "answer_tokens")
STOP_RATE = "stop_rate"
DEFAULT = "mlflow/promotion_policy.yaml"
SHIPPED = shipped(DEFAULT)
"""The policy of this checkout, which decides where no other is named."""


class Rule(BaseModel):
    """A part of the policy; frozen and closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _known_metric(metric: str, more: str) -> str:
    """The metric, where a report has it for each row; else it would be missing from every report."""
    known = (*(name.value for name in MetricName), more)
    if metric in NOT_SCORES:
        raise ValueError(f"{metric} is no score: a higher one is not better")
    if metric not in known:
        raise ValueError(f"no such metric; there are {', '.join(known)}")
    return metric


PairedMetric = Annotated[str, AfterValidator(lambda metric: _known_metric(metric, PRIMARY))]


class Better(Rule):
    """The paired difference is above zero."""

    metric: PairedMetric = Field(PRIMARY, description="A metric, or `primary` for the recipe's primary metric.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of the paired interval.")


class NotWorse(Better):
    """The paired difference is above minus `margin`."""

    margin: float = Field(0.02, ge=0, le=1, description="Points of the metric.")


class Slices(Rule):
    """No slice loses more than `max_drop`."""

    metric: PairedMetric = Field(PRIMARY, description="A metric, or `primary`.")
    max_drop: float = Field(0.10, ge=0, le=1, description="Points of the metric.")
    min_rows: int = Field(30, ge=1, description="Rows below which a slice is not looked at.")


class ParityRule(Rule):
    """The merged model answers as base plus adapter does."""

    min_top1_agreement: float = Field(0.99, ge=0, le=1, description="Share of equal most likely tokens.")
    min_answer_agreement: float = Field(0.90, ge=0, le=1, description="Share of equal greedy answers.")


class PromotionPolicy(Rule):
    """The rules of `mlflow/promotion_policy.yaml`; a rule that is None is not applied."""

    suite: str = Field("test", min_length=1, description="Suite whose scores decide.")
    min_rows: int = Field(1, ge=1, description="Rows the suite must have.")
    minimum_scores: dict[str, float] = Field({}, description="Least mean score a metric.")
    better_than_base: Better | None = None
    not_worse_than_champion: NotWorse | None = None
    better_than_champion: Better | None = None
    slices: Slices | None = None
    parity: ParityRule | None = None

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        margin = self.not_worse_than_champion.margin if self.not_worse_than_champion else 1
        if not (any(self.minimum_scores.values()) or self.better_than_base or self.better_than_champion or margin < 1):
            raise ValueError(
                "under these rules nothing is compared, so everything would be promoted; add minimum_scores, "
                f"better_than_base, not_worse_than_champion or better_than_champion, as {SHIPPED.name} does"
            )
        return self

    @field_validator("minimum_scores")
    @classmethod
    def _higher_is_better(cls, scores: dict[str, float]) -> dict[str, float]:
        for metric, least in scores.items():
            _known_metric(metric, STOP_RATE)
            if not 0 <= least <= 1:
                raise ValueError(f"{metric}: {least} is not between 0 and 1")
        return scores


def located(path: str) -> Path:
    """The policy file that a recipe names; for the default, where the working folder has none, the one shipped here."""
    return SHIPPED if path == DEFAULT and not Path(path).exists() else Path(path)


def load(path: Path) -> PromotionPolicy:
    """The policy of a YAML file. Raises InvalidRecipe with every fault in one message: line, key, what was found."""
    try:
        document = parse(text_of(path))
    except OSError as fault:
        raise InvalidRecipe(
            f"{path}: the promotion policy cannot be read ({fault.strerror}); name one that exists."
        ) from fault
    except InvalidYaml as fault:
        raise InvalidRecipe(f"{path}{f':{fault.line}' if fault.line else ''}: {fault}.") from None
    if not isinstance(document.values, dict):
        raise InvalidRecipe(
            f"{path}: found {type(document.values).__name__}, expected keys such as `suite` and `minimum_scores`."
        )
    faults = [
        f"{path}:{line}: {listed(['.'.join(map(str, key))])}: found twice, first on line {first}; keep one."
        for key, line, first in document.repeated
    ]
    try:
        policy = PromotionPolicy.model_validate(document.values)
    except ValidationError as fault:
        faults += [_fault(path, document, error) for error in fault.errors()]
    if faults:
        raise InvalidRecipe("\n".join(faults))
    return policy


def _fault(path: Path, document: YamlText, error: Any) -> str:
    location = tuple(error["loc"])
    around = (location[:end] for end in range(len(location), -1, -1))
    line = next(document.lines[key] for key in around if key in document.lines)
    where = f"{path}:{line}: {listed(['.'.join(map(str, location))]) or 'policy'}"
    if not location:
        return f"{path}: {error['ctx']['error']}."
    if error["type"] == "extra_forbidden":
        rules: dict[str, type[Rule]] = {"slices": Slices, "parity": ParityRule, "not_worse_than_champion": NotWorse}
        owner: type[Rule] = PromotionPolicy if len(error["loc"]) == 1 else rules.get(error["loc"][0], Better)
        return f"{where}: no such key; allowed are {', '.join(owner.model_fields)}."
    return f"{where}: found {shortened(error['input'])}: {error['msg']}."
