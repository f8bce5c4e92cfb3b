"""Which of a job's settings may be credentials: they are kept out of all that is stored, shown or logged."""

import re
from collections.abc import Mapping

HIDDEN = "(not kept)"
# What Spark leaves out of its event log, its pages and its plans.
REDACTED = (
    "(?i)secret|passw(or)?d|passphrase|token|credential|(access|account|api|private)[._-]?key|signature|[._]sas([._]|$)"
)
_NAMES = re.compile(REDACTED)
_TOKEN = re.compile(r"(?i)(;\s*token=)[^;\s'\"]+")  # of Spark Connect's address
_USER = re.compile(r"//[^/@\s:]*:[^/@\s]*@")


def is_credential(name: str) -> bool:
    """Whether a setting of this name may be one: by its name, or because it is Hadoop's or Spark's (it has a dot)."""
    return "." in name or _NAMES.search(name) is not None


def without_credentials(options: Mapping[str, str]) -> dict[str, str]:
    """The options with `HIDDEN` in the place of what may be a credential: a changed one is no other option."""
    return {name: HIDDEN if is_credential(name) else value for name, value in options.items()}


def has_password(path: str) -> bool:
    """Whether a URI holds a user's password, or a key and its secret: `s3a://KEY:SECRET@bucket`."""
    return _USER.search(path) is not None


def masked(text: str) -> str:
    """A text with such a part of its URIs left out."""
    return _TOKEN.sub(r"\1(hidden)", _USER.sub("//(hidden)@", text))
