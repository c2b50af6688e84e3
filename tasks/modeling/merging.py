"""An adapter and its base in, a merged model and its measured parity out."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.artifacts import Parity
from tasks.errors import WorkRefused
from tasks.modeling.generation import generate
from tasks.progress import Advance, silent
from tasks.recipe import MergingRecipe


def merge(model: Any, tokenizer_folder: Path, folder: Path) -> None:
    """Fold a PEFT model's adapter into its full-precision base and write what transformers loads by itself.

    The folder holds safetensors, config, generation config, tokenizer and chat template. `model` is changed: it is the
    merged model afterwards.
    """
    from transformers import AutoTokenizer

    merged = model.merge_and_unload(safe_merge=True)
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
) -> list[torch.Tensor]:
    """The log probabilities of each sequence from its prompt's last token on."""
    pairs = zip(prompts, sequences, strict=True)
    return [log_probabilities(model, sequence, len(prompt) - 1) for prompt, sequence in pairs]


def measure(
    reference: Sequence[torch.Tensor],
    other: Sequence[torch.Tensor],
    reference_answers: Sequence[Sequence[int]],
    other_answers: Sequence[Sequence[int]],
) -> Parity:
    """Compare two models' next-token distributions on the same sequences, and their greedy answers.

    KL is from reference to other, in nats, at each position.
    """
    divergences = torch.cat([(one.exp() * (one - two)).sum(-1) for one, two in zip(reference, other, strict=True)])
    agree = torch.cat([one.argmax(-1) == two.argmax(-1) for one, two in zip(reference, other, strict=True)])
    same = [list(one) == list(two) for one, two in zip(reference_answers, other_answers, strict=True)]
    return Parity(
        prompts=len(same),
        tokens=agree.numel(),
        mean_kl=max(0.0, float(divergences.mean())),
        max_kl=max(0.0, float(divergences.max())),
        top1_agreement=float(agree.float().mean()),
        answer_agreement=sum(same) / len(same),
    )


def check(parity: Parity, bounds: MergingRecipe) -> None:
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
            f"merge: the merged model answers differently from base plus adapter: {'; '.join(broken)}. "
            "Nothing was registered; the trained adapter is kept."
        )
