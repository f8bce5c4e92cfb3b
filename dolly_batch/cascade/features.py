"""Texts as hashed n-grams: nothing of a text can be read off them, and nothing has to be fetched to make them.

scikit-learn is the extra `cascade`; where it is not installed, nothing here is called.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

BITS = 18
WORDS: dict[str, Any] = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
LETTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (3, 4)}


def hashed(texts: Sequence[str]) -> Any:
    """A sparse matrix, a row for each text: which of 2 x 2^18 hashes its words and pairs, and its letters, have."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    parts = [
        HashingVectorizer(n_features=1 << BITS, alternate_sign=False, norm=None, binary=True, **kind).transform(texts)
        for kind in (WORDS, LETTERS)
    ]
    return hstack(parts, format="csr")


def scaled(found: Any, features: np.ndarray, scales: np.ndarray) -> Any:
    """Those of the features, each times its scale, as rows of length 1; a text that has none of them stays all 0."""
    from sklearn.preprocessing import normalize

    return normalize(found[:, features].multiply(scales[None, :]).tocsr())
