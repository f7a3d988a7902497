"""\"Did you mean\" suggestions for unknown names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, or else all known names, if any
    is known.
    """
    names = sorted(known)
    if not names:
        return ""
    nearest = get_close_matches(wrong, names, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(names)}"
