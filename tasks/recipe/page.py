"""A recipe as a page to read and copy: a Recipe in, YAML with every default and what each key means out."""

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tasks.recipe.stages import Recipe


def recipe_page(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back to an equal recipe; each key's description stands above it."""
    return "\n".join(_lines(recipe, "")) + "\n"


def _lines(stage: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(stage).model_fields.items():
        value = getattr(stage, name)
        yield f"{indent}# {_meaning(field)}"
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _meaning(field: FieldInfo) -> str:
    text = " ".join((field.description or field.title or "").split())
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        text = f"{text} One of: {', '.join(member.value for member in annotation)}."
    return text


def _scalar(value: Any) -> str:
    """A value on one line, as YAML."""
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, str):
        # A text that YAML would read as something else, or that has line breaks, is quoted as JSON, which YAML reads.
        plain = value and value.isprintable() and yaml.safe_dump(value, allow_unicode=True).strip("\n. ") == value
        return value if plain and "," not in value else json.dumps(value, ensure_ascii=False)
    return yaml.safe_dump(value).split("\n")[0]
