"""The command line: `dolly-batch run | plan | status | evaluate | report | stage-model`. jobs/ calls `main`."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from dolly_batch import __version__
from dolly_batch.config.evaluation import load_evaluation
from dolly_batch.config.job import JobConfig, load_job
from dolly_batch.errors import DollyBatchError, UsageError
from dolly_batch.evaluate.report import EvaluateReport, print_evaluation
from dolly_batch.report import ERROR_STATUSES, Report, print_plan, print_rows, print_summary, say

EPILOG = """exit codes: 0 complete; 2 wrong usage; 3 complete, but more errors than limits.max_error_share;
4 refused before any work, output untouched; 5 stopped, the same command goes on; 6 another start is active"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        arguments = _parser().parse_args(argv)
    except UsageError as error:
        say(f"dolly-batch: {error}")
        return error.exit_code
    _log_to_terminal()
    if arguments.command == "stage-model":
        return _stage_model(arguments)
    if arguments.command == "report":
        return _report_plans(arguments)
    return _with_report(arguments)


def _log_to_terminal() -> None:
    """Warnings of the libraries, but for py4j's: it writes a stack trace of what it also raises, and we tell once."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_not_py4j)


def _not_py4j(record: logging.LogRecord) -> bool:
    return "py4j" not in record.pathname


def run_script(command: str) -> NoReturn:
    """Run one command as a script's whole work: what spark-submit starts."""
    code = main([command, *sys.argv[1:]])
    sys.stdout.flush()
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dolly-batch", description=__import__("dolly_batch").__doc__, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"dolly_batch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="answer what is left of a table; starts or goes on", epilog=EPILOG)
    _add_job(run)
    run.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows by row key")
    run.add_argument(
        "--retry", metavar="STATUS,...", help="Delta: answer rows of these statuses again; truncated ones go on"
    )
    run.add_argument("--abandon", action="store_true", help="close the open plan without finishing it")
    run.add_argument("--show", type=_positive, metavar="N", help="print N rows of the output at the end")

    plan = commands.add_parser("plan", help="count rows, tokens and time, without running anything", epilog=EPILOG)
    _add_job(plan)
    plan.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows by row key")
    plan.add_argument("--retry", metavar="STATUS,...", help="as for run")

    status = commands.add_parser("status", help="how a job stands", epilog=EPILOG)
    _add_job(status)
    status.add_argument("--full", action="store_true", help="look over the whole output, for rows that are there twice")

    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on the model card's seven benchmarks; measure finished tables against a gold column",
        epilog=EPILOG,
    )
    _add_file(evaluate, "evaluation", "EVAL.yaml", "the evaluation file (conf/evaluate.yaml explains its keys)")
    evaluate.add_argument("--limit", type=_positive, metavar="N", help="only the first N questions of each benchmark")
    evaluate.add_argument(
        "--quantization",
        metavar="Q,...",
        help="score the model in each of these (none, int8) and show what the later ones cost",
    )

    stage = commands.add_parser("stage-model", help="make a checked folder of safetensors of a model")
    stage.add_argument("source", metavar="SOURCE", help="a hub id, modelscope:ORG/NAME, a folder, or tiny")
    stage.add_argument("dest", metavar="DEST", help="the folder to make")
    stage.add_argument("--revision", help="branch, tag or commit of the hub's repository")

    reported = commands.add_parser("report", help="all plans under a work folder: a table, and a page beside them")
    reported.add_argument("work_dir", metavar="WORK_DIR", help="the work_dir of jobs, a plain folder or a mount")
    reported.add_argument("--json", action="store_true", help="print the plans as one JSON list on the last line")
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    _add_file(parser, "job", "JOB.yaml", "the job file")


def _add_file(parser: argparse.ArgumentParser, name: str, metavar: str, help_text: str) -> None:
    parser.add_argument(name, metavar=metavar, help=help_text)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="put a value over the file's")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on the last line")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


def _with_report(arguments: argparse.Namespace) -> int:
    """Run a command that ends in a report; every fault and every signal becomes a message and an exit code."""
    from dolly_batch.spark.signals import stopping_on_signals

    evaluating = arguments.command == "evaluate"
    report = EvaluateReport(name=arguments.evaluation) if evaluating else Report(name=arguments.job)
    with stopping_on_signals():
        try:
            if isinstance(report, EvaluateReport):
                _evaluate(arguments, report)
            else:
                _carry_out(arguments, report)
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise
            _fail(error, report)
        if arguments.json:
            print(report.to_json(), flush=True)  # noqa: T201 - the contract: the last line of stdout
    return report.exit_code


