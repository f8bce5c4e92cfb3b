"""The command line: `dolly-batch run | plan | status | evaluate | report | stage-model`. jobs/ calls `main`."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NoReturn

import dolly_batch
from dolly_batch.config.evaluation import load_evaluation
from dolly_batch.config.job import JobConfig, load_job
from dolly_batch.console import (
    print_evaluation,
    print_line,
    print_plan,
    print_plans,
    print_rows,
    print_summary,
    say,
    standard_output,
)
from dolly_batch.errors import DollyBatchError, Stopped, UsageError
from dolly_batch.evaluate.report import EvaluateReport
from dolly_batch.logs import log_to_terminal, silence_pyspark
from dolly_batch.report import PlanReport, Report

DESCRIPTION = "Bulk instruction following with the Dolly family of language models over tables, on Apache Spark."
EPILOG = """exit codes: 0 complete; 2 wrong usage; 3 complete, but more errors than limits.max_error_share;
4 refused before any work, output untouched; 5 stopped, the same command resumes; 6 another start is active"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with standard_output():
        try:
            arguments = _parser().parse_args(argv)
        except UsageError as error:
            say(f"dolly-batch: {error}")
            return error.exit_code
        log_to_terminal()
        commands = {"stage-model": _stage_model, "report": _report_plans}
        return commands.get(arguments.command, _with_report)(arguments)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dolly-batch", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"dolly_batch {dolly_batch.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="answer the rows of a table; starts or resumes", epilog=EPILOG)
    _add_job(run)
    run.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows by row key")
    run.add_argument(
        "--retry",
        metavar="STATUS,...",
        help="Delta: answer rows of these statuses again; truncated answers are resumed",
    )
    run.add_argument("--abandon", action="store_true", help="close the open plan without finishing it")
    run.add_argument("--show", type=_positive, metavar="N", help="print N rows of the output at the end")

    plan = commands.add_parser("plan", help="count rows, tokens and time without generating", epilog=EPILOG)
    _add_job(plan)
    plan.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows by row key")
    plan.add_argument("--retry", metavar="STATUS,...", help="as for run")

    status = commands.add_parser("status", help="show how a job stands", epilog=EPILOG)
    _add_job(status)
    status.add_argument(
        "--full", action="store_true", help="also count the rows of the whole output, and repeated ones"
    )

    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on the model card's seven benchmarks; compare finished tables with a gold column",
        epilog=EPILOG,
    )
    _add_file(evaluate, "evaluation", "EVAL.yaml", "the evaluation file (conf/evaluate.yaml explains its keys)")
    evaluate.add_argument("--limit", type=_positive, metavar="N", help="only the first N questions of each benchmark")
    evaluate.add_argument(
        "--quantization",
        metavar="Q,...",
        help="score the model in each of these (none, int8, fp8) and compare them with the first",
    )

    stage = commands.add_parser("stage-model", help="convert a model to a checked folder of safetensors")
    stage.add_argument("source", metavar="SOURCE", help="a hub id, modelscope:ORG/NAME, a folder, or tiny")
    stage.add_argument("dest", metavar="DEST", help="the folder to create")
    stage.add_argument("--revision", help="branch, tag or commit of the hub's repository")

    reported = commands.add_parser(
        "report", help="make a page of a job's last plan (JOB.yaml), or of all plans under a work folder"
    )
    reported.add_argument(
        "of", metavar="WORK_DIR_OR_JOB", help="a job file; or the work_dir of jobs, a plain folder or a mount"
    )
    reported.add_argument(
        "--output",
        metavar="FILE",
        help="where the page is written; by default report.html of the plan's or work folder",
    )
    reported.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override a value of the job")
    reported.add_argument("--json", action="store_true", help="print the plans as one JSON list on the last line")
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    _add_file(parser, "job", "JOB.yaml", "the job file")


def _add_file(parser: argparse.ArgumentParser, name: str, metavar: str, help_text: str) -> None:
    parser.add_argument(name, metavar=metavar, help=help_text)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override a value of the file")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on the last line")


def _positive(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text}")


def _with_report(arguments: argparse.Namespace) -> int:
    """Run a command that ends in a report; every exception and every signal becomes a message and an exit code."""
    from dolly_batch.spark.signals import stopping_on_signals

    silence_pyspark()
    evaluates = arguments.command == "evaluate"
    report = EvaluateReport(name=arguments.evaluation) if evaluates else Report(name=arguments.job)
    with stopping_on_signals():
        try:
            if isinstance(report, EvaluateReport):
                _evaluate(arguments, report)
            else:
                _run(arguments, report)
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise
            _fail(error, report)
        if arguments.json:
            print_line(report.to_json())  # the contract: the last line of stdout
    return report.exit_code


