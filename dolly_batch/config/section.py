"""What all parts of the job file have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the job file: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
