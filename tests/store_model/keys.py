"""The keys of rows in plain Python. tests/spark/test_decisions.py holds them against Spark's expressions."""

import hashlib

from dolly_batch.spark.plan.keys import KEY_HEX_DIGITS, NULL_KEY


def row_key(id: str | None) -> str:
    return NULL_KEY if id is None else f"s{id}"


def request_key(header: str, instruction: str | None, context: str | None = None) -> str:
    parts = (header, instruction, context or None)
    return _hash(b"".join(b"-" if part is None else b"%d:%s" % (len(part.encode()), part.encode()) for part in parts))


def numbered_key(request: str, number: int) -> str:
    return request if number == 1 else _hash(f"{request}/{number}".encode())


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:KEY_HEX_DIGITS]
