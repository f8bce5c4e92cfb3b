"""Regular expressions of the numbers in a range, as JSON writes them: no exponent, no leading zero, few digits.

llguidance's own have as many digits behind the point as a model likes to write.
"""

from decimal import Decimal


def number_pattern(low: float, high: float, places: int) -> str:
    """A regular expression of the numbers from `low` to `high` with at most `places` digits behind the point.

    Bounds between two such numbers move inside. At least one number must lie in the range.
    """
    unit = 10**places
    least, most = -int(-Decimal(str(low)) * unit // 1), int(Decimal(str(high)) * unit // 1)
    parts = []
    if least < 0:
        parts.append(f"-{_positive(max(1, -most), -least, unit)}")
    if most >= 0:
        parts.append(_positive(max(0, least), most, unit))
    return _any(parts)


def _positive(low: int, high: int, unit: int) -> str:
    """Numbers from `low` to `high`, both in units of the last digit and 0 or more."""
    (first, low_rest), (last, high_rest) = divmod(low, unit), divmod(high, unit)
    if first == last:
        return f"{first}{_fraction(low_rest, high_rest, unit)}"
    parts = [f"{first}{_fraction(low_rest, unit - 1, unit)}", f"{last}{_fraction(0, high_rest, unit)}"]
    for length in range(len(str(first + 1)), len(str(last - 1)) + 1):
        low = max(first + 1, 10 ** (length - 1) if length > 1 else 0)
        high = min(last - 1, 10**length - 1)
        if low <= high:
            parts.append(_digits(str(low), str(high), is_fraction=False) + _fraction(0, unit - 1, unit))
    return _any(parts)


def _fraction(low: int, high: int, unit: int) -> str:
    """The point and what follows it, from `low` to `high` in units of the last digit; nothing where that is 0."""
    places = len(str(unit)) - 1
    if not places:
        return ""
    digits = rf"\.{_digits(f'{low:0{places}}', f'{high:0{places}}', is_fraction=True)}"
    return digits if low else f"({digits})?"


def _digits(low: str, high: str, *, is_fraction: bool) -> str:
    """Numbers of as many digits as `low` and `high`; of a fraction, zeros at its end may be left out, but not all."""
    num_left = len(low) - 1
    any_left = f"[0-9]{{{0 if is_fraction else num_left},{num_left}}}" if num_left else ""
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return f"[{low[0]}-{high[0]}]{any_left}"
    if low[0] == high[0]:
        return low[0] + _left(low[1:], high[1:], is_fraction)
    parts = [
        low[0] + _left(low[1:], "9" * num_left, is_fraction),
        high[0] + _left("0" * num_left, high[1:], is_fraction),
    ]
    if int(high[0]) - int(low[0]) > 1:
        parts.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}]{any_left}")
    return _any(parts)


def _left(low: str, high: str, is_fraction: bool) -> str:
    """The digits behind the first one."""
    digits = _digits(low, high, is_fraction=is_fraction)
    return f"({digits})?" if is_fraction and not int(low) else digits


def _any(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
