"""An adapter and its base in, a merged model and its measured parity out.

An adapter that was trained on a quantised base can be folded by more than one rule, and which one keeps its answers is
measured, not assumed: each merge is asked what base plus adapter was asked, and the best that can be saved is kept.
"""

import gc
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
from tasks.modeling.loading import load_model, with_adapter
from tasks.modeling.origin import origin_of
from tasks.modeling.quantisation import dequantised
from tasks.progress import Advance, silent
from tasks.recipe import MergingRecipe


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

    def load(self) -> Any:
        """Base plus adapter as it was trained, on a base quantised as it was."""
        return load_model(self.base, self.weights, self.base_digest, self.trust_remote_code)

    def load_for(self, rule: MergeRule) -> Any:
        """Base plus adapter with the base that a rule folds it into."""
        if rule == "requantised":
            return self.load()
        if rule == "dequantised":
            base = dequantised(self.load().unload())
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

    def answers(self, model: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Greedy answers, and the whole sequences of prompt and answer."""
        return answers_and_sequences(
            model, self.prompts, self.stop_ids, self.max_new_tokens, self.batch_size, self.advance
        )


def merge_best(
    adapter: BoundAdapter, questions: Questions, bounds: MergingRecipe, folder: Path
) -> tuple[list[MergeCandidate], float]:
    """Fold an adapter by every rule, measure each, and leave the best that can be saved in `folder`.

    Gives the candidates, the saved one first, and the score of base plus adapter. A candidate that can be saved is
    measured as loaded again from its files; one model is held at a time. Raises WorkRefused where the best breaks a
    bound.
    """
    model = adapter.load()
    answers, sequences = questions.answers(model)
    expected = list(distributions(model, questions.prompts, sequences))
    best: MergeCandidate | None = None
    others = []
    for rule in adapter.rules:
        if adapter.quantised:
            del model
            gc.collect()
            model = adapter.load_for(rule)
        place = folder.with_name(f"{folder.name}-{rule}")
        model = _folded(model)
        if rule != "requantised":
            write(model, adapter.weights, place)
            del model
            gc.collect()
            model = load_model(place, None, "", adapter.trust_remote_code)
        given, _ = questions.answers(model)
        parity = measure(expected, distributions(model, questions.prompts, sequences), answers, given)
        candidate = MergeCandidate(rule=rule, parity=parity, score=questions.score(given))
        if rule == "requantised" or (best and not nearer(candidate, best)):
            others.append(candidate)
            shutil.rmtree(place, ignore_errors=True)
            continue
        if best:
            others.append(best)
            shutil.rmtree(folder)
        best = candidate
        place.rename(folder)
    assert best is not None
    check(best.parity, bounds, best.rule)
    others.sort(key=lambda each: each.parity.mean_kl)
    return [best.model_copy(update={"saved": True}), *others], questions.score(answers)


def _folded(model: Any) -> Any:
    with warnings.catch_warnings():
        # That rounding changes answers is what is measured here.
        warnings.filterwarnings("ignore", message="Merge lora module to")
        return model.merge_and_unload(safe_merge=True)


def nearer(one: MergeCandidate, other: MergeCandidate) -> bool:
    """By mean KL, then by equal answers; what is not a number is far."""
    first, second = one.parity, other.parity
    if math.isnan(first.mean_kl) or math.isnan(second.mean_kl):
        return not math.isnan(first.mean_kl)
    return (first.mean_kl, -first.answer_agreement) < (second.mean_kl, -second.answer_agreement)


def write(merged: Any, tokenizer_folder: Path, folder: Path) -> None:
    """Write a merged model as transformers loads it by itself.

    The folder holds safetensors, config, generation config, tokenizer and chat template, and the adapter's origin.
    """
    from transformers import AutoTokenizer

    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    origin = tokenizer_folder / "origin.json"
    if origin.exists():
        shutil.copy(origin, folder / "origin.json")


def answers_and_sequences(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    batch_size: int,
    advance: Advance = silent,
) -> tuple[list[list[int]], list[list[int]]]:
    """Greedy answers, and the whole sequences (prompt and answer) the parity is measured on."""
    answers = generate(model, prompts, stop_ids, max_new_tokens, batch_size, advance)
    return [answer.token_ids for answer in answers], [
        [*prompt, *answer.token_ids] for prompt, answer in zip(prompts, answers, strict=True)
    ]


def log_probabilities(model: Any, sequence: Sequence[int], start: int) -> torch.Tensor:
    """Log probabilities of the next token from position `start` on: (tokens, vocabulary), fp64, on the CPU."""
    ids = torch.tensor([list(sequence)], device=model.device)
    keep = torch.arange(start, len(sequence), device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0]
    return logits.double().log_softmax(-1).cpu()


def distributions(
    model: Any, prompts: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]]
) -> Iterator[torch.Tensor]:
    """The log probabilities of each sequence from its prompt's last token on, one after the other: each is large."""
    for prompt, sequence in zip(prompts, sequences, strict=True):
        yield log_probabilities(model, sequence, len(prompt) - 1)


def measure(
    reference: Iterable[torch.Tensor],
    other: Iterable[torch.Tensor],
    reference_answers: Sequence[Sequence[int]],
    other_answers: Sequence[Sequence[int]],
) -> Parity:
    """Compare two models' next-token distributions on the same sequences, and their greedy answers.

    KL is from reference to other, in nats, at each position.
    """
    parts, equal = [], []
    for one, two in zip(reference, other, strict=True):
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


def check(parity: Parity, bounds: MergingRecipe, rule: str = "full_precision") -> None:
    """Raise WorkRefused with every bound that a merge breaks."""
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
    if broken:
        raise WorkRefused(
            f"merge: the merged model (best rule: {rule}) answers differently from base plus adapter: "
            f"{'; '.join(broken)}. Nothing was registered; the trained adapter is kept."
        )
