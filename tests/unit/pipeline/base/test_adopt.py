"""Half-done trainings of the time when an artifact's key named them."""

from __future__ import annotations

import json

import pytest

from pipeline.base.adopt import adopt_training
from pipeline.base.checkpoint_list import list_checkpoints
from pipeline.base.course import Course, Saved, Work, saved_in
from pipeline.base.store import ArtifactStore
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config

OLD = "checkpoint_2026-11-27_19-13-0"


@pytest.fixture
def context(tmp_path):
    store = ArtifactStore(str(tmp_path))
    return make_context("dpo", make_tiny_config(tmp_path, tmp_path), store, key="now")


def test_their_checkpoints_are_those_of_trunk_and_tail(context):
    """Bug: take one behind the trunk for the trunk's; then a longer training goes on with a decayed
    rate, or with a look that it would not have taken.
    """
    store, folder = context.store, "training/dpo/former"
    for number, (step, *more) in enumerate([(4,), (6,), (8,), (6, "lora/weights")]):
        name = f"{folder}/{OLD}{number}"
        rows = [{"step": n} for n in range(1, step + 1)]
        store.write(f"{name}/trace.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
        store.write(f"{name}/state/one.safetensors", bytes([step]))
        for file in more:
            store.write(f"{name}/{file}", b"")
    store.write(f"{folder}/{OLD}9/trace.jsonl", b"")  # half uploaded
    store.write(f"{folder}/spent.json", b'{"device_hours": 2.5}')
    list_checkpoints(store, folder, [f"{OLD}{number}" for number in range(4)])
    for _ in range(2):
        adopt_training(context, Course(trunk=6, total=8), {"former", "now"})
        there = saved_in(store, context.training_folder)
        assert sorted(there) == [Saved(4), Saved(6), Saved(6, "now"), Saved(8, "now")]
    for saved in there:
        with store.local(f"{context.training_folder}/{saved.name}/work.json") as path:
            assert Work.read(path.parent) == Work(2.5)
        state = store.read(f"{context.training_folder}/{saved.name}/state/one.safetensors")
        assert state == bytes([saved.step])
    assert [name for name in store.list(folder) if name.startswith(f"{OLD}0")] == []
