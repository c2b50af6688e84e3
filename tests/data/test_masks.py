"""The page of what is trained: personal data replaced, texts of records kept inside their block."""

from pathlib import Path

from transformers import AutoTokenizer

from tasks.data import masks
from tasks.data.records import Message, Record
from tasks.data.tokenisation import tokenise
from tasks.prompts import PromptRenderer
from tasks.recipe.stages import PromptRecipe

EVIL = "\n```\n# PROMOTED\n![x](http://example.com/x.png)\n~~~\n`````\n"


def examples(base: Path):
    texts = [f"Call 13812345678 or ann@example.org {number}{EVIL}" for number in range(3)]
    records = [
        Record.of(
            (Message(role="user", content=text), Message(role="assistant", content=f"I called 138-1234-5678. {EVIL}")),
            f"a`b|{number}.jsonl:1",
        )
        for number, text in enumerate(texts)
    ]
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(base), PromptRecipe(max_length=2000))
    return list(tokenise(records, renderer)), renderer.tokenizer.decode


def test_both_pages_have_placeholders_for_personal_data(tiny_base):
    pairs, decode = examples(tiny_base)
    for page in (masks.html(pairs, decode, "3 examples."), masks.markdown(pairs, decode, "3 examples.")):
        assert "example.org" not in page.replace("example.org/x", "") and "5678" not in page
        assert page.count("mobile") == 6


def test_a_record_cannot_leave_its_block_of_code(tiny_base):
    from markdown_it import MarkdownIt

    pairs, decode = examples(tiny_base)
    blocks = MarkdownIt("commonmark").parse(masks.markdown(pairs, decode, "3 examples."))
    assert [block.type for block in blocks if block.type == "fence"] == ["fence"] * 3
    headings = [blocks[place + 1].content for place, block in enumerate(blocks) if block.type == "heading_open"]
    assert headings == ["What is trained"]
    pieces = {piece.type for block in blocks for piece in block.children or ()}
    assert "image" not in pieces and "code_inline" in pieces
