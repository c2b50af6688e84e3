"""The name and options of a PEFT type in, PEFT's own configuration class out; what it does not know is refused."""

import dataclasses
import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from tasks.output.escaping import shortened

# Set by the loader, or no option of the method but of the whole adapter.
_OURS = {
    "task_type",
    "peft_type",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "peft_version",
}


@cache
def config_class(peft_type: str) -> Any:
    """PEFT's configuration class of a type, LOHA for example.

    Raises ValueError with the nearest names where PEFT has no such type.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {kind.value: found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in known:
        near = difflib.get_close_matches(peft_type.upper(), known, n=3, cutoff=0.4) or sorted(known)
        raise ValueError(f"peft_type {peft_type!r} is not a type of this PEFT; near: {', '.join(near)}")
    return known[peft_type]


def check_options(peft_type: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError where PEFT's configuration class has no such option or does not take its value."""
    known = [field.name for field in dataclasses.fields(config_class(peft_type)) if field.name not in _OURS]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"options.{name}: {peft_type} has no such option; {hint}it has {', '.join(known)}")
    make_config(peft_type, options)


def make_config(peft_type: str, options: Mapping[str, Any]) -> Any:
    """PEFT's configuration with these options, for a causal language model. Raises ValueError where PEFT refuses."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    chosen = config_class(peft_type)
    kinds = get_type_hints(chosen)
    for name, value in options.items():
        try:
            finite = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
            TypeAdapter(kinds[name], config=finite).validate_python(value)
        except ValidationError as fault:
            problem = fault.errors()[0]["msg"]
            wanted = f"{peft_type} wants {kinds[name]}: {problem}"
            raise ValueError(f"options.{name}: found {shortened(value)}; {wanted}") from fault
    try:
        return chosen(**options, task_type="CAUSAL_LM")
    except (TypeError, ValueError) as fault:
        raise ValueError(f"options: {peft_type} refuses them: {fault}") from fault
