"""State files: exact, and named where they are cut short."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from stages.shapes_world.state_file import StateFileError, load_state, save_state
from stages.shapes_world.training_loop import run_training


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


@pytest.mark.parametrize("tree", [None, "", "[", "3", "[]", '{"tensor": "7"}', '{"dict": [1]}'])
def test_a_state_file_of_something_else_is_named(tmp_path, tree):
    """Bug: let a KeyError out, at each later start."""
    path = tmp_path / "s.safetensors"
    save_file({"0": torch.zeros(1)}, path, metadata=None if tree is None else {"tree": tree})
    with pytest.raises(StateFileError, match=r"s\.safetensors cannot be read.*delete it") as error:
        load_state(path)
    assert error.value.exit_code == 4


class Part:
    def state_dict(self):
        return {"w": torch.zeros(2)}

    def load_state_dict(self, state):
        if set(state) != {"w"}:
            raise RuntimeError("Unexpected key(s)")


def train(folder, steps):
    run_training("vae", folder, {"net": Part()}, steps, lambda step: {"loss": 1.0}, log_every=1)


@pytest.mark.parametrize(
    "state", [{"a": 1}, {"step": 1, "seconds": 0.0, "parts": {"net": {"v": 1}}}, {"step": 1}]
)
def test_the_state_of_another_training_is_named(tmp_path, state):
    save_state(tmp_path / "vae.safetensors", state)
    with pytest.raises(StateFileError, match=r"vae\.safetensors is of another training"):
        train(tmp_path, 2)


def test_half_a_line_of_a_log_is_dropped(tmp_path):
    """Bug: read it as JSON when the training resumes; a kill while it was written ends it all."""
    train(tmp_path, 2)
    log = tmp_path / "vae.jsonl"
    whole = log.read_text()
    log.write_bytes(whole.encode() + b'{"step": 3, "sec\n\xff\n[]\n')
    train(tmp_path, 3)
    assert log.read_text().startswith(whole) and len(log.read_text().splitlines()) == 3
