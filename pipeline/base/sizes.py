"""Numbers of bytes in words, as tables and messages have them."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size_text(number: float, digits: int = 3) -> str:
    """Return a number of bytes with so many digits: `28.4 MB`."""
    step = 0
    while number >= 1000 - 0.5 * 10 ** (3 - digits) and step < len(_UNITS) - 1:
        number, step = number / 1000, step + 1
    return f"{number:.0f} {_UNITS[step]}" if step == 0 else f"{number:.{digits}g} {_UNITS[step]}"
