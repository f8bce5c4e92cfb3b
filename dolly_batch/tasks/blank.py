"""Blank text: nothing to see. One rule, for the JVM and for Python, since both are asked about the same rows."""

import re

# White space of any script, control and format characters (zero-width ones among them), soft hyphens, and letters that
# have no glyph (Hangul fillers, the empty Braille pattern). Java's regular expressions and Python's read it the same;
# characters beyond \uffff stand as they are, since their escapes differ.
BLANK_CHARACTERS = (
    r"\x00-\x20\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u1680\u180e\u2000-\u200f"
    r"\u2028-\u202f\u205f-\u2064\u2066-\u206f\u2800\u3000\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
)
BLANK_TEXT = f"^[{BLANK_CHARACTERS}]*+$"
"""A regular expression that a text matches as a whole exactly when it is blank."""

_matches = re.compile(BLANK_TEXT).fullmatch


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in a text."""
    return _matches(text) is not None
