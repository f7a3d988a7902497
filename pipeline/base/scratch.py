"""Names for scratch folders that tell which process made them, so that what a killed one left does
not fill the disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pipeline.base.processes import birth, has_ended, here

_NAME = re.compile(r"ladd-[a-z]+-([0-9a-f]{8})-([0-9]+)-([0-9.]+)-\w+\Z")


def scratch_prefix(what: str) -> str:
    """Return the `prefix` of a folder of `tempfile`. The first call of a process removes the
    folders of processes of this machine that have ended without removing them.
    """
    return f"ladd-{what}-{_mine(os.getpid())}-"


@cache
def _mine(process: int) -> str:
    remove_left_over()
    return f"{_place()}-{process}-{birth(process) or 0.0!r}"


def remove_left_over() -> None:
    """Remove the scratch folders of processes of this place that have ended."""
    for folder in Path(tempfile.gettempdir()).glob("ladd-*"):
        found = _NAME.match(folder.name)
        if found and found[1] == _place() and has_ended(int(found[2]), float(found[3])):
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _place() -> str:
    """A digest of where process ids mean what they do here: containers may share a folder."""
    return hashlib.sha256("\n".join(here()).encode()).hexdigest()[:8]
