"""Tells whether a process that once wrote its name down is still there, whatever the clock says."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import NamedTuple

import psutil

_MOST = 2**31
"""Process ids are smaller."""


class Place(NamedTuple):
    """Where a process id means something."""

    machine: str
    """The boot of a machine: two machines may have one name, and a restarted one has new
    processes. Where there is no boot id, the machine's name.
    """
    space: str
    """The process-id namespace: each container has a separate one."""


def here() -> Place:
    """Return the place of this process."""
    boot, space = socket.gethostname(), ""
    with contextlib.suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return Place(boot, space)


def birth(process: int) -> float | None:
    """Return when a process of this place was started, None if that cannot be read. Comparable with
    itself alone, and steady: on Linux in clock ticks since the boot, so no step of the wall clock
    moves it.
    """
    try:
        return float(_fields(process)[19])
    except (OSError, IndexError, ValueError):
        pass
    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return None


def has_ended(process: int, born: float) -> bool:
    """Whether the process of this place that was started at `born` has ended. Its id is not enough:
    another process may have it by now. One that waits for its parent to notice has ended.
    """
    if not (0 < process < _MOST and psutil.pid_exists(process)):
        return True
    with contextlib.suppress(OSError, IndexError):
        if _fields(process)[0] in ("Z", "X"):
            return True
    return birth(process) not in (born, None)


def _fields(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, which may hold anything."""
    return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
