"""HTML that cannot be broken by data: what is not HTML already is escaped where it is put in."""

import re
from html import escape

_HALF = re.compile("[\ud800-\udfff]")
_EMPTY = frozenset({"meta", "br"})


class Html(str):
    """A text that is HTML."""

    __slots__ = ()


Child = str | int | None


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Html:
    """An element. Children that are None are left out; `class_` is `class`, and `_` in a name is `-`."""
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opened = "".join([f"<{name}", *(f' {key}="{_escaped(value)}"' for key, value in given), ">"])
    if name in _EMPTY:
        return Html(opened)
    return Html(f"{opened}{joined(*children)}</{name}>")


def joined(*children: Child) -> Html:
    """Children side by side."""
    return Html("".join(_html(child) for child in children if child is not None))


def _html(child: Child) -> str:
    return child if isinstance(child, Html) else _escaped(child)


def _escaped(value: str | float | None) -> str:
    """Data as a page has it; half of a surrogate pair, which JSON may hold and UTF-8 may not, as U+FFFD."""
    return _HALF.sub("\ufffd", escape(str(value), quote=True))
