"""One rule of blankness: Python's view of it. That the JVM has the same is tests/spark/test_row_status.py."""

import unicodedata

from dolly_batch.tasks.blank import is_blank


def test_white_space_control_and_format_characters_are_blank_in_any_script() -> None:
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        character = chr(code)
        invisible = character.isspace() or unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cc", "Cf")
        if invisible:
            assert is_blank(character), hex(code)
        elif unicodedata.category(character)[0] in "LNPS" and code not in (0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0):
            assert not is_blank(character), hex(code)


def test_a_text_is_blank_as_a_whole() -> None:
    assert is_blank("")
    assert is_blank(" \n\t\u200b\u3000\U000e0020")
    assert not is_blank(" \n.")
    assert not is_blank("a\n")
