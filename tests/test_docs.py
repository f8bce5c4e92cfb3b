"""What README and docs show is true: commands the parser takes, job files that load, Python that compiles, links."""

import re
import shlex
from pathlib import Path

import pytest

from dolly_batch.cli import _parser
from dolly_batch.config.evaluation import load_evaluation
from dolly_batch.config.job import load_job
from tests.conftest import PROJECT

PAGES = sorted([PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
COMMAND = re.compile(r"^ {4}(?:\.venv/bin/)?(dolly-batch .*?)(?:  .*)?$", re.MULTILINE)
VERB = re.compile(r"`?\bmake ([a-z-]+)")
JOBS = sorted(path for path in (PROJECT / "conf").glob("*.yaml") if path.name != "evaluate.yaml")


def blocks(kind: str) -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{n}", block[1])
        for page in PAGES
        for n, block in enumerate(FENCE.findall(page.read_text()))
        if block[0] == kind
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target, _ in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_tests_that_the_page_on_reliability_names_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (PROJECT / "docs" / "reliability.md").read_text())
    assert len(named) > 40
    wrong = [pair for pair in named if f"def {pair[1]}(" not in (PROJECT / "tests" / pair[0]).read_text()]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_ones_that_the_parser_takes(page: Path) -> None:
    for line in COMMAND.findall(page.read_text()):
        words = shlex.split(re.sub(r"\[[^\]]*\]", "", line), comments=True)[1:]
        arguments = _parser().parse_args(words)
        assert arguments.command == words[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_of_make_exist(page: Path) -> None:
    verbs = set(re.findall(r"^([a-z-]+):.*##", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    shown = set(VERB.findall("\n".join(re.findall(r"`make [a-z-]+|^ {4}make .*", page.read_text(), re.MULTILINE))))
    assert shown <= verbs


@pytest.mark.parametrize(("name", "code"), blocks("python"))
def test_python_compiles(name: str, code: str) -> None:
    compile(code, name, "exec")


def test_the_job_file_of_the_readme_loads_and_shows_the_defaults(tmp_path: Path) -> None:
    (text,) = [text for name, text in blocks("yaml") if name.startswith("README")]
    (tmp_path / "job.yaml").write_text(text)
    job = load_job(tmp_path / "job.yaml")
    (tmp_path / "short.yaml").write_text(
        "name: answer-tickets\n"
        "model: {path: databricks/dolly-v2-3b}\n"
        "input: {path: instructions.parquet, format: parquet, id: ticket_id, context: context}\n"
        "output: {path: responses, keep: [category]}\n"
        "work_dir: /mnt/shared/dolly\n"
    )
    assert load_job(tmp_path / "short.yaml") == job


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_job_files_of_conf_load(path: Path) -> None:
    assert load_job(path).name


def test_the_evaluation_file_of_conf_loads() -> None:
    assert load_evaluation(PROJECT / "conf" / "evaluate.yaml").name
