"""What a real model answers on real tables: labels, summaries, extracted objects.

    python -m benchmarks.quality [--rows N] [--quantization none,int8] [--only classify,options,summarize,extract]

Rows go through the package's own tasks and engine, as a job's do, without Spark. Printed, each with its number of rows:

- `classify`: accuracy of label scores as the defaults have them, and calibrated on 16 other texts of the table, beside
  that of free text by the same model: the same instruction and text, greedy, 12 tokens. Free text counts as a label
  where it is that label, upper and lower case and punctuation aside, or else as the label that it names first, the
  longest of those that begin there; where it names none it is wrong. `always one` is the most frequent label's share.
- `options`: accuracy and macro-F1 with each option of label scores; the defaults were chosen by this.
- `summarize`: ROUGE against the reference, beside Hugging Face's pipeline on the same model, prompts and limit.
- `extract`: how rows ended, and how many objects break their schema, by a check of its own.

`±` is the standard error over rows. Everything is greedy, and rows are drawn with one seed.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measures import Client, classify, extract, options, piped, rouge, summarize
from benchmarks.tables import TABLES, NoTableError, abstracts, contexts, labelled
from dolly_batch.engine.load import load_engine
from dolly_batch.records import EngineSpec
from dolly_batch.staging import stage_under
from dolly_batch.system.user_cache import user_cache

HEADS = {  # of a table for each part, behind the kind of weights
    "classify": "table | rows | labels | always one | free text | names none | label scores | of 16 texts",
    "options": "table | with_end | normalization | calibration | accuracy | macro-F1",
    "summarize": "summaries | rows | ROUGE-1 | ROUGE-2 | ROUGE-L | the pipeline's text",
    "extract": "rows | ended | invalid",
}
Line = Sequence[str]
_STARTED = time.monotonic()


def main() -> int:
    """Measure each kind of weights, and print a table for each part."""
    given = _arguments()
    lines: dict[str, list[Line]] = {part: [] for part in given.only.split(",")}
    folder = Path(given.model)
    if not folder.is_dir():
        folder = stage_under(given.model, user_cache() / "models").folder
    for number, quantization in enumerate(given.quantization.split(",")):
        spec = EngineSpec("auto", str(folder), dtype=given.dtype, quantization=quantization)
        client = Client(load_engine(spec), folder)
        weights = given.dtype if quantization == "none" else quantization
        for part in lines:
            if number == 0 or part != "options":
                for line in _measured(part, client, given, is_first=number == 0):
                    lines[part].append((weights, *line))
                    say(f"{part}: {' | '.join(lines[part][-1])}")
        del client  # its processes, and their weights
    for part, found in lines.items():
        print(f"\n{part}\n")
        print_table(HEADS[part], found)
    return 0


def _measured(part: str, client: Client, given: argparse.Namespace, *, is_first: bool) -> Iterator[Line]:
    """The lines of one part; without its table there are none."""
    try:
        if part == "summarize":
            yield from _summaries(client, abstracts(given.summaries), is_first)
        elif part == "extract":
            yield extract(client, contexts(given.extractions))
        else:
            yield from _labels(part, client, given)
    except NoTableError as error:
        say(f"left out: {error}")


def _labels(part: str, client: Client, given: argparse.Namespace) -> Iterator[Line]:
    for name in given.tables.split(",") if given.tables else TABLES:
        table = labelled(name, given.rows)
        yield from options(client, table) if part == "options" else [classify(client, table)]


def _summaries(client: Client, rows: Sequence[tuple[str, str]], is_first: bool) -> Iterator[Line]:
    texts, golds = [text for text, _ in rows], [gold for _, gold in rows]
    results = summarize(client, texts)
    ours = [result.response for result in results]
    say(f"summarized: {dict(Counter(result.status for result in results))}")
    if not is_first:
        yield ["ours", f"{len(rows)}", *rouge(golds, ours), ""]
        return
    theirs = piped(client, texts)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    yield ["ours", f"{len(rows)}", *rouge(golds, ours), f"{same}"]
    yield ["pipeline", f"{len(rows)}", *rouge(golds, theirs), ""]


def print_table(head: str, lines: Sequence[Line]) -> None:
    """A Markdown table."""
    print(f"| weights | {head} |\n|{'---|' * (head.count('|') + 2)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def say(line: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:4.0f} s] {line}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a staged folder, or what `model.path` takes")
    parser.add_argument("--quantization", default="none,int8")
    parser.add_argument("--dtype", default="float32", help="of the weights that are not int8")
    parser.add_argument("--only", default=",".join(HEADS), help="parts, of " + ", ".join(HEADS))
    parser.add_argument("--tables", help="tables of labels, of " + ", ".join(TABLES))
    parser.add_argument("--rows", type=int, default=200, help="of each table of labels")
    parser.add_argument("--summaries", type=int, default=60)
    parser.add_argument("--extractions", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
