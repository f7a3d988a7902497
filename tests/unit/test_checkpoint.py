"""Checkpoints as files: their size is bounded, for each is put together in memory."""

from __future__ import annotations

import torch

from stages.ladd import checkpoint


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
