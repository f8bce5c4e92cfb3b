"""Models of the Hugging Face hub, through its own client.

The client reads its settings itself (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, proxies); nothing here looks at them,
and no message repeats what a server or the client said beyond a status code, so that no token gets into a log.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import hash_file
from dolly_batch.staging.isolated import Log
from dolly_batch.staging.layout import SMALL_FILES, require_weights

_ASK_TIMEOUT_S = 15.0
_UNAUTHORIZED = (401, 403)
_NOT_FOUND = 404
_RATE_LIMITED = 429
_SERVER_FAULT = 500

# The client moved from httpx to httpx2 in its version 2; the base of its own error class says which one is in use.
_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]


class _TerminalBar(tqdm):
    """The client's progress bar, shown on a terminal only: logs of scheduled jobs stay readable."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not sys.stderr.isatty():
            kwargs["disable"] = True
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]


class HubUnreachableError(ModelError):
    """The hub could not be asked: no network, a server that is down, or offline mode."""


@dataclass(frozen=True)
class RemoteFile:
    """A file the hub lists. `sha256` is known for large files only."""

    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class HubSnapshot:
    """One commit of a hub repository and the files to take from it."""

    source: str
    revision: str
    files: tuple[RemoteFile, ...]

    @classmethod
    def resolve(cls, source: str, revision: str | None) -> HubSnapshot:
        """Pin a branch, a tag or None (the default branch) to its commit.

        Raises HubUnreachableError, or ModelError when there is no such repository or revision, when it needs a token,
        and when it holds an adapter or no weights that are read.
        """
        with _client_faults_explained(source, revision):
            info = HfApi().model_info(source, revision=revision, files_metadata=True, timeout=_ASK_TIMEOUT_S)
        files = [
            RemoteFile(entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in info.siblings or ()
        ]
        if info.sha is None:
            raise ModelError(f"model {source}: the hub named no commit for it; name a folder instead")
        require_weights(f"model {source}", (file.name for file in files))
        return cls(source, info.sha, tuple(files))

    @property
    def hashes(self) -> Mapping[str, str]:
        """As the hub lists them, which it does for large files."""
        return {file.name: file.sha256 for file in self.files if file.sha256 is not None}

    def fetch_small(self, into: Path) -> Path:
        """Download the config and the tokenizer's files."""
        return self._fetch({*SMALL_FILES}, into)

    def fetch_weights(self, into: Path, log: Log) -> Path:
        """Download the weights, safetensors if the repository has them, and check them against the hub's hashes."""
        weights = require_weights(f"model {self.source}", (file.name for file in self.files))
        size = sum(file.size or 0 for file in self.files if file.name in weights.files)
        log(f"downloading {self.source}, {len(weights.files)} weight file(s), {size / 1e9:.1f} GB")
        return self._fetch({*weights.files, *filter(None, [weights.index])}, into)

    def _fetch(self, names: set[str], into: Path) -> Path:
        wanted = [file for file in self.files if file.name in names]
        if not wanted:
            return into
        patterns = [file.name for file in wanted]
        with _client_faults_explained(self.source, self.revision):
            snapshot_download(
                self.source, revision=self.revision, local_dir=into, allow_patterns=patterns, tqdm_class=_TerminalBar
            )
        for file in wanted:
            _check_download(into / file.name, file, self.source)
        return into


def _check_download(path: Path, expected: RemoteFile, source: str) -> None:
    """The client returns early when the hub goes away, and checks sizes at most: so each file is held to the list."""
    found = path.stat().st_size if path.is_file() else None
    if found is None or (expected.size is not None and found != expected.size):
        raise HubUnreachableError(
            f"model {source}: the download of {expected.name} is incomplete ({found or 0} of {expected.size} bytes); "
            "run the command again"
        )
    if expected.sha256 is not None and hash_file(path) != expected.sha256:
        raise ModelError(f"model {source}: {expected.name} arrived with another sha256 than the hub lists; try again")


@contextmanager
def _client_faults_explained(source: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into ModelError; faults of the local disk pass as they are."""
    try:
        yield
    except RevisionNotFoundError as error:
        message = f"model {source}: the hub has no revision {revision!r} of it; name a branch, tag or commit"
        raise ModelError(message) from error
    except HfHubHTTPError as error:
        raise _explain_status(error, source) from error
    except HFValidationError as error:
        raise ModelError(f"model {source!r} is neither a folder nor a valid hub id ORG/NAME") from error
    except (_HTTP_ERROR, OSError, RuntimeError) as error:  # RuntimeError: the client's compiled transfer library
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        reason = type(error.__cause__ or error).__name__
        raise HubUnreachableError(f"model {source}: the hub could not be reached ({reason})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HubUnreachableError(f"model {source}: what answers at the hub's address is not a hub") from error


def _explain_status(error: HfHubHTTPError, source: str) -> ModelError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status in _UNAUTHORIZED:
        return ModelError(
            f"model {source}: the hub refused access ({status}): it is gated or private, or there is no such model. "
            "Check the name, accept the model's conditions on its page, and set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, RepositoryNotFoundError) or status == _NOT_FOUND:
        return ModelError(
            f"model {source}: the hub has no such model ({status}); check the name, and for a private one set HF_TOKEN"
        )
    if status >= _SERVER_FAULT or status == _RATE_LIMITED:
        return HubUnreachableError(f"model {source}: the hub could not be reached (it answers with status {status})")
    return ModelError(f"model {source}: the hub refused the request with status {status}")
