"""A recipe's base model in, its verified folder out: the one place that joins folders, hubs and the registry."""

from tasks.artifacts import TokenizedDataset
from tasks.errors import InvalidBaseModel, UnknownVersion
from tasks.modeling.base_model import BaseModelFolder, resolve, verified
from tasks.recipe import BaseModelRecipe
from tasks.workplace import Workplace

REGISTRY = "models:/"


def base_of(recipe: BaseModelRecipe, place: Workplace) -> BaseModelFolder:
    """The base model's folder, fetched where it has to be.

    Raises InvalidBaseModel, UnknownVersion for a `models:/` address that the registry does not know,
    ServiceUnavailable.
    """
    if not recipe.model.startswith(REGISTRY):
        return resolve(recipe, place.state.bases)
    from tasks.registry import lookup, versions

    address = recipe.model.removeprefix(REGISTRY)
    name, _, alias = address.partition("@")
    name, _, number = name.partition("/")
    if not name or bool(alias) == bool(number) or (number and not number.isdigit()):
        raise InvalidBaseModel(f"base.model: {recipe.model}: write models:/name@alias or models:/name/version.")
    uri = place.state.tracking_uri
    found = lookup.find(uri, name, alias or "production", int(number or 0))
    if found is None:
        raise UnknownVersion(
            f"base.model: {recipe.model}: {uri} has no such version; it has {lookup.aliases(uri, name)}."
        )
    folder = versions.model_folder(uri, name, found.version, place.state.root / "cache")
    return verified(folder, f"models:/{name}/{found.version}", recipe.trust_remote_code)


def same_base(recipe: BaseModelRecipe, tokenized: TokenizedDataset, place: Workplace) -> BaseModelFolder:
    """The base model again, for a later step; raises InvalidBaseModel if it changed since the data was tokenised."""
    base = base_of(recipe, place)
    if base.digest != tokenized.base_digest:
        raise InvalidBaseModel(
            f"base.model: {recipe.model} changed while this ran: weights {base.digest}, but the data was tokenised "
            f"for {tokenized.base_digest}. Start again."
        )
    return base
