"""Weights, merged model and report in, model versions out: adapter and merged model, tied together."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts import (
    EvaluationReport,
    MergedModel,
    ModelVersions,
    TokenizedDataset,
    TrainedWeights,
    ValidatedDataset,
)
from tasks.files.digests import digest
from tasks.modeling.base_model import BaseModelFolder
from tasks.modeling.origin import origin_of
from tasks.models import REGISTRY, parse_model_uri, unchanged_base
from tasks.orchestration import step
from tasks.output.credentials import without_credentials
from tasks.recipe.stages import Recipe
from tasks.registry import lookup
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun

VERSION = 2


@step(retries=4, retry_delay_seconds=[5, 15, 60, 120])
def register(
    dataset: ValidatedDataset,
    tokenized: TokenizedDataset,
    weights: TrainedWeights,
    report: EvaluationReport,
    merged: MergedModel,
    recipe: Recipe,
    workspace: Workspace,
) -> ModelVersions:
    """Make the registry's versions of this release, or find those its content already has."""
    uri = workspace.state.tracking_uri
    # What a version runs is part of it: the same weights with a newer `serve_model.py` are another version.
    content = {
        "version": VERSION,
        "serving": recipe.serving,
        "system": recipe.prompt.system,
        "template": tokenized.template_digest,
        **_trust(recipe),
    }
    inputs = {
        "name": recipe.name,
        "registry": without_credentials(uri),
        "merged": merged.digest,
        "weights": weights.digest,
        "content": content,
    }

    def build(folder: Path) -> ModelVersions:
        from tasks.registry import release

        for record in (weights, merged):
            workspace.store.check(record, in_full=True)

        seeds = {"seed": recipe.seed}
        manifest = release.release_manifest(recipe, dataset, tokenized, weights, report, merged, seeds)
        (folder / "release.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1), "utf-8")
        (folder / "MODEL_CARD.md").write_text(release.model_card(manifest, report, recipe.serving.description), "utf-8")
        base = unchanged_base(recipe.base, tokenized, workspace)
        return _register(folder, digest(content), base, weights, merged, recipe, workspace.run.open())

    def still_there(found: ModelVersions) -> bool:
        pairs = [(found.name, found.version), (found.adapter_name, found.adapter_version)]
        if found.base_address:
            name, _, number = parse_model_uri(found.base_address, "base.model")
            pairs.append((name, number))
        return all(lookup.find(uri, name, version=version) for name, version in pairs if name)

    uses = [dataset, tokenized, weights, report, merged]
    made = workspace.store.make("register", inputs, ModelVersions, build, still_true=still_there, uses=uses)
    workspace.run.log_once(made, lambda run: _log_to_mlflow(run, made))
    return made


def _trust(recipe: Recipe) -> dict[str, bool]:
    """What a version is told where its base, and so the version itself, brings Python of its own that was trusted."""
    return {"trust_remote_code": True} if recipe.base.trust_remote_code else {}


def _register(
    folder: Path,
    content: str,
    base: BaseModelFolder,
    weights: TrainedWeights,
    merged: MergedModel,
    recipe: Recipe,
    run: "MlflowRun",
) -> ModelVersions:
    from tasks.registry import versions

    files = {"release": folder / "release.json", "model_card": folder / "MODEL_CARD.md"}
    tags = {
        "weights": weights.digest,
        "model": merged.model_digest,
        "base": base.digest,
        "method": weights.method,
    }
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    settings = {"system": recipe.prompt.system, **_trust(recipe)}
    adapter_name, adapter_version, bound, address = "", 0, {}, ""
    if weights.kind == "adapter":
        adapter_name = f"{recipe.name}-adapter"
        quantisation = origin_of(weights.path("weights"))["quantisation"]
        address = _address_of(base, run)
        bound = versions.base_config(address, base.folder, quantisation)
        adapter_version = versions.register_model(
            run,
            adapter_name,
            "adapter",
            weights.path("weights"),
            # The address too: an adapter whose base was deleted, and made again, names the new one.
            digest([weights.digest, content, bound]),
            tags,
            card,
            settings | bound,
            extra_files=files,
            max_tokens=recipe.serving.max_tokens,
            temperature=recipe.serving.temperature,
        )
    version = versions.register_model(
        run,
        recipe.name,
        merged.kind,
        merged.path("model"),
        digest([merged.digest, content, bound if merged.kind == "adapter" else {}]),
        tags,
        card,
        # An adapter that cannot be merged stands under the model's own name too: that is what callers look up.
        settings | (bound if merged.kind == "adapter" else {}),
        extra_files=files,
        max_tokens=recipe.serving.max_tokens,
        temperature=recipe.serving.temperature,
    )
    if adapter_name:
        versions.tie(run.tracking_uri, recipe.name, version, adapter_name, adapter_version)
    registry = without_credentials(run.tracking_uri)
    return ModelVersions(
        digest=digest([registry, recipe.name, version, adapter_name, adapter_version]),
        name=recipe.name,
        version=version,
        adapter_name=adapter_name,
        adapter_version=adapter_version,
        base_address=address if address.startswith(REGISTRY) else "",
        mlflow_run_id=run.run_id,
        tracking_uri=registry,
    )


def _address_of(base: BaseModelFolder, run: "MlflowRun") -> str:
    """Where an adapter's consumer finds the base: its registry version, its hub revision, or a version made for it."""
    from tasks.registry import versions

    if base.name.startswith(REGISTRY):
        return base.name
    if base.hub_revision:
        return f"{base.name}@{base.hub_revision}"
    version = versions.register_base(run, base.name, base.folder, base.digest)
    return f"models:/{versions.base_name(base.name)}/{version}"


def _log_to_mlflow(run: "MlflowRun", made: ModelVersions) -> None:
    from tasks.registry import runs

    runs.log_files(run, {"release": [made.path("release.json"), made.path("MODEL_CARD.md")]})
