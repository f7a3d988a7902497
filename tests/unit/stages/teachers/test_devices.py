"""The device of a worker follows what it was given, not what the machine has."""

from __future__ import annotations

import pytest
import torch

from schemas.config import WorkerPool
from stages.teachers.devices import pool_device, worker_device


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (True, 1, "cuda"),
        (True, 0.5, "cuda"),
        (True, None, "cuda"),
        (True, 0, "cpu"),
        (False, None, "cpu"),
        (False, 0, "cpu"),
    ],
)
def test_a_gpu_is_taken_where_one_was_given(monkeypatch, visible, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert worker_device(1.0, gpus).type == expected
    assert pool_device(WorkerPool(gpus_per_worker=gpus)).type == expected
