"""The project's own files, where they lie in a checkout and where `pip install` puts them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout; in an installation, the folder that packages are installed in."""


def shipped(path: str) -> Path:
    """A file of the folders that travel with the code, by its path in the checkout: `mlflow/serve_model.py`."""
    installed = ROOT / "tasks" / "shipped" / path
    return installed if installed.exists() else ROOT / path
