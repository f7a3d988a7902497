"""The peak memory of a piece of work, in three ways.

`resident_peak` is what the system sees: the process's resident set at its highest, above what it
was before the work. It wants a fresh process, and an allocator that gives freed memory back at
once; `in_own_process` provides both. `allocated_peak` is exact: the tensors of the CPU allocator
that are alive at one time, from torch's profiler. It leaves out what libraries take beside it
(scratch of oneDNN and MKL, stacks of threads). `anonymous_peak` is the resident set without the
pages of files, for work that maps files larger than what it needs at once.
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
    """Bytes of CPU tensors alive at one time within `work`, above those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    found = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def resident_peak(work: Callable[[], object]) -> int:
    """Bytes by which the process grows within `work`, at most; or a GPU's memory, where there is
    one.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def anonymous_peak(work: Callable[[], object]) -> int:
    """Bytes of its own by which the process grows within `work`, at most, looked at every 20 ms."""
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
    """Run the calling script again with `arguments`, and return the JSON of its last line."""
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
