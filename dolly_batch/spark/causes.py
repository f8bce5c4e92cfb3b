"""What errors of Spark, Hadoop and the system say, in a line: the deepest cause, no class of Java, nothing of a row.

A value that stops a query stands in its error's text, and may hold anything: line breaks, stack traces, words of Spark.
So that text is read from its beginning, and no further than the first part that may quote a value. Of that part its
condition is told, and where in the job's own SQL it was met.
"""

import builtins
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from pyspark.errors import AnalysisException, PySparkException, PythonException

from dolly_batch import errors
from dolly_batch.system.process import ProcessFailure

# A condition of Spark, and what it says of it.
_CONDITION = re.compile(r"\[([A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)*)\] *(.*)")
# A class of Java that was thrown, where it stands before its message: at a line's start, or within it.
_THROWN = re.compile(r"(?:^\(?|(?<=[\s:]))((?:[a-z_]\w*\.)+[A-Z][\w$]*)(?:\) |: ?| - |$)")
# Other classes in a line, of which the last part is left.
_CLASS = re.compile(r"\b(?:[a-z_]\w*\.){2,}([A-Z]\w*?)(?:DataSource)?(?:@[0-9a-f]+)?(?![\w.])")
_STATE = re.compile(r"\s*SQLSTATE: (\w+);?")
_FILE = re.compile(r"\[FAILED_READ_FILE[.\w]*\] Encountered error while reading file (\S+?)\.?(?:\s|$)")
# What a disk says lies below what a writer makes of it, sometimes among what it suppressed.
_OF_A_DISK = re.compile(
    r"(?:IOException|FSError|FileSystemException)[^\n]*?: "
    r"(No space left on device|Disk quota exceeded|Read-only file system|Too many open files)"
)
_WRITTEN = re.compile(r"Task failed while writing rows to (\S+?)\.?(?:\s|$)")
_TRY = re.compile(r"\b(try_[a-z_]+)\b")
_TYPES = re.compile(r'of the type ("[A-Z0-9_(), ]+") cannot be cast to ("[A-Z0-9_(), ]+")')
_PRINTED = "An error occurred while calling"  # behind it py4j has what Java printed
_TRACEBACK = "Traceback (most recent call last):"
_RAISED = re.compile(r"((?:[a-zA-Z_]\w*\.)*)([A-Z]\w*)(?:: (.*))?$")
# Conditions whose messages are about tables, files and resources, in errors that are met while rows are read.
_TOLD_CONDITIONS = re.compile(
    r"DELTA_(?!.*(?:VIOLAT|CONSTRAINT|CAST|OVERFLOW|EXCEED))|(?:\w+_)?(?:NOT_FOUND|ALREADY_EXISTS?)(?:\.|$)"
    r"|CANNOT_(?:LOAD|READ|CREATE|RENAME|DELETE|WRITE)|FAILED_(?:READ_FILE|RENAME)|TASK_WRITE_FAILED|UNABLE_TO_ACQUIRE"
    r"|UNSUPPORTED_(?!FEATURE\.(?:LITERAL|PIVOT))|JAVA_GATEWAY|PACKAGE_|(?:\w+_)?(?:NOT_SET|SESSION)$"
)
# Classes of Java whose messages are about the same, and those among them that quote what they read.
_TOLD_CLASSES = re.compile(
    r"java\.(?:io|nio\.file|net|util\.concurrent|lang\.\w*(?:OutOfMemory|ClassNotFound|NoClassDef))|javax?\."
    r"(?:net|security)|org\.apache\.(?:hadoop|spark|http)|io\.|com\.(?!fasterxml|univocity)|software\.|py4j\."
)
_UNTOLD_CLASSES = re.compile(r"Violation|BadRecord|Upgrade|Parsing|PythonException|SparkRuntime|Arithmetic|DateTime")
# Conditions that are no value's fault: of functions in Python and elsewhere, and of Spark itself.
_OF_CODE = re.compile(r"INTERNAL_ERROR|PYTHON_|FAILED_EXECUTE_UDF")


class _Part(NamedTuple):
    """A part of an error's text: what was thrown (empty where that is not said), and its message in that line."""

    thrown: str
    text: str

    @property
    def condition(self) -> str:
        found = _CONDITION.match(self.text)
        return found[1] if found else ""

    def is_told(self) -> bool:
        """Whether its message may be told: there is none, or it is not about values."""
        if not self.text:
            return True
        if self.condition:
            return _TOLD_CONDITIONS.match(self.condition) is not None
        if not self.thrown:
            return self.text.startswith("Job aborted due to stage failure")
        return bool(_TOLD_CLASSES.match(self.thrown)) and _UNTOLD_CLASSES.search(self.thrown) is None


