"""A model whose scores are NaN: a SQL call's rows get the fault of its calibration, and the query lives."""

import shutil
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file

from dolly_batch.config.task import check_task
from dolly_batch.host.address import HostAddress
from dolly_batch.records import EngineSpec, GenerationParams
from dolly_batch.spark.generate.sql_call import SqlFunction, answer_calls
from dolly_batch.tiny import MODEL_FOLDER


def test_rows_of_a_call_that_cannot_be_calibrated_are_null_with_the_reason(
    tmp_path: Path, address: HostAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostAddress, "of_this_executor", lambda device: address)  # no executor is here
    folder = tmp_path / "nan"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(Path(str(MODEL_FOLDER)) / name, folder / name)
    weights = load_file(Path(str(MODEL_FOLDER)) / "model.safetensors")
    weights["gpt_neox.final_layer_norm.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"kind": "classify", "labels": ["a", "b"], "calibration": "contextual"}
    function = SqlFunction(
        kind="classify",
        settings=check_task(settings, "here"),
        spec=EngineSpec("plain", str(folder), dtype="float32", num_threads=1, idle_timeout_s=5.0),
        params=GenerationParams(do_sample=False),
        max_positions=2048,
        seed=42,
        long_prompt="error",
    )
    columns = (pandas.Series(["one", "two", None]), pandas.Series([["x", "y"]] * 3))
    (results,) = answer_calls(function, iter([columns]))
    faults = [result and (result.response, result.status, (result.error or "")[:49]) for result in results]
    reason = "task.calibration: the labels could not be calibra"
    assert faults == [(None, "model_error", reason), (None, "model_error", reason), None]
