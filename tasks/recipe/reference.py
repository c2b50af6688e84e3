"""The recipe's models in, a table of every key out: default, what is allowed, meaning; kept in docs/recipe.md.

Run it as `python -m tasks.recipe.reference` after tasks/recipe/stages.py has changed.
"""

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tasks.project import ROOT
from tasks.recipe.stages import Recipe

TARGET = ROOT / "docs" / "recipe.md"
BEGIN, END = "<!-- keys:begin, written by python -m tasks.recipe.reference -->\n", "<!-- keys:end -->\n"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def with_tables(page: str) -> str:
    """The page with its tables written anew; what stands outside the two marks stays."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{recipe_tables()}\n{END}{after}"


def recipe_tables() -> str:
    """A Markdown table for each part of a recipe, the keys in the order of the models."""
    return "\n\n".join(_table(title, model) for title, model in _parts("", Recipe)) + "\n"


def _parts(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model, then those inside it; the members of a union are told apart by their `type`."""
    yield path or "The top", model
    for name, field in model.model_fields.items():
        inside = f"{path}.{name}".strip(".")
        members = _members(field.annotation)
        for member in members:
            kind = member.model_fields["type"].default if len(members) > 1 else ""
            yield from _parts(f"{inside}, type {kind}" if kind else inside, member)


def _members(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _members(argument)]


def _table(title: str, model: type[BaseModel]) -> str:
    rows = [f"| `{name}` | {_default(field)} | {_meaning(field)} |" for name, field in model.model_fields.items()]
    return "\n".join([f"### {title}", "", "| key | default | meaning |", "| --- | --- | --- |", *rows])


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, BaseModel):
        kind = getattr(value, "type", "")
        return f"type `{kind}`" if kind else "below"
    return "**needed**" if field.is_required() else f"`{json.dumps(value, ensure_ascii=False)}`"


def _meaning(field: FieldInfo) -> str:
    """The description, then what is allowed where the type alone does not say it."""
    # What the run form says of a union's tag is about its tabs.
    fixed = isinstance(field.json_schema_extra, dict) and "enum" in field.json_schema_extra
    words = ["Selects this method." if fixed else " ".join((field.description or "").split())]
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        words.append(f"One of {', '.join(f'`{member.value}`' for member in annotation)}.")
    limits = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in BOUNDS.items()
        if hasattr(rule, name)
    ]
    if limits:
        words.append(f"({', '.join(limits)})")
    return " ".join(words).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    TARGET.write_text(with_tables(TARGET.read_text("utf-8")), "utf-8")
