"""Tokenised examples in, a page out that shows which tokens are trained."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from tasks.data.records import Record
from tasks.output.escaping import fence, markdown_code
from tasks.output.personal_data import hidden
from tasks.prompts import IGNORED, Example

SHOWN = 8
STYLE = """
body{font:15px/1.6 system-ui,"Noto Sans CJK SC",sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
body{color:#1d232a;background:#fff}h1{font-size:1.4rem}
article{margin:1.2rem 0;padding:.8rem 1rem;border:1px solid #d8dee4;border-radius:8px}
article{white-space:pre-wrap;overflow-wrap:anywhere}
header{color:#667;font-size:.85rem;margin-bottom:.4rem;white-space:normal}
mark{background:#c8f0d2;color:inherit;border-radius:3px;padding:0 1px}
@media(prefers-color-scheme:dark){body{background:#14181d;color:#d6dde5}article{border-color:#333c46}
mark{background:#1f5a33}header{color:#93a1b0}}
"""
Decode = Callable[[list[int]], str]
Examples = Sequence[tuple[Record, Example]]


def chosen(examples: Examples) -> list[tuple[Record, Example]]:
    """The examples worth a look: the shortest, the longest, cut ones, then the first."""
    by_length = sorted(examples, key=lambda pair: len(pair[1].input_ids))
    cut = [pair for pair in examples if pair[1].truncated]
    wanted = [*by_length[:1], *by_length[-1:], *cut[:2], *examples]
    seen = dict.fromkeys(record.id for record, _ in wanted)
    by_id = {record.id: (record, example) for record, example in wanted}
    return [by_id[name] for name in list(seen)[:SHOWN]]


def runs(example: Example, decode: Decode) -> list[tuple[bool, str]]:
    """The text of an example in runs of trained and untrained tokens, personal data replaced."""
    pairs = zip(example.input_ids, example.labels, strict=True)
    grouped = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return [(trained, hidden(decode([token for token, _ in run]))) for trained, run in grouped]


def html(examples: Examples, decode: Decode, summary: str) -> str:
    """A self-contained page: each example's text, the trained tokens marked."""
    articles = []
    for record, example in chosen(examples):
        head = f"{record.source} · {len(example.input_ids)} tokens, {example.trained_tokens} trained"
        head += " · cut" if example.truncated else ""
        text = "".join(
            f"<mark>{escape(part)}</mark>" if trained else escape(part) for trained, part in runs(example, decode)
        )
        articles.append(f"<article><header>{escape(head)}</header>{text}</article>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>What is trained</title><style>{STYLE}</style>'
        f"<h1>What is trained</h1><p>{escape(summary)} The <mark>marked</mark> tokens carry a label: the answers and "
        f"their stop tokens, nothing else.</p>{''.join(articles)}</html>"
    )


def markdown(examples: Examples, decode: Decode, summary: str) -> str:
    """The same for a run page: the trained text of the first examples in bold."""
    lines = [f"## What is trained\n\n{summary} Trained text stands in ⟦brackets⟧."]
    for record, example in chosen(examples)[:3]:
        text = "".join(f"⟦{part}⟧" if trained else part for trained, part in runs(example, decode))
        lines.append(f"{markdown_code(record.source)}\n\n{fence(text)}")
    return "\n\n".join(lines) + "\n"
