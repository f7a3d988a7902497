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


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """A sound file's bytes with one to eight changes: bytes replaced, cut off, left out, put in,
    or repeated. Most changes lie near the beginning, where headers are.
    """
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(
            st.sampled_from(("replace", "replace", "replace", "cut", "drop", "add", "copy"))
        )
        reach = draw(st.sampled_from((64, 512, len(changed))))
        at = draw(st.integers(0, max(0, min(reach, len(changed)) - 1)))
        length = draw(st.integers(1, 16))
        if kind == "replace":
            new = draw(st.binary(min_size=1, max_size=4))
            changed[at : at + len(new)] = new
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + length]
        elif kind == "add":
            changed[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            changed[at:at] = changed[at : at + 32 * length]
    return bytes(changed)
