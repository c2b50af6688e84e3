"""Read a recipe: a YAML file and overrides in, a checked Recipe out, or every fault of it in one message."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError

from tasks.errors import InvalidRecipe
from tasks.recipe import Recipe
from tasks.recipe_faults import describe

Place = tuple[str | int, ...]


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
        self.origins: dict[Place, str] = {(): str(path)}

    def where(self, place: Place) -> str:
        """File and line, or option, of a key; of the nearest key around it where it was not written."""
        while place not in self.origins:
            place = place[:-1]
        return self.origins[place]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The values of a YAML file; raises InvalidRecipe where it is not one mapping."""
        source = cls(path, {})
        try:
            loader = yaml.SafeLoader(_text(path))
            node = loader.get_single_node()
            if node is None:
                raise InvalidRecipe(f"{path}: the file is empty; {_SMALLEST}")
            data = source._values(loader, node, ())
        except yaml.MarkedYAMLError as fault:
            mark = fault.problem_mark or fault.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise InvalidRecipe(f"{path}{line}: not YAML: {fault.problem or fault.context}") from None
        except yaml.YAMLError as fault:
            raise InvalidRecipe(f"{path}: not YAML: {fault}") from None
        if not isinstance(data, dict):
            raise InvalidRecipe(f"{path}:1: found {data!r}; a recipe is a mapping of keys; {_SMALLEST}")
        # Written out, so that `--set base.revision=...` finds a mapping.
        source.data = data | ({"base": {"model": data["base"]}} if isinstance(data.get("base"), str) else {})
        return source

    def _values(self, loader: yaml.SafeLoader, node: yaml.Node, place: Place) -> Any:
        if place == () or place not in self.origins:
            self.origins[place] = f"{self.path}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            self._report_duplicates(loader, node, place)
            loader.flatten_mapping(node)
            return dict(self._items(loader, node, place))
        if isinstance(node, yaml.SequenceNode):
            return [self._values(loader, child, (*place, index)) for index, child in enumerate(node.value)]
        return loader.construct_object(node)

    def _items(self, loader: yaml.SafeLoader, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, Any]]:
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            self.origins[(*place, key)] = f"{self.path}:{key_node.start_mark.line + 1}"
            yield key, self._values(loader, value_node, (*place, key))

    def _report_duplicates(self, loader: yaml.SafeLoader, node: yaml.MappingNode, place: Place) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(loader.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
            if key in first and key != "<<":
                name = ".".join(map(str, (*place, key)))
                self.faults.append(f"{self.path}:{line}: {name}: found twice, first on line {first[key]}; keep one")
            first.setdefault(key, line)

    def override(self, text: str) -> None:
        """Put `key.key=value` over what the file says; the value is YAML."""
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            self.faults.append(f"--set {text}: found no key=value; write for example --set training.max_steps=5")
            return
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            self.faults.append(f"--set {text}: found {value!r}, which is not a YAML value; quote it")
            return
        inside = self.data
        for depth, key in enumerate(keys[:-1], start=1):
            found = inside.setdefault(key, {})
            if not isinstance(found, dict):
                around = ".".join(keys[:depth])
                self.faults.append(f"--set {text}: {around} is {found!r} and has no keys; set {around} as a whole")
                return
            self.origins.setdefault(tuple(keys[:depth]), f"--set {text}")
            inside = found
        inside[keys[-1]] = parsed
        place = tuple(keys)
        # Lines of what was there before would be wrong for what stands there now.
        self.origins = {known: line for known, line in self.origins.items() if known[: len(place)] != place}
        self.origins[place] = f"--set {text}"


def _line(fault: str) -> tuple[bool, int]:
    """From the top of the file to its end, then the options."""
    line = re.match(r".*?:(\d+): ", fault)
    return fault.startswith("--set"), int(line[1]) if line else 0


_SMALLEST = "the smallest one has 'name' and 'data: {train: [FILE]}'"


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise InvalidRecipe(f"{path}: byte {fault.start} is not UTF-8; save the recipe as UTF-8") from None
    except OSError as fault:
        near = sorted(str(other) for other in path.parent.glob("*.yaml"))
        there = f"there are {', '.join(near)}" if near else f"no recipe lies in {path.parent}"
        raise InvalidRecipe(f"{path}: {(fault.strerror or 'unreadable').lower()}; {there}") from None
