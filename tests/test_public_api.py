"""The front door: what `from dolly_batch import ...` offers, and what importing the package alone does not need."""

import subprocess
import sys

import pytest

import dolly_batch
from dolly_batch import errors
from dolly_batch.report import Report

HEAVY = {"pyspark", "pandas", "pyarrow", "pydantic", "yaml", "rich", "torch", "transformers"}


@pytest.mark.parametrize("module", ["dolly_batch", "dolly_batch.errors", "dolly_batch.evaluate.report"])
def test_executors_and_hosts_import_it_without_spark_pydantic_or_rich(module: str) -> None:
    look = f"import sys, {module}\nprint(*sorted({HEAVY} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(dolly_batch, name) is not None for name in dolly_batch.__all__)
    assert set(dolly_batch.__all__) <= set(dir(dolly_batch))
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= set(dolly_batch.__all__)
    with pytest.raises(AttributeError, match="run_jobs"):
        _ = dolly_batch.run_jobs  # type: ignore[attr-defined]


@pytest.mark.parametrize(("num_errors", "exit_code"), [(0, 0), (5, 0), (6, 3)])
def test_more_errors_than_allowed_end_in_exit_3(num_errors: int, exit_code: int) -> None:
    report = Report("test", by_status={"ok": 50, "truncated": 50 - num_errors, "too_long": num_errors})
    report.check_errors(max_error_share=0.05)
    assert (report.error_share, report.exit_code) == (num_errors / 100, exit_code)


def test_a_report_without_rows_has_no_errors() -> None:
    report = Report("test")
    report.check_errors(max_error_share=0.0)
    assert (report.error_share, report.exit_code) == (0.0, 0)
