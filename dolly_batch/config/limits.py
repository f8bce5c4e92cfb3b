"""What a run may take, in rows, errors, time and money; and whose it is."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from dolly_batch.config.yaml_file import Section

TagName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
TagText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{0,200}$")]


class LimitsConfig(Section):
    """When to refuse a row or to stop a run."""

    long_prompt: Literal["error", "truncate_left", "truncate_right", "truncate_middle"] = "error"
    """A prompt that does not fit: the status `too_long`, or the row's own text without its beginning, end or middle."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    max_rows: int | None = Field(default=None, ge=1)
    """Refuse a plan with more rows left to answer than this."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Stop (exit 5, resumable) when GPUs have been busy with finished waves for this long, on CPUs engines; checked
    after each wave."""
    price_per_gpu_hour: float | None = Field(default=None, gt=0)
    """Of one GPU, on CPUs of one engine (one an executor), in whatever money; plan and report then say the cost."""
    max_cost: float | None = Field(default=None, gt=0)
    """Refuse a plan that is estimated to cost more, with a cascade one whose sample is; stop (exit 5, resumable) when
    finished waves have cost that much."""

    @model_validator(mode="after")
    def _has_a_price(self) -> "LimitsConfig":
        if self.max_cost is not None and self.price_per_gpu_hour is None:
            raise ValueError("`max_cost` needs `price_per_gpu_hour`")
        return self
