"""What every part of a recipe is made of: closed, frozen models, and unions that Prefect's run form shows as tabs.

The shape of the unions is decided by that form: see docs/decisions/0003-the-run-form.md.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Stage(BaseModel):
    """One closed, frozen part of a recipe: a misspelt key or a number without an end fails before anything is spent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def as_tabs(schema: dict[str, Any]) -> None:
    """Keep Python's default and discriminator, hide them from the form: it would merge the default into other tabs."""
    schema.pop("default", None)
    schema.pop("discriminator", None)
    if "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")


def kind(value: str) -> Any:
    """A field with one allowed value, shown in the form as a fixed choice instead of a text box."""
    return Field(value, title="Kind", description="Fixed by the tab.", json_schema_extra={"enum": [value]})
