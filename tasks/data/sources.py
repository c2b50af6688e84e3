"""Sources as a recipe writes them in, files and hub datasets that exist out; and one digest of all their bytes."""

import difflib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Literal, NamedTuple

from tasks.errors import InvalidData
from tasks.files.digests import digest
from tasks.files.known_digests import file_digest
from tasks.output.escaping import listed
from tasks.recipe.stages import DataRecipe

SplitRole = Literal["train", "validation", "test"]
ROLES: tuple[SplitRole, ...] = ("train", "validation", "test")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.+%\[\]-]+)?")


class HubDataset(NamedTuple):
    """A Hugging Face dataset and the split to read."""

    name: str
    split: str

    def __str__(self) -> str:
        return f"hf:{self.name}:{self.split}"


Source = Path | HubDataset


def find(written: str) -> list[Source]:
    """What a source stands for: a file, the data files of a folder or glob (sorted), or a hub dataset.

    Raises InvalidData when there is nothing: with the source as written, the working folder and the nearest names.
    """
    if written.startswith("hf:"):
        return [_hub(written.removeprefix("hf:"), written)]
    try:
        return _on_disk(written)
    except (OSError, ValueError, RuntimeError) as fault:
        # A name that is too long, a pattern that is none, the home of nobody, a folder that may not be looked into.
        where, reason = written, str(fault)
        if isinstance(fault, OSError):
            where, reason = str(fault.filename or written), fault.strerror or str(fault)
        raise InvalidData(f"{listed([where])}: {reason}.") from fault


def _on_disk(written: str) -> list[Source]:
    if not written.strip():
        raise InvalidData("a source without a name; write '.' for the working folder.")
    path = Path(written).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _listed(written, _data_files(path), "holds no data files (" + ", ".join(SUFFIXES) + ", also with .gz)")
    if has_magic(written):
        root, pattern = (
            (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (Path(), str(path))
        )
        matches = (match for match in _matches(root, Path(pattern).parts, set()) if match.is_file())
        return _listed(written, matches, "matches no file")
    if _HUB_NAME.fullmatch(written) and not path.parent.is_dir() and not _is_data(path):
        return [_hub(written, written)]
    raise InvalidData(f"{written}: {_absent(path)}.")


def _absent(path: Path) -> str:
    """Why a path gives no records: what is in its place, or the names that look like it."""
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    mode = path.stat().st_mode if path.exists() else 0
    for is_kind, kind in ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device")):
        if is_kind(mode):
            return f"a {kind}, and records are read twice; write them into a file first"
    return f"no such file or folder in {Path.cwd()}{_near(path)}"


def expand(recipe: DataRecipe) -> dict[SplitRole, list[Source]]:
    """Every source of a recipe by its role, in the order written; a file named twice in one role is read once."""
    written: dict[SplitRole, list[str]] = {"train": recipe.train, "validation": recipe.validation, "test": recipe.test}
    return {role: list(dict.fromkeys(source for one in written[role] for source in find(one))) for role in ROLES}


def source_digest(recipe: DataRecipe) -> str:
    """Digest of the bytes of every source and their role; names, paths and order do not count.

    A hub dataset counts with its name, split and the revision the hub answers with. Raises InvalidData when a source is
    missing or the hub cannot be asked.
    """
    return combined({role: list(map(_fingerprint, sources)) for role, sources in expand(recipe).items()})


def combined(fingerprints: Mapping[SplitRole, Sequence[str]]) -> str:
    """One digest for all sources by role, from the digest of a file's bytes each, or what `pinned` gives."""
    return digest({role: sorted(each) for role, each in fingerprints.items()})


def _fingerprint(source: Source) -> str:
    if not isinstance(source, Path):
        return pinned(source, hub_revision(source))
    try:
        return file_digest(source)
    except OSError as fault:
        raise InvalidData(f"{source}: cannot be read ({fault.strerror or type(fault).__name__}).") from fault


def pinned(source: HubDataset, revision: str) -> str:
    """A hub dataset with the commit that is read."""
    return f"{source}@{revision}"


def hub_revision(source: HubDataset) -> str:
    """The commit the hub has now for a dataset, or the cached one while the hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download

    # The error of whichever HTTP client the hub library has.
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        return str(HfApi().dataset_info(source.name, timeout=20).sha)
    except (HTTPError, OSError, RuntimeError) as fault:
        try:
            return Path(snapshot_download(source.name, repo_type="dataset", local_files_only=True)).name
        except (LocalEntryNotFoundError, OSError):
            raise InvalidData(unreachable(source, fault)) from fault


def unreachable(source: HubDataset, fault: Exception) -> str:
    """The message for a hub dataset that cannot be had."""
    reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
    return (
        f"{source}: the Hugging Face hub cannot be reached, or has no such dataset ({reason}); "
        "check the name and the network, or give a local file."
    )


def _hub(name: str, written: str) -> HubDataset:
    if not _HUB_NAME.fullmatch(name):
        raise InvalidData(f"{written}: a hub dataset is written hf:org/name or hf:org/name:split.")
    dataset, _, split = name.partition(":")
    return HubDataset(dataset, split or "train")


def _is_data(path: Path) -> bool:
    return path.name.removesuffix(".gz").lower().endswith(SUFFIXES)


def _data_files(folder: Path) -> Iterator[Path]:
    for inside in _folders(folder, set(), hidden=False):
        for path in inside.iterdir():
            if not path.name.startswith(".") and _is_data(path) and path.is_file():
                yield path


def _folders(folder: Path, visited: set[tuple[int, int]], hidden: bool) -> Iterator[Path]:
    """A folder and all inside it; links to folders are followed, and no folder is entered twice."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    yield folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (hidden or not path.name.startswith(".")):
            yield from _folders(path, visited, hidden)


def _matches(root: Path, parts: Sequence[str], visited: set[tuple[int, int]]) -> Iterator[Path]:
    """What a glob pattern matches; `**` goes into linked folders too, which pathlib's does not."""
    if "**" not in parts:
        yield from root.glob(str(Path(*parts))) if parts else [root]
        return
    cut = parts.index("**")
    for start in root.glob(str(Path(*parts[:cut]))) if cut else [root]:
        for folder in _folders(start, visited, hidden=True) if start.is_dir() else ():
            yield from _matches(folder, parts[cut + 1 :], set())


def _listed(written: str, files: Iterator[Path], complaint: str) -> list[Source]:
    found: list[Source] = [*sorted(files)]
    if not found:
        raise InvalidData(f"{written}: {complaint}; looked in {Path.cwd()}.")
    return found


def _near(path: Path) -> str:
    """The names beside a missing file that look like it, as a clause; empty where there are none."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    lowered = {name.lower(): name for name in names}
    near = [lowered[name] for name in difflib.get_close_matches(path.name.lower(), lowered, n=3, cutoff=0.6)]
    return f"; did you mean {', '.join(str(folder / name) for name in near)}?" if near else ""
