"""What errors of Spark, Hadoop and the system say, in a line: the deepest cause, no class of Java, no cell's text."""

import re

# A condition of Spark, and what it says of it.
_CONDITION = re.compile(r"\[([A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)*)\] *(.*)")
# What Java puts before a message: `Caused by: org.apache.spark.SparkException: `, sometimes twice.
_HEAD = re.compile(r"(?:Caused by: |: )?(?:[a-z]\w*\.)+[A-Z][\w$]*(?:: | - |$)")
# The same within a line, and names of classes elsewhere in it, of which the last part is left.
_THROWN = re.compile(r"(?:^|[\s:])(?:[a-z_]\w*\.)+[A-Z][\w$]*(?:Exception|Error): ?")
_CLASS = re.compile(r"\b(?:[a-z_]\w*\.){2,}([A-Z]\w*?)(?:DataSource)?(?:@[0-9a-f]+)?(?![\w.])")
_STATE = re.compile(r"\s*SQLSTATE: (\w+);?")
_FILE = re.compile(r"reading file (\S+?)\.?(?:\s|$)")
_REMEDY = re.compile(r"Use `\w+` to tolerate[^.]*\.")
# Conditions and states of SQL whose messages quote the data: of a value (22), or a record (KD000), or the user's own.
_QUOTES_DATA = re.compile(r"MALFORMED|CANNOT_PARSE|USER_RAISED|SQLSTATE: (?:22|KD000|P0001)")


def cause(error: BaseException) -> str:
    """The deepest cause that the error gives, on one line; empty where it gives none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for head in reversed(_heads(error)):
        text = head
        while found := _HEAD.match(text):
            text = text[found.end() :]
        text = _THROWN.split(text)[-1].strip()
        if text:
            return _CLASS.sub(r"\1", _without_data(text))
    return ""


def reason(error: BaseException) -> str:
    """The cause, or that there is none."""
    return cause(error) or "no reason is given"


def is_of_data(error: BaseException) -> bool:
    """Whether a value stopped the query: one that a cast, a division or the like cannot take."""
    return any(state.startswith(("22", "P0001")) for state in _STATE.findall(str(error)))


def file_of(error: BaseException) -> str | None:
    """The file that could not be read, where Spark names it."""
    found = _FILE.search(str(error))
    return found[1] if found else None


def _heads(error: BaseException) -> list[str]:
    """The first line, and the lines that begin a cause in what Java printed; the deepest last."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("Caused by: ", ": "))]
    return [line.strip() for line in lines[:1] if not causes] + causes


def _without_data(text: str) -> str:
    found = _CONDITION.search(text)
    if found is None:
        return text
    condition, said = found.groups()
    if _QUOTES_DATA.search(text) and not condition.endswith(".CHARSET"):
        remedy = _REMEDY.search(said)
        return f"[{condition}] {remedy[0]}" if remedy else f"[{condition}]"
    return f"[{condition}] {_STATE.sub('', said)}".strip()
