"""Read a recipe: a YAML file and overrides in, a checked Recipe out, or every fault of it in one message."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from tasks.errors import InvalidRecipe
from tasks.output.escaping import listed, shortened
from tasks.recipe.faults import describe
from tasks.recipe.stages import Recipe
from tasks.recipe.yaml_text import InvalidYaml, Key, parse, text_of


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, with `key.key=value` overrides applied.

    Sources and policy files named inside are relative to the working folder, not to the recipe.
    Raises InvalidRecipe with one line a fault: where, which key, what was found, what is allowed.
    """
    return _checked(_Source.read(Path(path)), overrides)


def build_recipe(values: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of values that came from the command line, with overrides applied; raises as `load_recipe` does."""
    return _checked(_Source(Path("command line"), values), overrides)


def _checked(source: "_Source", overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        source.override(override)
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as invalid:
        source.faults += [describe(error, source.data, source.where) for error in invalid.errors(include_url=False)]
    if source.faults:
        raise InvalidRecipe("\n".join(sorted(source.faults, key=_line)))
    return recipe


class _Source:
    """A recipe's values with the place each came from, and the faults found so far."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data
        self.faults: list[str] = []
        self.origins: dict[Key, str] = {(): str(path)}

    def where(self, place: Key) -> str:
        """File and line, or option, of a key; of the nearest key around it where it was not written."""
        while place not in self.origins:
            place = place[:-1]
        return self.origins[place]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The values of a YAML file; raises InvalidRecipe where it is not one mapping."""
        try:
            document = parse(text_of(path))
        except InvalidYaml as fault:
            raise InvalidRecipe(f"{path}{f':{fault.line}' if fault.line else ''}: {fault}") from None
        except OSError as fault:
            raise InvalidRecipe(_unreadable(path, fault)) from None
        if document.values is None:
            raise InvalidRecipe(f"{path}: the file is empty; {_SMALLEST}")
        if not isinstance(document.values, dict):
            raise InvalidRecipe(
                f"{path}:1: found {shortened(document.values)}; a recipe is a mapping of keys; {_SMALLEST}"
            )
        data = document.values
        # Written out, so that `--set base.revision=...` finds a mapping.
        source = cls(path, data | ({"base": {"model": data["base"]}} if isinstance(data.get("base"), str) else {}))
        source.origins |= {key: f"{path}:{line}" for key, line in document.lines.items()}
        for key, line, first in document.repeated:
            name = ".".join(map(str, key))
            source.faults.append(f"{path}:{line}: {name}: found twice, first on line {first}; keep one")
        return source

    def override(self, text: str) -> None:
        """Put `key.key=value` over what the file says; the value is YAML."""
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        option = f"--set {_cut(text)}"
        if not equals or not all(keys):
            self.faults.append(f"{option}: found no key=value; write for example --set training.max_steps=5")
            return
        try:
            document = parse(value)
        except InvalidYaml as fault:
            self.faults.append(f"{option}: {fault}")
            return
        for repeated, *_ in document.repeated:
            self.faults.append(f"{option}: {'.'.join(map(str, (*keys, *repeated)))}: found twice; keep one")
        inside = self.data
        for depth, key in enumerate(keys[:-1], start=1):
            values = inside.setdefault(key, {})
            if not isinstance(values, dict):
                around = ".".join(keys[:depth])
                self.faults.append(
                    f"{option}: {around} is {shortened(values)} and has no keys; set {around} as a whole"
                )
                return
            self.origins.setdefault(tuple(keys[:depth]), option)
            inside = values
        inside[keys[-1]] = document.values
        place = tuple(keys)
        # Lines of what was there before would be wrong for what stands there now.
        self.origins = {known: line for known, line in self.origins.items() if known[: len(place)] != place}
        self.origins[place] = option


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_OPTION else f"{text[: LONGEST_OPTION - 1]}…"


def _line(fault: str) -> tuple[bool, int]:
    """From the top of the file to its end, then the options."""
    line = re.match(r".*?:(\d+): ", fault)
    return fault.startswith("--set"), int(line[1]) if line else 0


LONGEST_OPTION = 200
"""Characters of an option that a message repeats."""
_SMALLEST = "the smallest one has 'name' and 'data: {train: [FILE]}'"


def _unreadable(path: Path, fault: OSError) -> str:
    near = sorted(str(other) for other in path.parent.glob("*.yaml")) if len(path.name) < 256 else []
    there = f"there are {listed(near)}" if near else f"no recipe lies in {path.parent}"
    return f"{_cut(str(path))}: {(fault.strerror or 'unreadable').lower()}; {there}"
