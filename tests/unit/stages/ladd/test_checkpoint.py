"""Checkpoints as files: their size is bounded, for each is put together in memory."""

from __future__ import annotations

import os

import pytest
import torch
from torch import distributed

from stages.ladd import checkpoint


@pytest.fixture
def one_rank():
    """A process group of one, as Ray Train makes it, and two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    torch.set_num_threads(threads)


def test_tensors_are_laid_into_several_files_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 400)
    sizes = [30, 70, 60, 200, 1, 1]  # numbers of 4 bytes: two, one, one too large alone, two
    tensors = {f"w{i}": torch.randn(size) for i, size in enumerate(sizes)}
    checkpoint.save_tensors(tmp_path, tensors)

    assert checkpoint.names_in(tmp_path) == set(tensors)
    payloads = sorted(path.stat().st_size for path in tmp_path.iterdir())
    assert len(payloads) == 4 and payloads[2] < 400 + 1024 and payloads[3] > 800
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoint.load_tensors(tmp_path, found)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_one_rank_starts_no_threads_for_its_checkpoints(one_rank, tmp_path):
    """More threads of OpenMP than cores slow down all of a training that comes after."""

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    torch.ones(400, 400) @ torch.ones(400, 400)  # the training's own
    before = threads()
    tensors = {f"w{i}": torch.ones(10) for i in range(600)}
    checkpoint.save_tensors(tmp_path, tensors)
    checkpoint.load_tensors(tmp_path, tensors)
    assert threads() == before


def test_files_that_a_mac_puts_beside_tensors_are_ignored(tmp_path):
    """Bug: open whatever ends in .safetensors; then a sound checkpoint counts as damaged."""
    tensors = {"w": torch.randn(5)}
    checkpoint.save_tensors(tmp_path, tensors)
    (own,) = tmp_path.iterdir()
    (tmp_path / f"._{own.name}").write_bytes(bytes([0, 5, 22, 7]) + bytes(4092))
    assert checkpoint.names_in(tmp_path) == {"w"}
    found = {"w": torch.zeros(5)}
    checkpoint.load_tensors(tmp_path, found)
    assert torch.equal(found["w"], tensors["w"])


@pytest.mark.parametrize("content", [b"", bytes(64), b"{}", bytes([255] * 8)])
def test_a_damaged_or_missing_checkpoint_is_named(tmp_path, content):
    checkpoint.save_tensors(tmp_path, {"w": torch.randn(5)})
    (own,) = tmp_path.iterdir()
    own.write_bytes(content)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(checkpoint.CheckpointError, match=f"the checkpoint {folder} cannot be"):
            checkpoint.load_tensors(folder, {"w": torch.zeros(5)})
