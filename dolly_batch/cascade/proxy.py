"""The proxy: a logistic regression over hashed n-grams that answers for the model where its bounds let it.

It is kept as one JSON text: labels, bounds, and arrays of numbers in base64. There is no pickle in it and no text.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dolly_batch.cascade.features import hashed, scaled
from dolly_batch.errors import Stopped

FORMAT = 1
DIGITS = 6
"""Of a probability: beyond them, processors differ."""
_TYPES = {"features": "<i4", "scales": "<f4", "weights": "<f4", "intercepts": "<f4"}


@dataclass(frozen=True)
class ProxyAnswer:
    """A label, how sure the proxy is of it, its lead over the second, and the probability of each label it knows."""

    label: str
    confidence: float
    margin: float
    shares: dict[str, float]


@dataclass(frozen=True, eq=False)
class Proxy:
    """A trained proxy.

    `labels` are its classes in the order of the weights' columns; the rows of None, whatever it stands for, go to the
    model. `bounds` are theirs, None for a label that it never answers. `features` [f] are numbers of hashes, `scales`
    [f] what each counts, `weights` [f, labels], `intercepts` [labels]. `facts` are for people.
    """

    labels: tuple[str | None, ...] = ()
    bounds: tuple[float | None, ...] = ()
    features: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    scales: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    intercepts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def answers_any(self) -> bool:
        """Whether it may answer a row at all."""
        return any(bound is not None for bound in self.bounds)

    @property
    def hash(self) -> str:
        """128 bits of what decides its answers, as hex."""
        digest = hashlib.sha256(json.dumps([FORMAT, self.labels, self.bounds]).encode())
        for name, type_ in _TYPES.items():
            digest.update(np.ascontiguousarray(getattr(self, name), type_).tobytes())
        return digest.hexdigest()[:32]

    def shares(self, texts: Sequence[str]) -> np.ndarray:
        """The probabilities of the labels, [texts, labels]; a text's are the same whatever stands beside it."""
        return softmax(scaled(hashed(texts), self.features, self.scales) @ self.weights + self.intercepts)

    def answers(self, texts: Sequence[str]) -> list[ProxyAnswer | None]:
        """The answer to each text, None for one that the model is to answer."""
        if not self.answers_any or not texts:
            return [None] * len(texts)
        return [self._answer(row) for row in self.shares(texts)]

    def _answer(self, row: np.ndarray) -> ProxyAnswer | None:
        best = int(row.argmax())
        label, bound, margin = self.labels[best], self.bounds[best], margin_of(row)
        if label is None or bound is None or margin < bound:
            return None
        shares = {name: float(value) for name, value in zip(self.labels, row, strict=True) if name is not None}
        return ProxyAnswer(label, float(row[best]), margin, shares)

    def to_text(self) -> str:
        """The proxy as JSON."""
        arrays = {}
        for name, type_ in _TYPES.items():
            array = np.ascontiguousarray(getattr(self, name), type_)
            arrays[name] = {"shape": array.shape, "values": base64.b64encode(array.tobytes()).decode("ascii")}
        document = {"format": FORMAT, "hash": self.hash, "labels": self.labels, "bounds": self.bounds}
        return json.dumps({**document, "facts": self.facts, "arrays": arrays}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> "Proxy":
        """Read a text of `to_text`. Raises Stopped for one that is not whole, or of another version."""
        try:
            document = json.loads(text)
            arrays = {
                name: np.frombuffer(base64.b64decode(document["arrays"][name]["values"]), type_).reshape(
                    document["arrays"][name]["shape"]
                )
                for name, type_ in _TYPES.items()
            }
            proxy = cls(tuple(document["labels"]), tuple(document["bounds"]), **arrays, facts=document["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise Stopped("the proxy of the cascade is not whole") from error
        if document["format"] != FORMAT or document["hash"] != proxy.hash:
            raise Stopped("the proxy of the cascade is of another version, or was changed")
        return proxy


def margin_of(shares: np.ndarray) -> float:
    """The lead of the largest share over the second one."""
    second, first = np.partition(shares, -2)[-2:]
    return round(float(first - second), DIGITS)


def softmax(values: np.ndarray) -> np.ndarray:
    """Each row as shares that sum to 1, rounded."""
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    shares: np.ndarray = np.round(weights / weights.sum(axis=1, keepdims=True), DIGITS)
    return shares
