"""An adapter and its base in, a merged model and its measured parity out.

An adapter that was trained on a quantised base can be folded by more than one rule, and which one keeps its answers is
measured, not assumed: each merge is asked what base plus adapter was asked, and the best that can be saved is kept.
"""

import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks.artifacts import MergeCandidate, MergeRule, Parity
from tasks.errors import WorkRefused
from tasks.modeling.generation import generate
from tasks.modeling.loading import free_gpu_memory, inference_dtype, load_model, stops_as_scored, with_adapter
from tasks.modeling.origin import ORIGIN, origin_of
from tasks.modeling.quantisation import dequantised
from tasks.recipe.stages import MergingRecipe
from tasks.steps.progress import Advance, silent

NEVER_SAVED: MergeRule = "requantised"


@dataclass(frozen=True)
class BoundAdapter:
    """An adapter's folder and the folder and digest of its base."""

    weights: Path
    base: Path
    base_digest: str
    trust_remote_code: bool = False

    @property
    def rules(self) -> tuple[MergeRule, ...]:
        """The ways of folding it: one on a base in full precision, three on a quantised one."""
        return ("dequantised", "full_precision", "requantised") if self.quantised else ("full_precision",)

    @property
    def quantised(self) -> bool:
        """Whether its base was quantised when it was trained."""
        return bool(origin_of(self.weights).get("quantisation"))

    @property
    def rounds(self) -> bool:
        """Whether folding changes answers by its nature: on a quantised base, or one that is not asked in fp32."""
        return self.quantised or inference_dtype(self.base) is not torch.float32

    def load(self) -> Any:
        """Base plus adapter as it was trained, on a base quantised as it was."""
        return load_model(self.base, self.weights, self.base_digest, self.trust_remote_code)

    def load_for(self, rule: MergeRule) -> Any:
        """Base plus adapter with the base that a rule folds it into."""
        if rule == "requantised":
            return self.load()
        if rule == "dequantised":
            base = dequantised(self.load().unload(), inference_dtype(self.base))
        else:
            base = load_model(self.base, None, "", self.trust_remote_code)
        return with_adapter(base, self.weights)


@dataclass(frozen=True)
class Questions:
    """What every model is asked, and what scores its answers: token ids of all of them in, a mean out."""

    prompts: Sequence[Sequence[int]]
    stop_ids: frozenset[int]
    max_new_tokens: int
    batch_size: int
    score: Callable[[Sequence[Sequence[int]]], float]
    advance: Advance = silent

    def answers(self, model: Any) -> list[list[int]]:
        """Greedy answers, without the token that ends them."""
        given = generate(model, self.prompts, self.stop_ids, self.max_new_tokens, self.batch_size, self.advance)
        return [answer.token_ids for answer in given]


@dataclass(frozen=True)
class Merge:
    """What came of folding an adapter: the rules measured, nearest first, and the score of base plus adapter.

    `broken` are the bounds that even the nearest breaks; then nothing was saved.
    """

    candidates: list[MergeCandidate]
    adapter_score: float
    broken: list[str]


def merge_best(adapter: BoundAdapter, questions: Questions, bounds: MergingRecipe, folder: Path) -> Merge:
    """Fold an adapter by every rule, measure each, and leave the best that can be saved in `folder`.

    A candidate that can be saved is measured as loaded again from its files; one model is held at a time. Where the
    best breaks a bound, an adapter whose folding `rounds` can still be served as it was trained, so nothing is saved
    and it is said why. Folded in fp32 it should answer alike: raises WorkRefused.
    """
    model = adapter.load()
    answers = questions.answers(model)
    expected = list(distributions(model, questions.prompts, answers))
    candidates = []
    for rule in adapter.rules:
        if adapter.quantised:
            del model
            free_gpu_memory()
            model = adapter.load_for(rule)
        model = _folded(model)
        if rule != NEVER_SAVED:
            place = _place(folder, rule)
            write(model, adapter.weights, place, adapter.trust_remote_code)
            del model
            free_gpu_memory()
            model = load_model(place, None, "", adapter.trust_remote_code)
        given = questions.answers(model)
        parity = measure(expected, distributions(model, questions.prompts, answers), answers, given)
        candidates.append(MergeCandidate(rule=rule, parity=parity, score=questions.score(given)))
    del model
    free_gpu_memory()
    best = nearest(candidates)
    broken = breaches(best.parity, bounds)
    if broken and not adapter.rounds:
        raise WorkRefused(
            f"merge: the merged model (best rule: {best.rule}) answers differently from base plus adapter: "
            f"{'; '.join(broken)}. Nothing was registered; the trained adapter is kept."
        )
    if not broken:
        _place(folder, best.rule).rename(folder)
    for each in candidates:
        shutil.rmtree(_place(folder, each.rule), ignore_errors=True)
    others = sorted((each for each in candidates if each is not best), key=lambda each: each.parity.mean_kl)
    return Merge([best.model_copy(update={"saved": not broken}), *others], questions.score(answers), broken)


