"""A hub's model in, the folder of the files that its identity counts out: fetched, or found in the hub's own cache."""

from pathlib import Path

from tasks.files.digests import TEMPLATES


def snapshot(name: str, revision: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a model's files of `patterns` at its top level, and of its named chat templates.

    An empty revision is the hub's main. Raises what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    # To the hub a star stands for slashes too, and files in folders are no part of the identity but for these.
    snapshot_download(name, revision=revision or None, allow_patterns=TEMPLATES)
    return Path(
        snapshot_download(name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns="*/*")
    )
