"""What the commands let through to the terminal of what libraries and this package log."""

import logging
import socketserver
import sys
from typing import Any


def log_to_terminal() -> None:
    """Log the libraries' warnings, except py4j's: it logs a stack trace of each error that it also raises.

    And how far a run is, with the time.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_not_py4j)
    progress = logging.getLogger("dolly_batch.progress")
    if not progress.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        progress.addHandler(handler)
        progress.setLevel(logging.INFO)
        progress.propagate = False


def _not_py4j(record: logging.LogRecord) -> bool:
    return "py4j" not in record.pathname


def silence_pyspark() -> None:
    """Keep pyspark from logging the errors that it also raises, with the cells that a query stopped at; and from
    printing a stack trace where the JVM ends, which the run itself tells."""
    from pyspark import accumulators
    from pyspark.logger import PySparkLogger

    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).disabled = True
    for server in (accumulators.AccumulatorTCPServer, accumulators.AccumulatorUnixServer):
        setattr(server, "handle_error", _tell_other_errors)  # noqa: B010 - as a method of another package's


def _tell_other_errors(server: socketserver.BaseServer, request: Any, client_address: Any) -> None:
    """In place of a socket server's report on its standard error: an end of the connection is none."""
    if not isinstance(sys.exception(), (EOFError, OSError)):
        socketserver.BaseServer.handle_error(server, request, client_address)
