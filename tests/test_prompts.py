from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tasks.errors import InvalidRecipe
from tasks.prompts import IGNORED, PromptRenderer
from tasks.recipe.stages import PromptRecipe, PromptTemplate

ASK = {"role": "user", "content": "What colour is the sky?\n\nAt noon.", "instruction": "What colour is the sky?"}
ASK["input"] = "At noon."
ANSWER = {"role": "assistant", "content": "blue"}


def renderer(base: Path, **recipe: Any) -> PromptRenderer:
    return PromptRenderer(AutoTokenizer.from_pretrained(base), PromptRecipe(**recipe))


def trained(made: PromptRenderer, messages: list[dict[str, str]]) -> str:
    return str(made.tokenizer.decode([label for label in made.example(messages).labels if label != IGNORED]))


@pytest.mark.parametrize("template", ["chat", "guide"])
def test_only_the_answer_and_its_stop_token_are_trained(tiny_base: Path, template: str) -> None:
    assert trained(renderer(tiny_base, template=template), [ASK, ANSWER]) == "blue<|end|>"


@pytest.mark.parametrize("template", ["chat", "guide"])
def test_an_example_begins_with_the_very_prompt_that_generation_sees(tiny_base: Path, template: str) -> None:
    made = renderer(tiny_base, template=template)
    prompt, example = made.prompt_ids([ASK]), made.example([ASK, ANSWER])
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)


def test_the_guides_template_reads_as_it_is_taught(tiny_base: Path) -> None:
    made = renderer(tiny_base, template="guide")
    assert made.text([ASK], answer_follows=True) == "指令：What colour is the sky?\n输入：At noon.\n输出："
    assert made.text([{**ASK, "input": ""}], answer_follows=True) == "指令：What colour is the sky?\n输出："


def test_every_answer_of_a_conversation_is_trained(tiny_base: Path) -> None:
    turns = [ASK, ANSWER, {"role": "user", "content": "And grass?"}, {"role": "assistant", "content": "green"}]
    made = renderer(tiny_base)
    assert trained(made, turns) == "blue<|end|>green<|end|>"
    assert made.tokenizer.decode(made.example(turns).input_ids) == made.text(turns, answer_follows=False)


def test_a_recipes_system_message_comes_first_unless_the_record_has_one(tiny_base: Path) -> None:
    made = renderer(tiny_base, system="Be brief.")
    assert made.text([ASK], True).startswith("<|system|>\nBe brief.<|end|>")
    own = {"role": "system", "content": "Be long."}
    assert "Be brief." not in made.text([own, ASK], True)


def test_a_cut_answer_is_reported(tiny_base: Path) -> None:
    whole = renderer(tiny_base).example([ASK, ANSWER])
    length = len(whole.input_ids) - 3
    cut = renderer(tiny_base, max_length=length).example([ASK, ANSWER])
    assert (whole.truncated, cut.truncated) == (False, True)
    assert len(cut.input_ids) == len(cut.labels) == length


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "the answer"),
        ("{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}", "differently"),
        ("{{ raise_exception('no') }}", "cannot print"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(tiny_base: Path, template: str, words: str) -> None:
    made = renderer(tiny_base, template=PromptTemplate.custom, custom_template=template)
    with pytest.raises(InvalidRecipe, match=words):
        made.example([ASK, ANSWER])


def test_a_template_without_a_stop_token_gets_one(tiny_base: Path) -> None:
    text = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% endif %}"
    made = renderer(tiny_base, template="custom", custom_template=text)
    assert trained(made, [ASK, ANSWER]) == "blue\n<|end|>"


def test_a_tokenizer_without_a_template_is_refused_with_what_to_do(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    with pytest.raises(InvalidRecipe, match="'guide', or 'custom'"):
        PromptRenderer(tokenizer, PromptRecipe())


def test_the_template_travels_with_the_saved_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    made = renderer(tiny_base, template="guide")
    made.tokenizer.save_pretrained(tmp_path)
    assert renderer(tmp_path).prompt_ids([ASK]) == made.prompt_ids([ASK])


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for _ in range(10 ** 30) %}x{% endfor %}", "OverflowError"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
        ("{{ messages[99]['content'].x.y }}", "UndefinedError"),
        ("{{ '%d' | format('x') }}", "TypeError"),
        ("{{ 'x'.encode('no-such-codec') }}", "LookupError"),
        ("{{ messages | map(attribute='content') | sum }}", "TypeError"),
        ("{% include 'other' %}", "TypeError"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{% break %}", ""),
    ],
)
def test_a_template_that_fails_in_any_way_is_refused_with_the_way(tiny_base: Path, template: str, fault: str) -> None:
    made = renderer(tiny_base, template="custom", custom_template=template)
    with pytest.raises(InvalidRecipe, match=f"the chat template cannot print a conversation: {fault}"):
        made.example([ASK, ANSWER])
