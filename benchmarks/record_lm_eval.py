"""Record what lm-evaluation-harness says: log-likelihoods and accuracies that tests hold our engine against.

    python -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install 'lm-eval[hf]==0.4.13'
    PYTHONPATH=. /tmp/lm-eval/bin/python benchmarks/record_lm_eval.py SHARED_DATA

Runs the harness' own `hf` model in float32 on the CPU, over (1) 300 requests of piqa, winogrande and hellaswag from the
request files under SHARED_DATA, for `tiny` and for random weights of pythia-70m's shape with the real tokenizer; (2)
the seven tasks as the harness itself forms them, from the sample files of this package, for `tiny`. Writes
tests/evaluate/lm_eval.json: numbers and hashes, and texts of our own samples alone.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from dolly_batch.models.folder import inspect_folder
from tests.evaluate.reference import FILES, RECORDING, SAMPLES, TINY, digest, first_rows, write_pythia_70m

TASK_FILES = {
    "openbookqa": "openbookqa/openbookqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "boolq": "super_glue/boolq/default.yaml",
}


def load_hf(folder: Path) -> Any:
    """The harness' `hf` model over a folder."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)


def score_requests(model: Any, rows: list[dict[str, Any]]) -> list[list[float]]:
    """Log-likelihoods of the rows' requests, one list a question."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", doc={}, arguments=(context, continuation), idx=index)
        for row in rows
        for index, (context, continuation) in enumerate(row["requests"])
    ]
    found = iter(model.loglikelihood(requests, disable_tqdm=True))
    return [[next(found)[0] for _ in row["requests"]] for row in rows]


def record_model(model: Any, folder: Path, data: Path) -> dict[str, Any]:
    """One model's log-likelihoods on the first questions of the request files."""
    tasks = {}
    for task in FILES:
        rows = first_rows(data, task)
        tasks[task] = {"questions": digest(rows), "log_likelihoods": score_requests(model, rows)}
    return {"identity": inspect_folder(folder).sha256, "tasks": tasks}


def record_samples(model: Any) -> dict[str, Any]:
    """The seven tasks by the harness' own code, over our sample files in place of the data sets."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = []
    for name, path in TASK_FILES.items():
        config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / path)
        file = str(SAMPLES / f"{name}.jsonl")
        config |= {"dataset_path": "json", "dataset_name": None, "task": name, "training_split": None}
        config["dataset_kwargs"] = {"data_files": {"validation": file, "test": file}}
        config.pop("tag", None)
        tasks.append(ConfigurableTask(config=config))
    found = lm_eval.simple_evaluate(model=model, tasks=tasks, num_fewshot=0, log_samples=True, bootstrap_iters=100)
    if found is None:
        raise RuntimeError("the harness returned nothing")
    result = {}
    for name in TASK_FILES:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        result[name] = {
            "requests": [[list(pair) for pair in sample["arguments"]] for sample in samples],
            "log_likelihoods": [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples],
            "metrics": {
                key.partition(",")[0]: value for key, value in found["results"][name].items() if key.startswith("acc")
            },
        }
    return result


def main() -> None:
    """Record and write."""
    data = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        pythia = write_pythia_70m(Path(folder) / "pythia-70m", data / "tokenizer" / "20B_tokenizer.json")
        models = {"pythia-70m": record_model(load_hf(pythia), pythia, data)}
    tiny = load_hf(TINY)
    models["tiny"] = record_model(tiny, TINY, data)
    versions = {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch")}
    recording = {"versions": versions, "models": models, "samples": {"model": "tiny", "tasks": record_samples(tiny)}}
    RECORDING.write_text(json.dumps(recording, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{RECORDING}: {RECORDING.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
