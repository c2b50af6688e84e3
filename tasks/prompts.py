"""The only place a prompt is made: chat messages in, token ids and labels out.

Training, evaluation and serving agree token for token, because the template travels with the tokenizer and because
prompt and answer are tokenised apart: the prompt's ids are the same whether an answer follows or not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import InvalidRecipe
from tasks.files.model_files import json_object
from tasks.recipe.stages import PromptRecipe, PromptTemplate

Messages = Sequence[Mapping[str, str]]
IGNORED = -100
"""The label of a token that is not trained."""

GUIDE_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}指令：{{ message.get('instruction') or message['content'] }}\n"
    "{% if message.get('input') %}输入：{{ message['input'] }}\n{% endif %}"
    "{% elif message['role'] == 'assistant' %}输出：{{ message['content'] }}{{ eos_token }}\n"
    "{% else %}{{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}输出：{% endif %}"
)
"""指令/输入/输出, the form taught in Chinese fine-tuning guides, as a chat template that the tokenizer can carry."""


@dataclass(frozen=True)
class Example:
    """One tokenised record: two lists of equal length; `labels` is -100 where nothing is trained."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry a label."""
        return sum(label != IGNORED for label in self.labels)


class PromptRenderer:
    """Turns messages into token ids through the tokenizer's chat template.

    Raises InvalidRecipe when there is no template, when it does not print the answer, or when a conversation's
    beginning is printed differently once the conversation goes on.
    """

    def __init__(self, tokenizer: Any, recipe: PromptRecipe, stop_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        if recipe.template is PromptTemplate.guide:
            tokenizer.chat_template = GUIDE_TEMPLATE
        elif recipe.template is PromptTemplate.custom:
            tokenizer.chat_template = recipe.custom_template
        if not tokenizer.chat_template:
            raise InvalidRecipe(
                "prompt.template: this base model's tokenizer has no chat template; use 'guide', or 'custom' "
                "with a Jinja text."
            )
        if tokenizer.eos_token_id is None:
            raise InvalidRecipe(
                "base.model: the tokenizer has no end-of-sequence token, so a model could never learn to stop."
            )
        self.stop_ids = frozenset({tokenizer.eos_token_id, *stop_ids})

    def text(self, messages: Messages, answer_follows: bool) -> str:
        """The text of a conversation; with `answer_follows`, up to where the model goes on."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    self.with_system(messages), tokenize=False, add_generation_prompt=answer_follows
                )
            )
        except Exception as fault:
            # A template is a program: it may divide by zero, call itself or add a number to a text.
            reason = f"{type(fault).__name__}: {str(fault)[:300]}"
            raise InvalidRecipe(f"prompt: the chat template cannot print a conversation: {reason}.") from fault

    def with_system(self, messages: Messages) -> list[dict[str, str]]:
        """The messages, after the recipe's system message where they bring none."""
        turns = [dict(message) for message in messages]
        if self.recipe.system and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.recipe.system})
        return turns

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Token ids of a conversation that waits for an answer."""
        return self._ids(self.text(messages, answer_follows=True))

    def example(self, messages: Messages) -> Example:
        """Token ids and labels of a conversation: every answer and its stop token are trained, nothing else."""
        ids: list[int] = []
        labels: list[int] = []
        printed = ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.text(messages[:turn], True), self.text(messages[: turn + 1], False)
            if not (before.startswith(printed) and after.startswith(before)):
                raise InvalidRecipe(
                    "prompt: the chat template prints a conversation's beginning differently once it goes on."
                )
            if message["content"].strip() not in after[len(before) :]:
                raise InvalidRecipe("prompt: the chat template does not print the answer, so nothing could be trained.")
            context, answer = self._ids(before[len(printed) :]), self._answer_ids(after[len(before) :])
            stop = max(place for place, token in enumerate(answer) if token in self.stop_ids)
            ids += context + answer
            labels += [IGNORED] * len(context) + answer[: stop + 1] + [IGNORED] * (len(answer) - stop - 1)
            printed = after
        length = self.recipe.max_length
        return Example(ids[:length], labels[:length], truncated=any(label != IGNORED for label in labels[length:]))

    def _answer_ids(self, text: str) -> list[int]:
        ids = self._ids(text)
        return ids if any(token in self.stop_ids for token in ids) else [*ids, self.tokenizer.eos_token_id]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_ids(folder: Path) -> frozenset[int]:
    """The tokens that end an answer by a model folder's `generation_config.json` and `config.json`."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ends = json_object(folder / name).get("eos_token_id")
            if ends is not None:
                return _as_ids(ends)
    return frozenset()


def _as_ids(ends: int | list[int] | None) -> frozenset[int]:
    """Stop tokens as a set: transformers keeps none, one, or a list."""
    return frozenset(ends if isinstance(ends, list) else () if ends is None else (ends,))


def renderer_of(folder: Path, recipe: PromptRecipe, trust_remote_code: bool) -> PromptRenderer:
    """The renderer of a model folder's tokenizer; its template is the recipe's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return PromptRenderer(tokenizer, recipe, stop_ids(folder))