def _carry_out(arguments: argparse.Namespace, report: Report) -> None:
    job = load_job(arguments.job, arguments.set)
    report.name = job.name
    spark = _COMMANDS[arguments.command](job, arguments, report)
    if arguments.command == "plan":
        print_plan(report)
    else:
        print_summary(report)
    if getattr(arguments, "show", None):
        _show(spark, job, arguments.show)


def _evaluate(arguments: argparse.Namespace, report: EvaluateReport) -> None:
    overrides = list(arguments.set)
    if arguments.limit is not None:
        overrides.append(f"limit={arguments.limit}")
    if arguments.quantization is not None:
        overrides.append(f"quantizations=[{arguments.quantization}]")
    config = load_evaluation(arguments.evaluation, overrides)
    report.name = config.name
    from dolly_batch.evaluate.run import run_evaluation

    run_evaluation(config, report)
    print_evaluation(report)


def _fail(error: BaseException, report: Report | EvaluateReport) -> None:
    from dolly_batch.spark.signals import as_dolly_error, pass_over_signals

    if isinstance(error, KeyboardInterrupt):
        pass_over_signals()  # for as long as the process lasts: pyspark has something to do at its end, too
    fault = as_dolly_error(error)
    report.outcome, report.exit_code, report.message = type(fault).__name__, fault.exit_code, str(fault)
    if not isinstance(error, (DollyBatchError, KeyboardInterrupt)):
        logging.getLogger("dolly_batch").debug("unexpected", exc_info=error)
    say(f"dolly-batch: {fault}")


def _options(arguments: argparse.Namespace) -> Any:
    from dolly_batch.spark.run import Options

    retry = tuple(part.strip() for part in (getattr(arguments, "retry", None) or "").split(",") if part.strip())
    return Options(retry, getattr(arguments, "limit", None), getattr(arguments, "abandon", False))


def _run(job: JobConfig, arguments: argparse.Namespace, report: Report) -> Any:
    from dolly_batch.spark.run import run_job

    return run_job(job, _options(arguments), report)


def _plan(job: JobConfig, arguments: argparse.Namespace, report: Report) -> Any:
    from dolly_batch.spark.run import plan_job

    return plan_job(job, _options(arguments), report)


def _status(job: JobConfig, arguments: argparse.Namespace, report: Report) -> Any:
    from dolly_batch.spark.status import read_status

    return read_status(job, arguments.full, report)


_COMMANDS: dict[str, Callable[[JobConfig, argparse.Namespace, Report], Any]] = {
    "run": _run,
    "plan": _plan,
    "status": _status,
}


def _show(spark: Any, job: JobConfig, num_rows: int) -> None:
    """Print rows of the output: ids, the start of the answer, and its status."""
    from dolly_batch.spark.tables.columns import first_rows
    from dolly_batch.spark.tables.input import open_input
    from dolly_batch.spark.tables.output import open_output

    target = open_output(spark, job, open_input(spark, job))
    table = target.read()
    if table is not None:
        names = [*target.id_names, *target.kept_names, *(target.own(name) for name in ("response", "status", "error"))]
        print_rows(names, first_rows(table, target.id_names, names, num_rows))


def _stage_model(arguments: argparse.Namespace) -> int:
    from dolly_batch.staging.stage import stage_to

    try:
        staged = stage_to(arguments.source, arguments.dest, arguments.revision, log=say)
    except DollyBatchError as error:
        say(f"dolly-batch: {error}")
        return error.exit_code
    say(f"{staged.folder} is {staged.source} at revision {staged.revision}; give this folder as model.path")
    return 0


def _report_plans(arguments: argparse.Namespace) -> int:
    from dolly_batch.report_page import plans_page, print_plans
    from dolly_batch.spark.overview import read_plans

    work_dir = arguments.work_dir.removeprefix("file:")
    try:
        plans = read_plans(work_dir)
    except DollyBatchError as error:
        say(f"dolly-batch: {error}")
        return error.exit_code
    print_plans(plans)
    page = Path(work_dir, "report.html")
    try:
        page.write_text(plans_page(f"Plans under {work_dir}", plans, ERROR_STATUSES), encoding="utf-8")
        say(f"page: {page}")
    except OSError as error:
        say(f"dolly-batch: {page} could not be written: {error}")
    if arguments.json:
        print(json.dumps([asdict(plan) for plan in plans]), flush=True)  # noqa: T201 - as above
    return 0


if __name__ == "__main__":
    sys.exit(main())
