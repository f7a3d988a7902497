"""How the tests in tests/fuzz draw their examples: few and the same ones each time in the suite,
`FUZZ_EXAMPLES` new ones each in `make fuzz`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))

fuzzed = settings(
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Put `@fuzzed` above `@given(...)`. Fixtures of function scope are not made anew for each example:
use a folder of your own (`tempfile`), or write over the same file.
"""


def fuzzed_of(kinds: int) -> settings:
    """`fuzzed` for a test that is parametrized with kinds of input: they share the examples."""
    return settings(fuzzed, max_examples=-(-EXAMPLES // kinds) or 5)


_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("replace", "replace", "replace", "cut", "drop", "add", "copy")),
        st.sampled_from((64, 512, 2**32)),
        st.integers(0, 2**32 - 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=8,
)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """A sound file's bytes with one to eight changes: bytes replaced, cut off, left out, put in,
    or repeated. Most changes lie near the beginning, where headers are.
    """
    return _CHANGES.map(lambda changes: _changed(content, changes))


def _changed(content: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    changed = bytearray(content)
    for kind, reach, place, new in changes:
        at = place % max(1, min(reach, len(changed)))
        if kind == "replace":
            changed[at : at + len(new)] = new
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + len(new)]
        elif kind == "add":
            changed[at:at] = new
        else:
            changed[at:at] = changed[at : at + 32 * len(new)]
    return bytes(changed)