def _place(folder: Path, rule: MergeRule) -> Path:
    return folder.with_name(f"{folder.name}-{rule}")


def _folded(model: Any) -> Any:
    with warnings.catch_warnings():
        # That rounding changes answers is what is measured here.
        warnings.filterwarnings("ignore", message="Merge lora module to")
        return model.merge_and_unload(safe_merge=True)


def nearest(candidates: Sequence[MergeCandidate]) -> MergeCandidate:
    """Of those that can be saved, the one of least mean KL, then of most equal answers; what is no number is far."""

    def distance(each: MergeCandidate) -> tuple[bool, float, float]:
        return math.isnan(each.parity.mean_kl), each.parity.mean_kl, -each.parity.answer_agreement

    return min((each for each in candidates if each.rule != NEVER_SAVED), key=distance)


def write(merged: Any, tokenizer_folder: Path, folder: Path, trust_remote_code: bool = False) -> None:
    """Write a merged model as transformers loads it by itself, and stops where it was scored to stop.

    The folder holds safetensors, config, generation config, tokenizer and chat template, and the adapter's origin.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=trust_remote_code)
    stops_as_scored(merged, tokenizer)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    origin = tokenizer_folder / ORIGIN
    if origin.exists():
        shutil.copy(origin, folder / ORIGIN)


def next_token_logits(model: Any, sequence: Sequence[int], start: int) -> torch.Tensor:
    """Logits of the next token from position `start` on: (tokens, vocabulary), as the model gives them, on the CPU."""
    ids = torch.tensor([list(sequence)], device=model.device)
    keep = torch.arange(start, len(sequence), device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0]
    return logits.cpu()


def distributions(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Iterator[torch.Tensor]:
    """The logits of each answer's tokens and of what follows it, one after the other: each is large."""
    for prompt, answer in zip(prompts, answers, strict=True):
        yield next_token_logits(model, [*prompt, *answer], len(prompt) - 1)


def measure(
    reference: Iterable[torch.Tensor],
    other: Iterable[torch.Tensor],
    reference_answers: Sequence[Sequence[int]],
    other_answers: Sequence[Sequence[int]],
) -> Parity:
    """Compare two models' next-token distributions on the same sequences, and their greedy answers.

    Distributions are logits, (tokens, vocabulary). KL is from reference to other, in nats, at each position, in fp64.
    """
    parts, equal = [], []
    for pair in zip(reference, other, strict=True):
        one, two = (logits.double().log_softmax(-1) for logits in pair)
        parts.append((one.exp() * (one - two)).sum(-1))
        equal.append(one.argmax(-1) == two.argmax(-1))
    # Rounding can bring a divergence of nothing below it; what is not a number stays so, and no bound lets it pass.
    divergences, agree = torch.cat(parts).clamp(min=0), torch.cat(equal)
    same = [list(one) == list(two) for one, two in zip(reference_answers, other_answers, strict=True)]
    return Parity(
        prompts=len(same),
        tokens=agree.numel(),
        mean_kl=float(divergences.mean()),
        max_kl=float(divergences.max()),
        top1_agreement=float(agree.double().mean()),
        answer_agreement=sum(same) / len(same),
    )


def breaches(parity: Parity, bounds: MergingRecipe) -> list[str]:
    """Every bound that a merge breaks; what is not a number breaks its own."""
    broken = []
    if not parity.mean_kl <= bounds.max_mean_kl:
        broken.append(f"mean KL {parity.mean_kl:.2e} nats is above merging.max_mean_kl {bounds.max_mean_kl:.2e}")
    if parity.top1_agreement < bounds.min_top1_agreement:
        broken.append(
            f"top-1 agreement {parity.top1_agreement:.4f} is below merging.min_top1_agreement "
            f"{bounds.min_top1_agreement}"
        )
    if parity.answer_agreement < bounds.min_answer_agreement:
        broken.append(
            f"{parity.answer_agreement:.2%} equal answers is below merging.min_answer_agreement "
            f"{bounds.min_answer_agreement:.2%}"
        )
    return broken
