"""The device of a worker follows what it was given, not what the machine has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from schemas.errors import ConfigError
from schemas.resources import WorkerPool
from stages.teachers import devices
from stages.teachers.devices import pool_device, worker_device


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What is set here is not set for other tests."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


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


@pytest.mark.parametrize(("cpus", "allowed", "threads"), [(0.5, 8, 1), (3.0, 8, 3), (16.0, 2, 2)])
def test_threads_are_those_of_the_worker_and_no_more_than_it_may_use(
    monkeypatch, cpus, allowed, threads
):
    """Bug: start 16 threads in a job that is bound to two CPUs."""
    started: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", started.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)))
    worker_device(cpus, 0)
    assert started == [threads]


def test_a_gpu_that_torch_cannot_use_is_no_cpu(monkeypatch, tmp_path):
    """Bug: sample for days on cores, because torch came without CUDA."""
    driver = tmp_path / "nvidiactl"
    driver.touch()
    monkeypatch.setattr(devices, "_DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cannot use it; install a build of torch for CUDA"):
        worker_device(1, 1)
    assert worker_device(1, 0).type == "cpu" and worker_device(1, None).type == "cpu"


def test_the_allocator_is_told_unless_the_user_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.pop(name, None)
    worker_device(1, 1)
    assert os.environ.pop("PYTORCH_ALLOC_CONF") == "expandable_segments:True"
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "max_split_size_mb:128"
    worker_device(1, 1)
    assert "PYTORCH_ALLOC_CONF" not in os.environ


CHURN = """
import ctypes, resource, sys
from stages.teachers.devices import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()
libc, size = ctypes.CDLL(None), 20 << 20
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def churn():
    blocks = [libc.malloc(size) for _ in range(10)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)

churn()
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_freed_memory_serves_the_next_activations():
    """Bug: take the memory of each activation from the system again, 4 kB at a time."""

    def faults(*arguments: str) -> int:
        ours = {name: v for name, v in os.environ.items() if name not in devices._MALLOC}
        command = [sys.executable, "-c", CHURN, *arguments]
        return int(subprocess.run(command, env=ours, check=True, capture_output=True).stdout)

    assert faults("keep") < 1000 < 10_000 < faults()


def test_a_users_own_settings_of_malloc_stay(monkeypatch):
    monkeypatch.setitem(os.environ, "MALLOC_TRIM_THRESHOLD_", "131072")
    assert not devices.keep_freed_memory()
