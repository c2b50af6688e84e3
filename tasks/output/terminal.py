"""The one way to the terminal: what is printed cannot move the cursor, set the title or reach the clipboard.

Everything the command prints goes through `console` or `say`, and every log line through `SafeFormatter`; a test
refuses other ways.
"""

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from tasks.output.credentials import without_credentials
from tasks.output.escaping import printable


class SafeConsole(Console):
    """A console whose own styles work and whose texts hold no terminal escapes."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # A text is escaped before its lines are broken; what a frame draws by itself, such as a title, after.
        shown = _escaped(renderable) if isinstance(renderable, Text) else renderable
        for segment in super().render(shown, options):
            text = segment.text if segment.control else printable(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def _escaped(text: Text) -> Text:
    """A copy with its styles, escapes written out."""
    if printable(text.plain) == text.plain:
        return text
    ends = [end for position, character in enumerate(text.plain) if printable(character) != character
            for end in (position, position + 1)]  # fmt: skip
    copy = text.blank_copy()
    for part in text.divide(dict.fromkeys(ends)):
        part.plain = printable(part.plain)
        copy.append_text(part)
    return copy


def console(stderr: bool = False, **options: Any) -> Console:
    """A console for the command's own output, or for what is said beside it."""
    return SafeConsole(stderr=stderr, **options)


def say(text: str, newline: bool = True, stderr: bool = False) -> None:
    """Print a text for a machine or a pipe, as it is but for escapes; those are JSON's, so that JSON stays JSON."""
    import typer

    typer.echo(printable(text), nl=newline, err=stderr)


class SafeFormatter(logging.Formatter):
    """Formats log records and tracebacks without terminal escapes or credentials; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(without_credentials(super().format(record)))
