"""Models of ModelScope, through its own client, which is an optional package (`dolly-batch[modelscope]`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import INDEX
from dolly_batch.models.foreign import ADAPTER, refuse_adapter
from dolly_batch.staging.isolated import Log
from dolly_batch.staging.layout import PICKLE_INDEX, SMALL_FILES, find_weights


@dataclass(frozen=True)
class ModelScopeSnapshot:
    """One tag of a ModelScope repository. Its client lists no commits, so the caller has to name the tag."""

    source: str
    model_id: str
    revision: str
    hashes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def resolve(cls, source: str, model_id: str, revision: str | None) -> ModelScopeSnapshot:
        """Take the named revision. Raises ModelError without one; nothing is asked of the network yet."""
        if revision is None:
            raise ModelError(f"model {source}: name its revision too, for example v1.0.2; found none")
        return cls(source, model_id, revision)

    def fetch_small(self, into: Path) -> Path:
        """Download the config and the tokenizer's files."""
        self._fetch([*SMALL_FILES, ADAPTER], into)
        refuse_adapter(f"model {self.source}", [path.name for path in into.iterdir()])
        return into

    def fetch_weights(self, into: Path, log: Log) -> Path:
        """Download the weights: safetensors if the repository has them, else pickles."""
        log(f"downloading {self.source}, revision {self.revision}")
        self._fetch(["model*.safetensors", INDEX], into)
        if find_weights(path.name for path in into.iterdir()) is None:
            self._fetch(["pytorch_model*.bin", PICKLE_INDEX], into)
        return into

    def _fetch(self, patterns: list[str], into: Path) -> Path:
        download = _load_client(self.source)
        try:
            download(self.model_id, revision=self.revision, local_dir=str(into), allow_patterns=patterns)
        except Exception as error:  # its error classes moved between its versions; none may pass unexplained
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise
            raise ModelError(
                f"model {self.source}, revision {self.revision}: ModelScope's client could not download it "
                f"({type(error).__name__}); check name, revision and network, or name a folder"
            ) from error
        return into


def _load_client(source: str) -> Callable[..., str]:
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"model {source}: ModelScope's client is not installed; pip install dolly-batch[modelscope]"
        ) from error
    download: Callable[..., str] = snapshot_download
    return download
