"""How many CPUs this process may use."""

from __future__ import annotations

import os


def own_cpus() -> int:
    """Return the CPUs of this process's affinity; where there is none (macOS), those there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
