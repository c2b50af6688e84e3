"""A recipe's base model in, its verified folder out: the one place that joins folders, hubs and the registry."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tasks.artifacts import SupportedBase, TokenizedDataset
from tasks.errors import InvalidBaseModel, InvalidRecipe, UnknownVersion
from tasks.files.digests import digest, files_digest
from tasks.modeling.adapter_files import check_plain_lora
from tasks.modeling.base_model import BaseModelFolder, description, resolve, verified
from tasks.modeling.origin import ADAPTER_CONFIG, is_adapter, origin_of
from tasks.recipe.methods import CombineMethod
from tasks.recipe.stages import BaseModelRecipe
from tasks.registry import lookup
from tasks.registry.champions import to_beat
from tasks.registry.contents import wanted_digest
from tasks.registry.lookup import get_version
from tasks.steps.state import State
from tasks.steps.store import StepStore
from tasks.workspace import Workspace

REGISTRY = "models:/"
SUPPORT_VERSION = 2
"""Of what `modeling.support` tries."""


def base_of(recipe: BaseModelRecipe, workspace: Workspace) -> BaseModelFolder:
    """The base model's folder, fetched where it has to be.

    Raises InvalidBaseModel, UnknownVersion for a `models:/` address that the registry does not know,
    ServiceUnavailable.
    """
    if recipe.model.startswith(REGISTRY):
        return _registered(recipe, workspace.state)
    return resolve(recipe, workspace.state.bases)


def described(recipe: BaseModelRecipe, state: State) -> Path:
    """The folder of a base's config and tokenizer, checked; of a hub's model, no weights are fetched.

    Raises as `base_of` does.
    """
    if recipe.model.startswith(REGISTRY):
        return _registered(recipe, state).folder
    return description(recipe, state.bases)


def _registered(recipe: BaseModelRecipe, state: State) -> BaseModelFolder:
    version = version_at(recipe.model, "base.model", state)
    return verified(
        registered_folder(version, state), f"models:/{version.name}/{version.version}", recipe.trust_remote_code
    )


def check_support(folder: Path, name: str, trust_remote_code: bool, store: StepStore) -> None:
    """Refuse a base that cannot be trained and asked here; a configuration that passed is not tried again.

    Raises InvalidBaseModel with its architecture and what it does not do.
    """
    code = sorted(folder.glob("*.py")) if trust_remote_code else []
    inputs = {
        "version": SUPPORT_VERSION,
        "config": files_digest({path.name: path for path in (folder / "config.json", *code)}),
        "packages": {package: version(package) for package in ("torch", "transformers")},
    }

    def build(_: Path) -> SupportedBase:
        from tasks.modeling import support

        support.check(folder, name, trust_remote_code)
        return SupportedBase(digest=digest(inputs))

    store.make("support", inputs, SupportedBase, build)


def version_at(address: str, key: str, state: State) -> lookup.Version:
    """The version behind a `models:/` address; `key` is the recipe's, for the message.

    Raises InvalidRecipe for what is no address, UnknownVersion for what the registry does not have.
    """
    name, alias, number = parse_model_uri(address, key)
    found = lookup.find(state.tracking_uri, name, alias, number)
    if found is None:
        there = lookup.describe_aliases(state.tracking_uri, name)
        raise UnknownVersion(f"{key}: {address}: no such version in {state.tracking_uri}; {there}.")
    return found


def registered_folder(found: lookup.Version, state: State) -> Path:
    """The folder of a version's weights, with the bytes that were registered, fetched where it has to be."""
    from tasks.registry import versions

    return versions.model_folder(state.tracking_uri, found.name, found.version, state.root / "cache")


def parse_model_uri(address: str, key: str) -> tuple[str, str, int]:
    """Name, alias and number of a `models:/` address, as `lookup.find` takes them; `key` is for the message.

    >>> parse_model_uri("models:/desk@staging", "base.model"), parse_model_uri("models:/desk/3", "base.model")
    (('desk', 'staging', 0), ('desk', 'production', 3))
    """
    name, _, alias = address.removeprefix(REGISTRY).partition("@")
    name, _, number = name.partition("/")
    if not name or bool(alias) == bool(number) or (number and not number.isdigit()):
        raise InvalidRecipe(f"{key}: {address}: write models:/name@alias or models:/name/version.")
    return name, alias or "production", int(number or 0)


