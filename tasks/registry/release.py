"""How a release came to be: the records of its steps in, the manifest `release.json` and a model card out.

Nothing here says when or on which machine: the same work gives the same manifest.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tasks.artifacts import (
    EvaluationReport,
    MergedModel,
    SuiteReport,
    TokenizedDataset,
    TrainedWeights,
    ValidatedDataset,
    Who,
)
from tasks.output.escaping import fence, markdown_text
from tasks.project import ROOT
from tasks.recipe.stages import Recipe
from tasks.registry.merge_table import markdown
from tasks.steps.store import digest

PACKAGES = (
    "tuneline",
    "accelerate",
    "datasets",
    "evaluate",
    "mlflow",
    "numpy",
    "peft",
    "prefect",
    "pydantic",
    "rouge-score",
    "sacrebleu",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


def release_manifest(
    recipe: Recipe,
    dataset: ValidatedDataset,
    tokens: TokenizedDataset,
    weights: TrainedWeights,
    report: EvaluationReport,
    merged: MergedModel,
    seeds: Mapping[str, int],
) -> dict[str, Any]:
    """What `release.json` holds: digests (sha256) of everything that went in and came out, versions and seeds."""
    return {
        "name": recipe.name,
        "digests": {
            "recipe": digest(recipe),
            "sources": dataset.source_digest,
            "data": dataset.digest,
            "base": weights.base_digest,
            "tokenizer": tokens.tokenizer_digest,
            "template": tokens.template_digest,
            "weights": weights.digest,
            "model": merged.model_digest,
            "evaluation": report.digest,
        },
        "base": recipe.base.model_dump(mode="json"),
        "data": {"name": dataset.name, "format": dataset.format, "sources": dataset.sources, "rows": dataset.rows},
        "training": {
            "method": weights.method,
            "steps": weights.steps,
            "best_step": weights.best_step,
            "tokens": weights.tokens,
            "trainable_parameters": weights.trainable_parameters,
            "best_validation_loss": weights.best_validation_loss,
        },
        "evaluation_rows": {name: suite.rows for name, suite in report.suites.items()},
        "parity": merged.parity.model_dump(mode="json") if merged.parity else None,
        "merge": merged.model_dump(mode="json", exclude={"key", "folder", "reused", "parity"}),
        "champion": report.champion,
        "seeds": dict(seeds),
        "code": code_version(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": package_versions(),
        "recipe": recipe.model_dump(mode="json"),
    }


def code_version(root: Path = ROOT) -> dict[str, Any]:
    """The git commit and whether there were uncommitted changes; outside a checkout, the package's version."""
    if (root / ".git").exists():
        commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
        if commit is not None and changes is not None:
            return {"commit": commit, "dirty": bool(changes)}
    return {"package": package_versions().get("tuneline", "unknown")}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """The installed version of every package that can change a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def model_card(manifest: Mapping[str, Any], report: EvaluationReport, description: str = "") -> str:
    """The model card in Markdown: what it is for, how to ask it, scores, data, training, limits."""
    name, digests, data, training = manifest["name"], manifest["digests"], manifest["data"], manifest["training"]
    loss = training["best_validation_loss"]
    code = manifest["code"]
    commit = code.get("commit", code.get("package")) + (" with uncommitted changes" if code.get("dirty") else "")
    base = manifest["base"]
    at_revision = f"@{base['revision']}" if base["revision"] else ""
    merge = markdown(MergedModel(**manifest["merge"], parity=manifest["parity"]))
    sections = [
        f"# {name}",
        description or markdown_text(f"{base['model']}, fine-tuned on {data['name']} ({training['method']})."),
        "## Ask it",
        _requests(name, report),
        "## Scores",
        *(_scores(suite, report) for suite in report.suites.values()),
        "## Data",
        f"{data['name']}, format {markdown_text(data['format'])}. Records: "
        + ", ".join(f"{split} {count:,}" for split, count in data["rows"].items())
        + f". Digest `{digests['data']}`.",
        "## Training",
        f"Base {markdown_text(base['model'] + at_revision)} (`{digests['base'][:16]}`), "
        f"method {training['method']}, {training['trainable_parameters']:,} trained parameters, "
        f"{training['steps']:,} steps over {training['tokens']:,} tokens, best at step {training['best_step']:,}"
        + (f" with validation loss {loss:.4f}" if loss is not None else "")
        + f". Code {commit}. Everything else is in `release.json`.",
        *(["## Merge", merge] if merge else []),
        "## Limits",
        _limits(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _requests(name: str, report: EvaluationReport) -> str:
    prompt = report.examples[0].get("prompt", "") if report.examples else "Where is my order?"
    row = {"messages": [{"role": "user", "content": prompt}]}
    body = json.dumps({"dataframe_records": [row], "params": {"max_tokens": 128}}, ensure_ascii=False)
    quoted = body.replace("'", "'\\''")
    call = json.dumps([row], ensure_ascii=False)
    python = (
        f'import mlflow\n\nmodel = mlflow.pyfunc.load_model("models:/{name}@production")\n'
        f'model.predict({call}, params={{"max_tokens": 128}})'
    )
    shell = (
        f"mlflow models serve -m models:/{name}@production --env-manager local -p 5001\n"
        f"curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{quoted}'"
    )
    return (
        f"{fence(python, 'python')}\n\n{fence(shell, 'bash')}\n\n"
        f"`@production` is the version that was promoted last; `models:/{name}/<number>` asks one by its number. "
        "A row has `messages`, or `instruction` and `input`, or is a text; the prompt is rendered inside. "
        "Parameters: `max_tokens` (an answer ends at the context in any case), `temperature` (0 is greedy), `top_p`, "
        "`seed` (without one every sampled request differs), `stop`."
    )


def _scores(suite: SuiteReport, report: EvaluationReport) -> str:
    order: tuple[Who, ...] = ("base", "candidate", "champion")
    who = [each for each in order if each in suite.scores]
    metrics = list(suite.scores["candidate"])
    lines = [f"| {suite.suite} | {' | '.join(who)} |", "| --- |" + " ---: |" * len(who)]
    for metric in metrics:
        cells = []
        for each in who:
            found = suite.scores[each].get(metric)
            cells.append(f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})" if found else "")
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    champion = f" Champion: {report.champion}." if report.champion else ""
    note = (
        f"{suite.rows} rows; in brackets the {100 * report.confidence:g}% interval; candidate is this model.{champion}"
    )
    return "\n".join(lines) + f"\n\n{note}"


def _limits(manifest: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count} rows of {suite}" for suite, count in manifest["evaluation_rows"].items())
    length = manifest["recipe"]["prompt"]["max_length"]
    return (
        f"The scores were measured on {rows}, split off the same sources as the training records or given beside them; "
        f"other kinds of requests were not measured. Training examples were cut at {length:,} tokens. What the base "
        "model gets wrong or repeats from its own training, this model may too: look at answers before acting on them."
    )
