"""The Databricks bundle: its job is what the package of Databricks takes, and every variable of it is declared."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dolly_batch.cli import _parser
from dolly_batch.config.job import load_job
from tests.conftest import PROJECT

BUNDLE = PROJECT / "databricks.yml"
JOB = PROJECT / "conf" / "databricks" / "answer_table.job.yml"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def job_of_bundle() -> dict[str, Any]:
    found: dict[str, Any] = read(JOB)["resources"]["jobs"]["answer_table"]
    return found


def parameters_with(values: dict[str, str]) -> list[str]:
    """The task's parameters, as a run with these job parameters gets them."""
    (task,) = job_of_bundle()["tasks"]
    found = []
    for parameter in task["python_wheel_task"]["parameters"]:
        for name, value in values.items():
            parameter = parameter.replace(f"{{{{job.parameters.{name}}}}}", value)
        found.append(parameter.replace("${workspace.file_path}", str(PROJECT)))
    assert not [parameter for parameter in found if "{{" in parameter or "${" in parameter]
    return found


def test_the_job_is_one_that_databricks_takes() -> None:
    jobs = pytest.importorskip("databricks.bundles.jobs")
    job = jobs.Job.from_dict(job_of_bundle())
    assert job.max_concurrent_runs == 1
    assert [task.python_wheel_task.entry_point for task in job.tasks] == ["dolly-batch"]
    with pytest.raises(ValueError, match="max_concurent_runs"):
        jobs.Job.from_dict({**job_of_bundle(), "max_concurent_runs": 1})


def test_every_variable_and_parameter_that_is_used_is_declared_and_used() -> None:
    bundle, text = read(BUNDLE), JOB.read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{var\.(\w+)\}", text)) == set(bundle["variables"])
    declared = {parameter["name"] for parameter in job_of_bundle()["parameters"]}
    assert set(re.findall(r"\{\{job\.parameters\.(\w+)\}\}", text)) == declared
    for target in bundle["targets"].values():
        with_default = {name for name, variable in bundle["variables"].items() if "default" in variable}
        # Runtimes come and go: whoever deploys names one.
        assert set(target["variables"]) | with_default | {"spark_version"} == set(bundle["variables"])
    assert all([*PROJECT.glob(pattern)] for pattern in [*bundle["include"], *bundle["sync"]["paths"]])


def test_its_command_is_one_of_ours_and_its_job_file_loads() -> None:
    values = {"input_table": "a.b.`in-1`", "output_table": "a.b.out", "model": "tiny", "work_dir": "/Volumes/a/b/c"}
    arguments = _parser().parse_args(parameters_with(values))
    assert arguments.command == "run"
    job = load_job(arguments.job, arguments.set)
    found = (job.input.table, job.output.table, job.model.path, job.work_dir)
    assert found == tuple(values.values())
    (task,) = job_of_bundle()["tasks"]
    assert task["python_wheel_task"]["entry_point"] in read_scripts()


def read_scripts() -> dict[str, str]:
    import tomllib

    project: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    scripts: dict[str, str] = project["scripts"]
    return scripts
