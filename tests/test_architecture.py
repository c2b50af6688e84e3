"""The house as the design draws it: which files there are, who may import whom, how long a file gets."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 300
# A list of knobs, read by looking one up: in two files it would be harder to find one.
LONGER = {"tasks/recipe/stages.py": 370}
VAGUE = {"utils", "common", "helpers", "misc", "base", "core"}


def product_files() -> list[Path]:
    return sorted(path for folder in ("flows", "tasks") for path in (ROOT / folder).rglob("*.py"))


def test_the_product_is_where_this_test_looks() -> None:
    files = product_files()
    assert len(files) >= 40
    assert {"main.py", "stages.py", "store.py", "lookup.py"} <= {path.name for path in files}


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    kept = re.search(r"Contracts: (\d+) kept, 0 broken", done.stdout)
    assert kept and int(kept[1]) >= 6


def test_every_module_is_in_a_layer_and_a_module_outside_of_one_breaks_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = {contract["containers"][0]: contract for contract in contracts if contract["type"] == "layers"}
    assert set(layers) == {"flows", "tasks"}
    for folder, contract in layers.items():
        named = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
        there = {path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}
        there |= {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
        assert contract["exhaustive"] and named == there


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_a_telling_name_and_a_readable_length(path: Path) -> None:
    text = path.read_text("utf-8")
    assert path.stem not in VAGUE
    assert len(text.splitlines()) <= LONGER.get(str(path.relative_to(ROOT)), LENGTH)
    assert text.startswith('"""'), "the first line says what goes in and what comes out"
    assert not re.search(r"^\s*print\(", text, re.MULTILINE)
    assert not re.search(r"#\s*(TODO|FIXME|XXX)", text)


LOADING = re.compile(r"\bAuto(?!HfQuantizer)\w+\.from_(?:pretrained|config)\(")


def loading_calls() -> list[tuple[str, str]]:
    """Every call that makes a model, configuration or tokenizer of a folder, in code and in code held in texts."""
    found = []
    for folder in ("flows", "tasks", "mlflow", "benchmarks", "examples", "deployments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text("utf-8")
            for match in LOADING.finditer(text):
                depth, end = 1, match.end()
                while depth:
                    depth += {"(": 1, ")": -1}.get(text[end], 0)
                    end += 1
                found.append((f"{path.relative_to(ROOT)}: {match[0]}", text[match.start() : end]))
    return found


def test_every_loading_call_says_whether_code_is_trusted_and_reads_safetensors_alone() -> None:
    calls = loading_calls()
    assert len(calls) >= 20
    assert [where for where, call in calls if "trust_remote_code=" not in call] == []
    models = [(where, call) for where, call in calls if "AutoModelForCausalLM.from_pretrained" in where]
    assert len(models) >= 5
    # A GGUF file of a package is converted, not loaded as it is.
    assert [where for where, call in models if "use_safetensors=True" not in call and "gguf_file=" not in call] == []


def test_the_folder_mlflow_never_hides_the_library() -> None:
    files = list((ROOT / "mlflow").iterdir())
    assert any(path.name == "serve_model.py" for path in files)
    assert not any(path.name == "__init__.py" for path in files)


def test_constraints_are_exact_and_name_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert len(lines) >= 150
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.!-]+", line)] == []
    assert "torch==2.13.0" in lines


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_printed_goes_through_the_terminal_that_escapes_it(path: Path) -> None:
    if path.name == "terminal.py":
        return
    text = path.read_text("utf-8")
    assert not re.search(r"\bConsole\(|\becho\(|\bsecho\(|std(out|err)\.write\(|logging\.Formatter\(", text)
