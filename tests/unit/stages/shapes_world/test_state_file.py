"""State files: exact, and named where they are cut short."""

from __future__ import annotations

import pytest
import torch

from stages.shapes_world.state_file import StateFileError, load_state, save_state


def test_state_file_round_trip_is_exact(tmp_path):
    state = {
        "a": torch.randn(3, dtype=torch.bfloat16),
        "n": {0: [1, 2.5, None, True], "t": torch.tensor(3)},
    }
    save_state(tmp_path / "s.safetensors", state)
    loaded = load_state(tmp_path / "s.safetensors")
    assert torch.equal(loaded["a"], state["a"]) and loaded["a"].dtype == torch.bfloat16
    assert loaded["n"][0] == [1, 2.5, None, True] and torch.equal(loaded["n"]["t"], torch.tensor(3))
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_state_file_cut_short_is_named(tmp_path):
    save_state(tmp_path / "s.safetensors", {"a": torch.zeros(100)})
    content = (tmp_path / "s.safetensors").read_bytes()
    (tmp_path / "s.safetensors").write_bytes(content[:200])
    with pytest.raises(StateFileError, match=r"s\.safetensors cannot be read"):
        load_state(tmp_path / "s.safetensors")


def test_state_file_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="set"):
        save_state(tmp_path / "s.safetensors", {"a": {1, 2}})
