"""Text of unknown origin in, text that is safe to show out: for terminals, for Markdown, and names in a message."""

import re
from collections.abc import Iterable

LISTED = 20
LONGEST_NAME = 60

# Controls except tab and line feed, halves of surrogate pairs, and what changes the order or the end of a line.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
# A bracket alone is no link: only the end of its text, before an address, is escaped, so that intervals stay readable.
_MARKDOWN = re.compile(r"[\\`*|~]|<(?=[A-Za-z/!?])|\](?=[(\[:])|!(?=\[)|&(?=[\w#])|(?<!\w)_|_(?!\w)|^[#>+=-]")
_BACKTICKS = re.compile("`+")


def printable(text: str) -> str:
    r"""The text with an escape such as \u001b in the place of each character that a terminal obeys or cannot show.

    Tabs and line feeds stay. The escapes are those of JSON, so that a JSON text keeps its meaning.

    >>> printable("red: \x1b[31m, turned: \u202e")
    'red: \\u001b[31m, turned: \\u202e'
    """
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def shortened(value: object, longest: int = LONGEST_NAME) -> str:
    """A value as a message names it: its `repr`, on one line, cut where it is long.

    >>> shortened("a" * 99, longest=12)
    "'aaaaaaaa..."
    """
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):
        # Python writes no integer of more than 4,300 digits.
        return f"a very large {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def listed(names: Iterable[str], most: int = LISTED) -> str:
    """Names for a message: the first ones, each cut to a length that can be read, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    every = list(names)
    shown = [_name(name) for name in every[:most]]
    more = len(every) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _name(name: str) -> str:
    line = " ".join(printable(name[: LONGEST_NAME + 1]).split())
    return line if len(name) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def markdown_text(text: str) -> str:
    r"""Text as one line of Markdown that shows what it says: no heading, image, tag or emphasis, no link under a text.

    A page may still make links of addresses that are written out; they show where they lead.

    >>> markdown_text("![x](http://a) <b>")
    '\\![x\\](http://a) \\<b>'
    """
    return _MARKDOWN.sub(r"\\\g<0>", printable(" ".join(text.split())))


def markdown_code(text: str) -> str:
    """Text as one line of inline code, inside as many backticks as it takes.

    >>> markdown_code("a `b`")
    '`` a `b` ``'
    """
    line = printable(" ".join(text.split())) or " "
    marks = "`" * (_longest_run(line) + 1)
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{marks}{pad}{line}{pad}{marks}"


def markdown_row(cells: Iterable[str]) -> str:
    """One line of a table; the cells are Markdown already.

    >>> markdown_row(["a", "b"])
    '| a | b |'
    """
    return f"| {' | '.join(cells)} |"


def fence(text: str, language: str = "text") -> str:
    """Text as a block of code that it cannot leave: the fence is longer than any run of backticks in it.

    >>> fence("x", "text").splitlines()
    ['```text', 'x', '```']
    """
    marks = "`" * max(3, _longest_run(text) + 1)
    return f"{marks}{language}\n{printable(text)}\n{marks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in _BACKTICKS.findall(text)), default=0)
