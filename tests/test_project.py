"""What `pip install` takes along: every package, and the files of the top-level folders that the code reads."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tasks.project import ROOT, shipped

SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
READ = ["mlflow/serve_model.py", "mlflow/promotion_policy.yaml", "deployments/accelerate/fsdp2.yaml"]


def test_every_package_is_installed() -> None:
    there = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for folder in ("flows", "tasks")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert there == {name for name in SETUP["packages"] if "shipped" not in name}


@pytest.mark.parametrize("path", READ)
def test_the_files_that_the_code_reads_travel_with_it(path: str) -> None:
    assert shipped(path) == ROOT / path
    folder, _, rest = path.partition("/")
    package = f"tasks.shipped.{folder}"
    assert package in SETUP["packages"] and SETUP["package-dir"][package] == folder
    assert any((ROOT / folder / rest) in (ROOT / folder).glob(pattern) for pattern in SETUP["package-data"][package])


@pytest.mark.slow
def test_an_installation_reads_its_own_files_from_any_folder(tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(ROOT)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    code = """
from pathlib import Path
from tasks.promotion import policy
from tasks.registry import packaging
from tasks.training import processes
packaging.check_installation()
print(policy.load(policy.located("mlflow/promotion_policy.yaml")).suite, processes.DEPLOYMENTS.is_dir())
print(packaging.__file__)
"""
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["test", "True", str(target / "tasks" / "registry" / "packaging.py")], done.stderr
