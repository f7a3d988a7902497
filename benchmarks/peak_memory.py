"""Measures the peak memory of a piece of work in three ways.

`resident_peak` is what the system sees: the growth of the process's resident set to its peak. It
needs a fresh process and an allocator that returns freed memory at once; `in_own_process` provides
both. `allocated_peak` is exact: the CPU allocator's live tensors, from torch's profiler. It
excludes what libraries allocate in addition (scratch of oneDNN and MKL, thread stacks).
`anonymous_peak` is the resident set without file pages, for work that maps files larger than what
it needs at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def allocated_peak(work: Callable[[], object]) -> int:
    """Return the peak bytes of live CPU tensors during `work`, above those alive before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def resident_peak(work: Callable[[], object]) -> int:
    """Return the largest growth of the process in bytes during `work`; with a GPU, the GPU's peak
    allocated memory instead.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def anonymous_peak(work: Callable[[], object]) -> int:
    """Return the largest growth of anonymous memory in bytes during `work`, sampled every 20 ms."""
    before = peak = _status("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - before


def in_own_process(*arguments: str) -> Any:
    """Run the calling script again with `arguments` and return the JSON of its last line."""
    command = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(
        command, env={**os.environ, **_ALLOCATOR}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _status(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024
