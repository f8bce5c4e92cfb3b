"""The kinds of task: what to ask the engine for a row, and how to read its answer. Pure Python and `prompt`.

To add a kind, write its file (settings, columns, how it is asked, how its answers are read) and add it to `KINDS`: the
job file, the SQL functions, the plan's keys and the output's columns follow from that.
"""

from dolly_batch.tasks.base import TaskKind
from dolly_batch.tasks.classify import ClassifyKind
from dolly_batch.tasks.extract import ExtractKind
from dolly_batch.tasks.generate import GenerateKind
from dolly_batch.tasks.summarize import SummarizeKind

KINDS: dict[str, TaskKind] = {
    kind.name: kind for kind in (GenerateKind(), ClassifyKind(), SummarizeKind(), ExtractKind())
}
