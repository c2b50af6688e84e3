"""YAML that a person wrote in, plain values with the line of each key out: bounded in size, depth and number of values.

Recipes, policies and the values of `--set` are read here. Anchors and aliases are refused, and with them merge keys:
a few lines of aliases stand for more values than a machine can hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import InvalidRecipe
from tasks.output.escaping import printable, shortened

LARGEST = 1 << 20
"""Bytes of a file."""
DEEPEST = 32
MOST_VALUES = 20_000
LONGEST_NUMBER = 40
"""Digits; longer ones overflow what a recipe's numbers become."""
Key = tuple[str | int, ...]

_SURROGATE = re.compile("[\ud800-\udfff]")
_MERGE = "tag:yaml.org,2002:merge"


class InvalidYaml(InvalidRecipe):
    """A text that is not YAML, or YAML that is not read; `line` counts from 1 and is 0 where it is unknown."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.line = line


@dataclass
class YamlText:
    """The values of a text, the line of each key, and the keys that are there twice."""

    values: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    repeated: list[tuple[Key, int, int]] = field(default_factory=list)
    """Key, its line, and the line where it stood first."""


def text_of(path: Path) -> str:
    """The text of a YAML file. Raises InvalidYaml for a file that is large or not UTF-8, and OSError."""
    with path.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise InvalidYaml(f"the file has more than {LARGEST >> 20} MB; a file of settings has a few kilobytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content[: fault.start].count(b"\n") + 1
        raise InvalidYaml(f"byte {fault.start} is not UTF-8; save the file as UTF-8", line) from None


def parse(text: str) -> YamlText:
    """The one document of a text. Raises InvalidYaml with the line."""
    document = YamlText()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.lines[()] = _line(node)
            document.values = _value(loader, node, (), document)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        problem = printable(str(fault.problem or fault.context))
        raise InvalidYaml(f"not YAML: {problem[:200]}", mark.line + 1 if mark else 0) from None
    except yaml.reader.ReaderError as fault:
        line = text[: fault.position].count("\n") + 1
        raise InvalidYaml(f"not YAML: character U+{fault.character:04X} is not allowed", line) from None
    return document


class _Loader(yaml.SafeLoader):
    """Composes nodes within the bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InvalidYaml("anchors and aliases (&name, *name, <<) are not read; write the values out", line)
        self._values += 1
        self._depth += 1
        if self._values > MOST_VALUES:
            raise InvalidYaml(f"more than {MOST_VALUES:,} values; name folders or globs instead of single files", line)
        if self._depth > DEEPEST:
            raise InvalidYaml(f"nested deeper than {DEEPEST} levels", line)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _value(loader: yaml.SafeLoader, node: yaml.Node, key: Key, document: YamlText) -> Any:
    if isinstance(node, yaml.MappingNode):
        return dict(_items(loader, node, key, document))
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            document.lines[(*key, index)] = _line(child)
            items.append(_value(loader, child, (*key, index), document))
        return items
    return _scalar(loader, node)


def _items(loader: yaml.SafeLoader, node: yaml.MappingNode, key: Key, document: YamlText) -> Iterator[tuple[str, Any]]:
    for key_node, value_node in node.value:
        line = _line(key_node)
        if key_node.tag == _MERGE:
            raise InvalidYaml("merge keys (<<) are not read; write the values out", line)
        if not isinstance(key_node, yaml.ScalarNode):
            raise InvalidYaml("a key is one word, not a list or a mapping", line)
        name = str(_scalar(loader, key_node))
        inner = (*key, name)
        if inner in document.lines:
            document.repeated.append((inner, line, document.lines[inner]))
        else:
            document.lines[inner] = line
        yield name, _value(loader, value_node, inner, document)


def _scalar(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """A single value. What only looks like a number or a date is refused, and half a character."""
    if len(node.value) > LONGEST_NUMBER and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        raise InvalidYaml(f"a number of {len(node.value):,} characters; at most {LONGEST_NUMBER}", _line(node))
    try:
        value = loader.construct_object(node)
    except (ValueError, OverflowError, LookupError, AttributeError) as fault:
        # A date without a day has no match to take apart, which is an AttributeError.
        kind = node.tag.rpartition(":")[2]
        reason = "" if isinstance(fault, AttributeError) else f" ({printable(str(fault))[:100]})"
        raise InvalidYaml(f"found {shortened(node.value)}, which is no {kind}{reason}; quote it", _line(node)) from None
    if isinstance(value, str) and _SURROGATE.search(value):
        raise InvalidYaml(f"found {shortened(value)}: half a character (U+D800 to U+DFFF)", _line(node))
    return value