def unchanged_base(recipe: BaseModelRecipe, tokenized: TokenizedDataset, workspace: Workspace) -> BaseModelFolder:
    """The base model again, for a later step; raises InvalidBaseModel if it changed since the data was tokenised."""
    base = base_of(recipe, workspace)
    if base.digest != tokenized.base_digest:
        raise InvalidBaseModel(
            f"base.model: {recipe.model} changed while this ran: its digest is {base.digest}, but the data was "
            f"tokenised for {tokenized.base_digest}. Start again."
        )
    return base


@dataclass(frozen=True)
class RegisteredModel:
    """A registered version: where its model lies, and the digests of model, the weights behind it and its base.

    `base_folder` is set for an adapter that could not be merged.
    """

    name: str
    version: int
    folder: Path
    digest: str
    weights: str
    base: str
    base_folder: Path | None = None

    @property
    def label(self) -> str:
        """Registry name and version."""
        return f"{self.name}/{self.version}"


def version_of(name: str, version: int, workspace: Workspace, trust_remote_code: bool = False) -> RegisteredModel:
    """The version with this number, or the one in production for 0; raises as `lookup.get_version` does."""
    return _registered_model(get_version(name, version, workspace.state.tracking_uri), workspace, trust_remote_code)


def champion_of(
    name: str, candidate_weights: str, workspace: Workspace, trust_remote_code: bool = False
) -> RegisteredModel | None:
    """The version to beat, with its model folder."""
    uri = workspace.state.tracking_uri
    found = to_beat(lookup.find(uri, name, "production"), candidate_weights, uri)
    return _registered_model(found, workspace, trust_remote_code) if found else None


def _registered_model(found: lookup.Version, workspace: Workspace, trust_remote_code: bool) -> RegisteredModel:
    folder = registered_folder(found, workspace.state)
    weights, base_digest = (found.tags.get(tag, "") for tag in ("weights", "base"))
    base = _base_of(folder, found, workspace, trust_remote_code) if is_adapter(folder) else None
    model = wanted_digest(found.tags)
    return RegisteredModel(found.name, found.version, folder, model, weights, base_digest, base)


def _base_of(folder: Path, found: lookup.Version, workspace: Workspace, trust_remote_code: bool) -> Path:
    """Where the base of an adapter lies: in the registry, or on the hub by the revision it was trained on."""
    from tasks.registry import versions

    uri, cache = workspace.state.tracking_uri, workspace.state.root / "cache"
    address = versions.base_address(versions.checked_folder(uri, found.name, found.version, cache))
    if address.startswith(REGISTRY):
        return versions.base_folder(address, uri, cache)
    origin = origin_of(folder)
    base = BaseModelRecipe(
        model=origin["base_name"], revision=origin["base_revision"], trust_remote_code=trust_remote_code
    )
    return resolve(base, workspace.state.bases).folder


ADAPTERS_KEY = "training.method.adapters"


def check_adapters(method: CombineMethod, state: State) -> None:
    """Raise InvalidRecipe, InvalidBaseModel or UnknownVersion where an address leads to no plain LoRA adapter.

    A version's files are fetched for that: they are small, and what is in them is known before a model is loaded.
    """
    for address in method.adapters:
        check_plain_lora(_adapter_folder(address, state), ADAPTERS_KEY)


def adapter_folders(method: CombineMethod, workspace: Workspace) -> list[Path]:
    """The folder of each adapter, fetched where it has to be; raises as `check_adapters` does."""
    return [_adapter_folder(address, workspace.state) for address in method.adapters]


def _adapter_folder(address: str, state: State) -> Path:
    """The folder that an address leads to, a version's fetched where it has to be."""
    registered = address.startswith(REGISTRY)
    folder = (
        registered_folder(version_at(address, ADAPTERS_KEY, state), state) if registered else Path(address).resolve()
    )
    if not is_adapter(folder):
        raise InvalidRecipe(
            f"{ADAPTERS_KEY}: {address}: no adapter lies there (no {ADAPTER_CONFIG}); name a folder, or "
            "models:/<name>-adapter@alias."
        )
    return folder
