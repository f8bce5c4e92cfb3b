"""The settings of a cascade: a small proxy answers the rows for which it agrees with the model."""

import math
from dataclasses import dataclass

from dolly_batch.cascade.bounds import CHECKED_SHARE, fewest_rows
from dolly_batch.tasks.base import SettingError

MAX_SAMPLE = 100_000  # its texts come to the driver


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Have the model answer a drawn sample, train a proxy on it, and let that answer what it surely can.

    Of the proxy's answers at least the share `agreement` is the model's, with 95 % confidence. `sample` is how many
    different texts the model answers first. `gold` is an input column of labels, to check against in the model's place.
    """

    agreement: float = 0.95
    sample: int = 2000
    gold: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.agreement < 1:
            raise SettingError("agreement", f"must be between 0 and 1, found {self.agreement}")
        if self.gold == "":
            raise SettingError("gold", "must not be empty")
        least = math.ceil(fewest_rows(self.agreement) / CHECKED_SHARE)
        if least > MAX_SAMPLE:
            raise SettingError("agreement", f"{self.agreement} takes a sample of {least:,} texts, above {MAX_SAMPLE:,}")
        if not least <= self.sample <= MAX_SAMPLE:
            raise SettingError(
                "sample", f"{self.sample} texts; agreement {self.agreement} takes {least:,} to {MAX_SAMPLE:,}"
            )
