"""What a cascade saves on real tables, and whether it holds what it promises: many samples of each, one a seed.

    python -m benchmarks.cascade [--seeds 20] [--teachers noisy,gold,smollm2] [--tables "SMS spam,banking77"]

For each seed a sample is drawn among the different texts; the teacher answers it; the package's own training makes the
proxy and sets its bounds, with the table's other texts held out. Printed: how many calls of the model are saved (of all
texts, the sample among them), how often the proxy says what the teacher says where it answers, in how many seeds that
is at least the agreement that was asked for, and how much of it is right by the gold labels.

Teachers: `gold`, the table's labels; `noisy`, the same with errors that depend on the text (some words are always
misread, and some texts); or a model, which is asked once for each text, its answers being kept in `--answers`.
"""

import argparse
import hashlib
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import TABLES, NoTableError

HEAD = (
    "table | teacher | labels | texts | sample | agreement | calls saved | agreeing | least | seeds that hold | "
    "right: teacher | right: proxy"
)
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Taught:
    """A table's different texts, with what a teacher and gold say of each."""

    name: str
    texts: Sequence[str]
    answers: Sequence[str | None]
    gold: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """In their order."""
        return sorted(set(self.gold))


@dataclass(frozen=True)
class Outcome:
    """One seed: texts that the proxy answered, and how many of those agree with the teacher and with gold."""

    num_answered: int
    num_agreeing: int
    num_right: int

    @property
    def agreement(self) -> float:
        """1 where it answers none."""
        return self.num_agreeing / self.num_answered if self.num_answered else 1.0


def different(name: str) -> tuple[list[str], list[str]]:
    """The different texts of a table and their labels, each the first one that it has. Raises NoTableError."""
    rows: dict[str, str] = {}
    for text, label in TABLES[name]():
        rows.setdefault(text, label)
    return [*rows], [*rows.values()]


def noisy(texts: Sequence[str], gold: Sequence[str]) -> list[str]:
    """Gold labels with errors: texts whose longest word is one of 3 % of all words, and 1 % of the others."""
    labels = sorted(set(gold))
    found = []
    for text, label in zip(texts, gold, strict=True):
        is_misread = _share(max(text.lower().split() or [""], key=len)) < 0.03
        is_wrong = is_misread or _share(f"error {text}") < 0.01
        found.append(labels[(labels.index(label) + 1) % len(labels)] if is_wrong else label)
    return found


def _share(text: str) -> float:
    """A number from 0 to 1 that is always the same for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def outcome(table: Taught, sample: int, agreement: float, seed: int) -> Outcome:
    """One seed of a table."""
    from dolly_batch.cascade.training import Example, train

    drawn = set(random.Random(seed).sample(range(len(table.texts)), sample))
    examples = [Example(table.texts[at], table.answers[at]) for at in sorted(drawn)]
    proxy = train(examples, table.labels, agreement, seed)
    held_out = [at for at in range(len(table.texts)) if at not in drawn]
    answers = proxy.answers([table.texts[at] for at in held_out])
    said = [(at, answer.label) for at, answer in zip(held_out, answers, strict=True) if answer]
    agreeing = sum(label == table.answers[at] for at, label in said)
    return Outcome(len(said), agreeing, sum(label == table.gold[at] for at, label in said))


def line(table: Taught, teacher: str, sample: int, agreement: float, outcomes: Sequence[Outcome]) -> list[str]:
    """A line of the printed table."""
    num_texts = len(table.texts)
    saved = [found.num_answered / num_texts for found in outcomes]
    shares = [found.agreement for found in outcomes if found.num_answered]
    answered = sum(found.num_answered for found in outcomes)
    right = sum(found.num_right for found in outcomes)
    of_teacher = sum(map(str.__eq__, map(str, table.answers), table.gold))
    return [
        table.name,
        teacher,
        f"{len(table.labels)}",
        f"{num_texts:,}",
        f"{sample:,}",
        f"{agreement:.0%}",
        f"{sum(saved) / len(saved):.1%} ({min(saved):.1%} to {max(saved):.1%})",
        f"{sum(shares) / len(shares):.2%}" if shares else "",
        f"{min(shares):.2%}" if shares else "",
        f"{sum(found.agreement >= agreement for found in outcomes)} of {len(outcomes)}",
        f"{of_teacher / num_texts:.1%}",
        f"{right / answered:.1%}" if answered else "",
    ]


def model_answers(model: str, name: str, texts: Sequence[str], labels: Sequence[str], kept: Path) -> list[str | None]:
    """What a model says of each text, by its default settings; asked once, and kept in a file."""
    known = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    key = f"{model} {name}"
    if key not in known:
        from benchmarks.measures import Client
        from dolly_batch.engine.load import load_engine
        from dolly_batch.records import EngineSpec
        from dolly_batch.staging import stage_under
        from dolly_batch.system.user_cache import user_cache

        folder = Path(model) if Path(model).is_dir() else stage_under(model, user_cache() / "models").folder
        client = Client(load_engine(EngineSpec("auto", str(folder), quantization="int8")), folder)
        results = client.ask(client.prepare(kind="classify", labels=list(labels)), texts)
        known[key] = [result.response for result in results]
        kept.write_text(json.dumps(known), "utf-8")
    answers: list[str | None] = known[key]
    return answers


def main() -> int:
    """Run each table with each teacher, and print a line for each."""
    given = _arguments()
    lines = []
    for name in given.tables.split(","):
        try:
            texts, gold = different(name)
        except NoTableError as error:
            say(f"left out: {error}")
            continue
        for teacher in given.teachers.split(","):
            if teacher in ("gold", "noisy"):
                answers: Sequence[str | None] = gold if teacher == "gold" else noisy(texts, gold)
            else:
                answers = model_answers(teacher, name, texts, sorted(set(gold)), given.answers)
            table = Taught(name, texts, answers, gold)
            for agreement in map(float, given.agreement.split(",")):
                outcomes = [outcome(table, given.sample, agreement, seed) for seed in range(given.seeds)]
                lines.append(line(table, teacher, given.sample, agreement, outcomes))
                say(" | ".join(lines[-1]))
    print(f"\n| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}")
    for found in lines:
        print(f"| {' | '.join(found)} |")
    return 0


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:4.0f} s] {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--teachers", default="noisy,gold,smollm2", help="gold, noisy, or what `model.path` takes")
    parser.add_argument("--tables", default="SMS spam,banking77", help="of " + ", ".join(TABLES))
    parser.add_argument("--sample", type=int, default=2000)
    parser.add_argument("--agreement", default="0.95", help="one or more, with commas")
    parser.add_argument("--answers", type=Path, default=Path("cascade-answers.json"), help="where a model's are kept")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
