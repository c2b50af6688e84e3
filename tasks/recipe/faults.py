"""One fault of a recipe as one line: a pydantic error in; where, key, what was found and what is allowed out."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from tasks.output.escaping import listed, shortened
from tasks.recipe.stages import Recipe

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (quote it)",
    "list_type": "a list, for example [a, b]",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def describe(error: Mapping[str, Any], data: Any, where: Callable[[tuple[str | int, ...]], str]) -> str:
    """`recipes/x.yaml:12: training.method.lora.rnk: found 8; no such key; did you mean 'rank'? allowed: type, rank`.

    `error` is one of a ValidationError's `errors()`, `data` what was validated; `where` gives a key's file and line.
    """
    location = tuple(error["loc"])
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        location = (*location, "type")
    name = listed([".".join(map(str, location))]) or "recipe"
    return f"{where(_written(location, data))}: {name}: {_finding(error, location)}"


def _written(location: Sequence[str | int], data: Any) -> tuple[str | int, ...]:
    """The keys as they are written: a union's tag, which pydantic puts into the location, is not in the file."""
    place: list[str | int] = []
    for position, step in enumerate(location):
        inside = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if inside:
            data = data[step]
        elif position < len(location) - 1:
            continue
        place.append(step)
    return tuple(place)


def _finding(error: Mapping[str, Any], location: Sequence[str | int]) -> str:
    found, context, kind = error["input"], error.get("ctx", {}), error["type"]
    if kind == "extra_forbidden":
        allowed = list(_model_at(location[:-1]).model_fields)
        near = _nearest(str(location[-1]), allowed)
        return f"found {shortened(found)}; no such key; {near}allowed: {', '.join(allowed)}"
    if kind == "missing":
        field = _model_at(location[:-1]).model_fields[str(location[-1])]
        return f"found nothing; this key is needed: {field.description}"
    if kind == "union_tag_not_found":
        return f"found nothing; say which kind; allowed: {', '.join(_tags(location[:-1]))}"
    if kind == "union_tag_invalid":
        tags = _quoted(context["expected_tags"])
        return f"found {shortened(context['tag'])}; {_nearest(context['tag'], tags)}allowed: {', '.join(tags)}"
    if kind in ("enum", "literal_error"):
        values = _quoted(context["expected"])
        return f"found {shortened(found)}; {_nearest(str(found), values)}allowed: {', '.join(values)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"found {shortened(found)}; allowed: a mapping with keys {', '.join(_keys_at(location))}"
    if kind in _BOUNDS:
        return f"found {shortened(found)}; allowed: {_range(location, kind, context)}"
    if kind in _KINDS:
        return f"found {shortened(found)}; allowed: {_KINDS[kind]}"
    if kind == "string_pattern_mismatch":
        return f"found {shortened(found)}; allowed: text that matches {context['pattern']}"
    if kind in ("too_short", "string_too_short"):
        return f"found {shortened(found)}; allowed: at least {context['min_length']} long"
    if kind == "value_error":
        return str(context["error"])
    return f"found {shortened(found)}; {error['msg']}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _nearest(name: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def _range(location: Sequence[str | int], kind: str, context: Mapping[str, Any]) -> str:
    """Both bounds of a number, where the field has both."""
    limits: dict[str, Any] = {_BOUNDS[kind][0]: context[_BOUNDS[kind][0]]}
    for rule in _model_at(location[:-1]).model_fields[str(location[-1])].metadata:
        limits |= {short: getattr(rule, short) for short, _ in _BOUNDS.values() if hasattr(rule, short)}
    return " and ".join(f"{words} {limits[short]}" for short, words in _BOUNDS.values() if short in limits)


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation may hold: itself, or the members of a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    return [model for argument in get_args(annotation) for model in _members(argument)]


def _model_at(location: Sequence[str | int]) -> type[BaseModel]:
    """The recipe model whose fields are the keys at a location."""
    return _models_at(location)[0]


def _models_at(location: Sequence[str | int]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [Recipe]
    for step in location:
        if isinstance(step, int):
            continue
        tagged = [model for model in models if _tag(model) == step]
        fields = [model.model_fields[step] for model in models if step in model.model_fields]
        models = tagged or [member for field in fields for member in _members(field.annotation)]
    return models or [Recipe]


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    value = field.default if field else None
    return value.value if isinstance(value, Enum) else value


def _tags(location: Sequence[str | int]) -> list[str]:
    return [str(_tag(model)) for model in _models_at(location)]


def _keys_at(location: Sequence[str | int]) -> list[str]:
    return list(dict.fromkeys(key for model in _models_at(location) for key in model.model_fields))
