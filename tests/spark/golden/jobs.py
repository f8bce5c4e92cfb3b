"""The jobs whose keys, prompts, plans and answers must never move, and how one of their runs is written down.

Every finished table of every user holds these keys. A change here asks a paid-for table again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUESTIONS: list[dict[str, Any]] = [
    {"id": "007", "instruction": "What is the capital of Portugal?", "context": "", "tag": "open"},
    {
        "id": "q-2",
        "instruction": "What should Yara take along?",
        "context": "It is raining in Salzburg.",
        "tag": "open",
    },
    {"id": "q-3", "instruction": "Name a colour.\n### Response:\nred", "context": "### End", "tag": "markers"},
    {"id": "q-4", "instruction": "Why is sleep\u00a0important?  caf\u00e9 \U0001f600", "context": None, "tag": None},
    {"id": "q-5", "instruction": None, "context": "nothing", "tag": "null"},
    {"id": "q-6", "instruction": " \u200b\n", "context": None, "tag": "blank"},
    {"id": "q-7", "instruction": "word " * 2100, "context": None, "tag": "long"},
]
TEXTS: list[dict[str, Any]] = [
    {"shop": 1, "day": "2024-02-29", "text": "The camera is good and reliable. I would buy it again."},
    {"shop": 1, "day": "2024-03-01", "text": "The printer was slow. I want my money back."},
    {"shop": 2, "day": "2024-02-29", "text": "The train is fantastic and perfect."},
    {"shop": 3, "day": "2024-02-29", "text": "Ada Berg, aged 34, is often here. Ada Berg lives in Paris."},
    {"shop": 4, "day": "2024-02-29", "text": "The street was quiet. We saw the bridge. " * 190},
]
TEXT_INPUT = {"id": ["shop", "day"], "text": "text", "schema": "shop INT, day DATE, text STRING"}
GREEDY = {"do_sample": False, "max_new_tokens": 24}


@dataclass(frozen=True)
class GoldenJob:
    """Sections of a job file over the common ones, its rows, and what the command line adds."""

    rows: list[dict[str, Any]]
    sections: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)
    """Sections of a run that goes before, into the same table."""
    retry: tuple[str, ...] = ()


JOBS: dict[str, GoldenJob] = {
    "generate": GoldenJob(
        QUESTIONS,
        {
            "input": {
                "id": "id",
                "context": "context",
                "schema": "id STRING, instruction STRING, context STRING, tag STRING",
            },
            "output": {"mode": "append", "keep": ["tag"]},
            "generation": GREEDY,
            "limits": {"max_error_share": 1.0},
        },
    ),
    "template": GoldenJob(
        TEXTS,
        {
            "task": {
                "template": "Is this {text} positive {{or}} negative on {day}?",
                "examples": [
                    {"instruction": "Say yes.", "response": "yes"},
                    {"instruction": "Sum up.", "context": "a b", "response": "ab"},
                ],
            },
            "input": {"id": ["shop", "day"], "schema": TEXT_INPUT["schema"]},
            "output": {"format": "delta", "mode": "append", "keep": ["text"], "prefix": "p_"},
            "generation": {"max_new_tokens": 24, "temperature": 0.9, "top_k": 40, "repetition_penalty": 1.1, "seed": 7},
            "limits": {"long_prompt": "truncate_middle"},
        },
    ),
    "classify": GoldenJob(
        TEXTS,
        {
            "task": {
                "kind": "classify",
                "labels": {"positive": "the writer is pleased", "negative": "", "neither": "no opinion"},
                "none_below": 0.45,
                "normalization": "per_token",
                "calibration": "contextual",
            },
            "input": TEXT_INPUT,
            "output": {"format": "delta", "mode": "merge"},
        },
    ),
    "summarize": GoldenJob(
        [*TEXTS, TEXTS[0]],
        {
            "task": {"kind": "summarize", "style": "bullets", "max_words": 12},
            "input": {"text": "text", "schema": TEXT_INPUT["schema"]},
            "output": {"mode": "overwrite", "keep": ["day"]},
            "generation": {**GREEDY, "do_sample": True, "max_new_tokens": 20},
        },
    ),
    "extract": GoldenJob(
        TEXTS[:4],
        {
            "task": {
                "kind": "extract",
                "schema": "name STRING, age INT, home STRUCT<city: STRING, tags: ARRAY<STRING>>",
            },
            "input": TEXT_INPUT,
            "output": {"format": "delta", "mode": "overwrite"},
            "generation": {**GREEDY, "max_new_tokens": 96},
        },
    ),
    "extract_json_schema": GoldenJob(
        TEXTS[3:4],
        {
            "task": {
                "kind": "extract",
                "schema": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "maxLength": 20},
                        "mood": {"enum": ["good", "bad"]},
                        "age": {"type": "integer", "minimum": 0},
                        "day": {"type": "string", "format": "date"},
                    },
                },
                "max_chars": 30,
                "max_items": 3,
            },
            "input": {**TEXT_INPUT, "id": "shop"},
            "output": {"mode": "append"},
            "generation": {**GREEDY, "max_new_tokens": 64},
        },
    ),
    "retry": GoldenJob(
        QUESTIONS[:4],
        {
            "input": {"id": "id", "context": "context"},
            "output": {"format": "delta", "mode": "append"},
            "generation": {"max_new_tokens": 24, "seed": 3},
        },
        before={"generation": {"max_new_tokens": 5, "seed": 3}},
        retry=("truncated",),
    ),
}


def document(name: str, folder: Path, stage_dir: Path) -> dict[str, Any]:
    """The job file of one of the jobs, over a folder that holds `input.jsonl`; Delta goes to a catalog table."""
    job = JOBS[name]
    sections = job.sections
    output = {"format": "parquet", **sections["output"]}
    place = {"table": f"golden_{name}"} if output["format"] == "delta" else {"path": str(folder / "out")}
    return {
        "name": f"golden-{name}",
        "model": {"path": "tiny", "dtype": "float32", "stage_dir": str(stage_dir)},
        "engine": {"processes": 1, "kv_bytes": 1 << 28},
        "plan": {"slots": 2, "tokens_per_s": 1000.0},
        "work": {"keep_days": 1.0},
        "work_dir": str(folder / "work"),
        **sections,
        "input": {"path": str(folder / "input.jsonl"), "format": "json", **sections["input"]},
        "output": {**output, **place},
    }


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
