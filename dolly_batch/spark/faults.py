"""What Spark, Hadoop or the operating system say went wrong, in one line for a message."""

import re

_THROWN = re.compile(r"(?:^|[\s:])(?:[a-z_]\w*\.)+[A-Z][\w$]*(?:Exception|Error): ?")
_CLASS = re.compile(r"\b(?:[a-z_]\w*\.){2,}([A-Z]\w*?)(?:DataSource)?(?:@[0-9a-f]+)?(?![\w.])")


def reason(error: BaseException) -> str:
    """The deepest cause, without class names, stack or further lines: those may quote a cell."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason is given"]
    thrown = [line for line in lines if _THROWN.search(line) and not line.startswith("\t")]
    cause = _THROWN.split(thrown[-1] if thrown else lines[0])[-1]
    return _CLASS.sub(r"\1", cause.split(" SQLSTATE: ")[0].strip())
