"""How fast a training runs: samples, floating-point operations, memory, and the share of time spent
waiting for data. What is measured here depends on the machine and enters no reproducible file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import psutil
import torch

Batch = TypeVar("Batch")


class SpeedMeter:
    """Measures the updates of one worker between two calls of `take`. What lies between updates
    (looks, sample grids, checkpoints) does not count.
    """

    def __init__(
        self, device: torch.device, workers: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device, self._workers, self._clock = device, workers, clock
        self._begin()

    def fed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches. The time until one is there is waiting, that from then on until `add`
        an update.
        """
        source = iter(batches)
        while True:
            asked = self._clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._began = self._clock()
            self._waiting += self._began - asked
            yield batch

    def add(self, samples: int, flops: float) -> None:
        """Count an update that has ended: its samples and operations over all workers."""
        self._working += self._clock() - self._began
        self._samples += samples
        self._flops += flops

    def take(self) -> dict[str, float]:
        """Return what was measured since the last call, and begin anew.

        `samples_per_second` over all workers; `tflops_per_worker`, 1e12 operations of the
        transformer's forward and backward passes a second; `data_wait`, the share of time in [0, 1]
        in which this worker waited for batches; `memory_gb`, 1e9 bytes: the most that PyTorch held
        on the device, on a CPU the process's resident memory now.
        """
        seconds = max(self._waiting + self._working, 1e-9)
        measured = {
            "samples_per_second": self._samples / seconds,
            "tflops_per_worker": self._flops / self._workers / seconds / 1e12,
            "data_wait": self._waiting / seconds,
            "memory_gb": self._memory() / 1e9,
        }
        self._begin()
        return measured

    def _memory(self) -> int:
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return peak
        return int(psutil.Process().memory_info().rss)

    def _begin(self) -> None:
        self._waiting = self._working = self._flops = 0.0
        self._samples = 0
