"""Texts of unknown origin on terminals, in Markdown and in messages."""

import io
import json
import logging
import re

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tasks.errors import InvalidData
from tasks.output.escaping import fence, listed, markdown_code, markdown_text, printable, shortened
from tasks.output.terminal import SafeFormatter, console, say

ATTACK = "name\x1b]0;title\x07\x1b]52;c;Y2xpcA==\x07\x1b[2J\x9b31m \u202eturned\u2066 end"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def shown(renderable: object, width: int = 60) -> str:
    screen = console(file=io.StringIO(), width=width, force_terminal=False)
    screen.print(renderable)
    return screen.file.getvalue()


def as_table() -> Table:
    table = Table(title=ATTACK)
    table.add_column(ATTACK)
    table.add_column(Text("head" + ATTACK))
    table.add_row(ATTACK, Text(ATTACK, style="bold"))
    return table


@pytest.mark.parametrize(
    "renderable", [ATTACK, Text(ATTACK), Panel(Text(ATTACK), title=ATTACK), as_table(), f"[bold]{ATTACK}[/]"]
)
def test_no_escape_of_a_text_reaches_the_terminal_whatever_holds_it(renderable):
    page = shown(renderable)
    assert not UNSAFE.search(page)
    assert "\\u001b" in page and "\\u202e" in page


def test_the_consoles_own_styles_still_work():
    screen = console(file=io.StringIO(), force_terminal=True, width=40, color_system="standard")
    screen.print("[bold red]loud[/] \x1b[2J")
    assert "\x1b[1;31mloud\x1b[0m" in screen.file.getvalue()
    assert "\x1b[2J" not in screen.file.getvalue()


def test_a_text_with_escapes_is_broken_into_lines_as_it_is_shown_so_that_nothing_is_cut_off():
    page = shown(Panel(Text("\x1b[31m" * 12 + " the last word")), width=30)
    assert "the last word" in " ".join(page.replace("│", " ").split())


def test_an_escaped_json_line_means_what_it_meant(capsys):
    say(json.dumps({"tag": ATTACK}, ensure_ascii=False))
    line = capsys.readouterr().out
    assert not UNSAFE.search(line)
    assert json.loads(line) == {"tag": ATTACK}


def test_a_log_line_and_an_error_hold_no_escapes_and_keep_their_lines():
    record = logging.LogRecord("tuneline", logging.INFO, "", 0, "one\ntwo %s", (ATTACK,), None)
    line = SafeFormatter("%(message)s").format(record)
    assert line.startswith("one\ntwo name\\u001b") and not UNSAFE.search(line)
    assert str(InvalidData(f"a\n{ATTACK}")) == printable(f"a\n{ATTACK}")


MARKDOWN = [
    "![beacon](http://example.com/x.png)",
    "[link](http://example.com)",
    "[link][ref]",
    "<img src=http://example.com/x.png>",
    "<!-- hidden",
    "**loud** _soft_ ~~gone~~ `code`",
    "a | b",
    "# PROMOTED",
    "> quote",
    "line\n\n# PROMOTED",
    "&lt;script&gt;",
]


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_of_a_text_shows_the_text_and_nothing_else(text):
    tokens = rendered(markdown_text(text))
    assert {kind for kind, _ in tokens} <= {"text"}
    assert "".join(content for _, content in tokens) == " ".join(text.split())


@pytest.mark.parametrize("text", [*MARKDOWN, "`", "``a``", "a`b", "end``"])
def test_inline_code_holds_any_text(text):
    tokens = rendered(markdown_code(text))
    assert tokens == [("code_inline", " ".join(text.split()))]


@pytest.mark.parametrize("text", ["plain", "a\n```\n# PROMOTED\n```\n", "`````", "~~~\n# x", "````text\n"])
def test_a_fence_holds_any_text(text):
    blocks = parser().parse(fence(text))
    assert [block.type for block in blocks] == ["fence"]
    assert blocks[0].content == f"{text}\n"


def parser():
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["strikethrough", "table"])


def rendered(markdown: str) -> list[tuple[str, str]]:
    """Kinds and contents of the pieces of one paragraph."""
    blocks = parser().parse(f"x {markdown}")
    assert [block.type for block in blocks] == ["paragraph_open", "inline", "paragraph_close"]
    assert parser().parse(markdown)[0].type == "paragraph_open"
    pieces = [(piece.type, piece.content) for piece in blocks[1].children]
    pieces[0] = (pieces[0][0], pieces[0][1].removeprefix("x "))
    return [(kind.replace("text_special", "text"), content) for kind, content in pieces if content]


def test_names_in_a_message_are_few_and_short():
    said = listed([f"c{number}" for number in range(10_000)])
    assert said.startswith("c0, c1, ") and said.endswith("c19 and 9,980 more")
    assert len(listed(["x" * 10_000])) <= 60
    assert "\x1b" not in listed([ATTACK])


def test_a_value_in_a_message_is_short_and_never_fails():
    assert shortened("a" * 5000) == "'" + "a" * 56 + "..."
    assert shortened(10**5000) == "a very large int"
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert shortened(deep) == "a very large list"