def _run(arguments: argparse.Namespace, report: Report) -> None:
    """Run, plan or describe a job."""
    from dolly_batch.spark.signals import as_dolly_error

    job = load_job(arguments.job, arguments.set)
    report.name = job.name
    if arguments.command == "status":
        dolly_batch.read_status(job, arguments.full, report=report)
        print_summary(report)
        return
    retry = tuple(part.strip() for part in (arguments.retry or "").split(",") if part.strip())
    if arguments.command == "plan":
        dolly_batch.plan_job(job, dolly_batch.Options(retry, arguments.limit), report=report)
        print_plan(report)
        return
    dolly_batch.run_job(job, dolly_batch.Options(retry, arguments.limit, arguments.abandon), report=report)
    print_summary(report)
    if arguments.show:
        try:
            _show(job, arguments.show)
        except Exception as error:  # the run has ended, however that went
            say(f"--show: {as_dolly_error(error)}")


def _evaluate(arguments: argparse.Namespace, report: EvaluateReport) -> None:
    overrides = list(arguments.set)
    if arguments.limit is not None:
        overrides.append(f"limit={arguments.limit}")
    if arguments.quantization is not None:
        overrides.append(f"quantizations=[{arguments.quantization}]")
    config = load_evaluation(arguments.evaluation, overrides)
    report.name = config.name
    dolly_batch.run_evaluation(config, report=report)
    print_evaluation(report)


def _fail(error: BaseException, report: Report | EvaluateReport) -> None:
    from dolly_batch.spark.signals import as_dolly_error, ignore_signals

    if isinstance(error, KeyboardInterrupt):
        ignore_signals()  # until the process ends: pyspark's own shutdown must not be interrupted either
    known = as_dolly_error(error)
    report.outcome, report.exit_code, report.message = type(known).__name__, known.exit_code, str(known)
    if not isinstance(error, (DollyBatchError, KeyboardInterrupt)):
        logging.getLogger("dolly_batch").debug("unexpected", exc_info=error)
    say(f"dolly-batch: {known}")


def _show(job: JobConfig, num_rows: int) -> None:
    """Print rows of the output: ids, the start of the answer, and its status."""
    from pyspark.sql import SparkSession

    from dolly_batch.spark.tables.columns import first_rows
    from dolly_batch.spark.tables.input import open_input
    from dolly_batch.spark.tables.output import open_output

    spark = SparkSession.active()
    target = open_output(spark, job, open_input(spark, job))
    table = target.read()
    if table is not None:
        names = [
            *target.id_names,
            *target.kept_names,
            *(target.output_name(name) for name in ("response", "status", "error")),
        ]
        print_rows(names, first_rows(table, target.id_names, names, num_rows))


def _stage_model(arguments: argparse.Namespace) -> int:
    from dolly_batch.staging.stage import stage_to

    try:
        staged = stage_to(arguments.source, arguments.dest, arguments.revision, log=say)
    except (DollyBatchError, KeyboardInterrupt) as error:
        return _told(error)
    say(f"{staged.folder} is {staged.source} at revision {staged.revision}; give this folder as model.path")
    say(f"model.sha256: {staged.identity}")
    return 0


def _report_plans(arguments: argparse.Namespace) -> int:
    """Make a page of a job's last plan, or of all plans of a work folder."""
    try:
        plans, text, keep = _page_of(arguments)
        print_plans(plans)
        if arguments.json:
            print_line(json.dumps([asdict(plan) for plan in plans]))
        say(f"page: {_keep_page(text, arguments.output, keep)}")
    except (Exception, KeyboardInterrupt) as error:
        return _told(error)
    return 0


def _told(error: BaseException) -> int:
    """Say what has ended a command, and return its exit code."""
    from dolly_batch.spark.signals import as_dolly_error

    known = Stopped("interrupted") if isinstance(error, KeyboardInterrupt) else as_dolly_error(error)
    if not isinstance(error, (DollyBatchError, KeyboardInterrupt)):
        logging.getLogger("dolly_batch").debug("unexpected", exc_info=error)
    say(f"dolly-batch: {known}")
    return known.exit_code


def _keep_page(text: str, output: str | None, keep: Callable[[str], str]) -> str:
    """Write a page, and return where it is. Raises Stopped where it cannot be written."""
    from dolly_batch.spark.causes import reason

    try:
        if output is None:
            return keep(text)
        Path(output).write_text(text, encoding="utf-8")
    except Exception as error:  # of the system, or of Java where Hadoop alone reaches the work folder
        raise Stopped(f"the page could not be written: {reason(error)}") from error
    return output


def _page_of(arguments: argparse.Namespace) -> tuple[list[PlanReport], str, Callable[[str], str]]:
    """The plans, their page, and what writes it to its own place, which it returns."""
    from dolly_batch.page.pages import plan_page, plans_page
    from dolly_batch.spark.local_files import LocalFiles
    from dolly_batch.spark.plans import keep_page, read_last_plan, read_plans

    if Path(arguments.of).is_file() or arguments.of.endswith((".yaml", ".yml")):
        folder, plan = read_last_plan(load_job(arguments.of, arguments.set))
        return [plan], plan_page(plan), partial(keep_page, folder.files, folder.path)
    work_dir = arguments.of.removeprefix("file:")
    plans = read_plans(work_dir)
    return plans, plans_page(f"Plans under {work_dir}", plans), partial(keep_page, LocalFiles(), work_dir)


if __name__ == "__main__":
    sys.exit(main())
