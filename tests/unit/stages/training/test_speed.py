"""What the speed meter counts, with a clock that the test sets."""

from __future__ import annotations

import pytest
import torch

from stages.training.speed import SpeedMeter


def test_rates_are_over_updates_and_waiting_and_leave_out_what_lies_between():
    now = 0.0
    meter = SpeedMeter(torch.device("cpu"), 2, clock=lambda: now)

    def batches():
        nonlocal now
        for seconds in (1.0, 3.0):
            now += seconds  # reading
            yield seconds

    for _ in meter.fed(batches()):
        now += 6.0  # the update
        meter.add(8, 4e12)
        now += 100.0  # a checkpoint
    measured = meter.take()
    assert measured["samples_per_second"] == pytest.approx(16 / 16)
    assert measured["tflops_per_worker"] == pytest.approx(8 / 2 / 16)
    assert measured["data_wait"] == pytest.approx(4 / 16)
    assert 0.01 < measured["memory_gb"] < 1000
    assert meter.take()["samples_per_second"] == 0
