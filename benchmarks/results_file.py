"""Things to measure one by one in; each result kept in a JSON file as it comes, so that a page can be made of it."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter

Result = TypeVar("Result", bound=BaseModel)


class Kept(Generic[Result]):
    """Results by name, in a file."""

    def __init__(self, path: Path, kind: type[Result]) -> None:
        self.path = path
        self.adapter: TypeAdapter[dict[str, Result]] = TypeAdapter(dict[str, kind])  # type: ignore[valid-type]

    def read(self) -> dict[str, Result]:
        """What was measured so far."""
        return self.adapter.validate_json(self.path.read_bytes()) if self.path.exists() else {}

    def measure(
        self, names: Iterable[str], measure: Callable[[str], Result], line: Callable[[Result], str]
    ) -> dict[str, Result]:
        """Measure some and keep what is known of the others; `line` is what is said of each."""
        found = self.read()
        for name in names:
            found[name] = measure(name)
            self.path.write_bytes(self.adapter.dump_json(found, indent=1) + b"\n")
            print(f"{name}: {line(found[name])}", flush=True)
        return found


def options(module: str, about: str | None, names: Iterable[str], words: list[str] | None) -> argparse.Namespace:
    """What a command line says: `only` some of the names, or nothing but the `page`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--page", action="store_true", help="write the page from what was measured, run nothing")
    return parser.parse_args(words)
