"""\"Did you mean\" for names that are not there."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A tail for an error message: the nearest known name, else all of them."""
    names = sorted(known)
    near = get_close_matches(wrong, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"
