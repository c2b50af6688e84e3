"""A recipe's base model in, its verified folder out: the one place that joins folders, hubs and the registry."""

from importlib.metadata import version
from pathlib import Path

from tasks.artifacts import SupportedBase, TokenizedDataset
from tasks.digests import digest, files_digest
from tasks.errors import InvalidBaseModel, InvalidRecipe, UnknownVersion
from tasks.modeling.base_model import BaseModelFolder, description, resolve, verified
from tasks.recipe import BaseModelRecipe
from tasks.registry import lookup
from tasks.settings import State
from tasks.store import StepStore
from tasks.workplace import Workplace

REGISTRY = "models:/"
SUPPORT_VERSION = 2
"""Of what `modeling.support` tries."""


def base_of(recipe: BaseModelRecipe, place: Workplace) -> BaseModelFolder:
    """The base model's folder, fetched where it has to be.

    Raises InvalidBaseModel, UnknownVersion for a `models:/` address that the registry does not know,
    ServiceUnavailable.
    """
    if recipe.model.startswith(REGISTRY):
        return _registered(recipe, place.state)
    return resolve(recipe, place.state.bases)


def described(recipe: BaseModelRecipe, state: State) -> Path:
    """The folder of a base's config and tokenizer, checked; of a hub's model, no weights are fetched.

    Raises as `base_of` does.
    """
    if recipe.model.startswith(REGISTRY):
        return _registered(recipe, state).folder
    return description(recipe, state.bases)


def _registered(recipe: BaseModelRecipe, state: State) -> BaseModelFolder:
    version = version_at(recipe.model, "base.model", state)
    return verified(folder_at(version, state), f"models:/{version.name}/{version.version}", recipe.trust_remote_code)


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
    name, alias, number = parsed(address, key)
    found = lookup.find(state.tracking_uri, name, alias, number)
    if found is None:
        there = lookup.said_aliases(state.tracking_uri, name)
        raise UnknownVersion(f"{key}: {address}: no such version in {state.tracking_uri}; {there}.")
    return found


def folder_at(found: lookup.Version, state: State) -> Path:
    """The folder of a version's weights, fetched where it has to be."""
    from tasks.registry import versions

    return versions.model_folder(state.tracking_uri, found.name, found.version, state.root / "cache")


def parsed(address: str, key: str) -> tuple[str, str, int]:
    """Name, alias and number of a `models:/` address, as `lookup.find` takes them; `key` is for the message.

    >>> parsed("models:/desk@staging", "base.model"), parsed("models:/desk/3", "base.model")
    (('desk', 'staging', 0), ('desk', 'production', 3))
    """
    name, _, alias = address.removeprefix(REGISTRY).partition("@")
    name, _, number = name.partition("/")
    if not name or bool(alias) == bool(number) or (number and not number.isdigit()):
        raise InvalidRecipe(f"{key}: {address}: write models:/name@alias or models:/name/version.")
    return name, alias or "production", int(number or 0)


def same_base(recipe: BaseModelRecipe, tokenized: TokenizedDataset, place: Workplace) -> BaseModelFolder:
    """The base model again, for a later step; raises InvalidBaseModel if it changed since the data was tokenised."""
    base = base_of(recipe, place)
    if base.digest != tokenized.base_digest:
        raise InvalidBaseModel(
            f"base.model: {recipe.model} changed while this ran: its digest is {base.digest}, but the data was "
            f"tokenised for {tokenized.base_digest}. Start again."
        )
    return base