def cause(error: BaseException) -> str:
    """The deepest cause that the error gives, on one line; empty where it gives none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if disk := of_a_disk(error):
        return disk
    said = ""
    for part in _parts(error):
        if not (part.is_told() or _is_of_the_query(error, part)):
            return _without_text(part, error)
        said = _shown(part.text) or said
    return said


def reason(error: BaseException) -> str:
    """The cause, or that there is none."""
    return cause(error) or "no reason is given"


def raised_in_task(error: BaseException) -> str | None:
    """The class and the message that a Python worker ended by, None for other errors.

    The message is left out where it may quote a row: of all classes but those of `ProcessFailure`.
    """
    lines = str(error).splitlines()
    starts = [at for at, line in enumerate(lines) if _TRACEBACK in line]
    last = next((line for line in lines[starts[-1] + 1 :] if line[:1].strip()), "") if starts else ""
    found = _RAISED.match(last)
    if found is None or not _is_of_python(error):
        return None
    module, name, message = found.groups()
    kind = getattr(errors if module.startswith("dolly_batch.") else builtins, name, None)
    is_quotable = isinstance(kind, type) and ProcessFailure.is_quotable(kind)
    if message and (is_quotable or module.startswith("torch.") or name == "PySparkRuntimeError"):
        return f"{name}: {message.strip()}"
    return f"{name} (its message may quote a row, and stands in the executor's log)" if message else name


def is_of_data(error: BaseException) -> bool:
    """Whether a value stopped the query: one that a cast, a division or the like cannot take."""
    if isinstance(error, AnalysisException) or _is_of_python(error) or of_a_disk(error):
        return False
    part = next((part for part in _parts(error) if not part.is_told()), None)
    return part is not None and bool(part.condition or part.thrown) and _OF_CODE.match(part.condition) is None


def of_a_disk(error: BaseException) -> str:
    """What a disk that is full, or takes no more files, said, and where; empty for other errors."""
    said, where = _OF_A_DISK.search(str(error)), _WRITTEN.search(str(error))
    return "" if said is None else f"{said[1]}{f' (writing {where[1]})' if where else ''}"


def file_of(error: BaseException) -> str | None:
    """The file that could not be read, where Spark names it."""
    found = _FILE.search(str(error))
    return found[1] if found else None


def _is_of_the_query(error: BaseException, part: _Part) -> bool:
    """Whether it was met before any row was read. Records are parsed before, too, where a schema is looked for."""
    return isinstance(error, AnalysisException) and not part.condition.startswith(("MALFORMED", "CANNOT_PARSE"))


def _is_of_python(error: BaseException) -> bool:
    return isinstance(error, PythonException) or "org.apache.spark.api.python.PythonException" in str(error)


def _parts(error: BaseException) -> Iterator[_Part]:
    """The first line, or the lines that begin a cause in what Java printed, in order, each taken apart."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    is_printed = bool(lines) and lines[0].startswith(_PRINTED)
    causes = [line for line in lines if is_printed and line.startswith(("Caused by: ", ": "))]
    for line in [line.removeprefix("Caused by").removeprefix(": ") for line in causes] or lines[:1]:
        thrown, at = "", 0
        for found in _THROWN.finditer(line):
            if line[at : found.start()].strip():
                yield _Part(thrown, line[at : found.start()].strip(" :"))
            thrown, at = found[1], found.end()
        yield _Part(thrown, line[at:].strip())


def _shown(text: str) -> str:
    return _CLASS.sub(r"\1", _STATE.sub("", text)).strip()


def _without_text(part: _Part, error: BaseException) -> str:
    """What a message with a value in it is about: its condition, the types of a cast, what would be null instead."""
    text = str(error)
    said = [f"[{part.condition}]" if part.condition else part.thrown.rpartition(".")[2] or type(error).__name__]
    if part.condition.startswith("CAST_INVALID") and (types := _TYPES.findall(text)):
        said.append("from {} to {}".format(*types[-1]))
    if fragment := _fragment(error):
        said.append(f"in `{fragment}`")
    instead = _TRY.findall(text)
    return " ".join(said) + (f": `{instead[-1]}` is null where a value does not fit" if instead else "")


def _fragment(error: BaseException) -> str:
    """The part of the job's own SQL that the error was met in, where Spark knows it."""
    if isinstance(error, PySparkException):
        with suppress(Exception):  # of an error that has come over from Java, whose JVM may have ended
            return " ".join(error.getQueryContext()[0].fragment().split())[:200]
    return ""
