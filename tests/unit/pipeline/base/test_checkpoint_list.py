"""Ray Train's list of checkpoints, which Ray writes in place."""

from __future__ import annotations

import json

import pytest

from pipeline.base.checkpoint_list import _LIST, mend_checkpoint_list
from pipeline.base.store import ArtifactStore

FOLDER = "training/distill/k"
NAMES = ["checkpoint_2026-11-27_19-13-03.222721", "checkpoint_2026-11-27_19-13-07.331790"]


@pytest.fixture
def manager(tmp_path):
    """Opens the folder as Ray Train does."""
    import pyarrow.fs
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    def opened():
        storage = StorageContext(
            storage_path=str(tmp_path / "training/distill"),
            experiment_dir_name="k",
            storage_filesystem=pyarrow.fs.LocalFileSystem(),
            read_only=True,
        )
        return CheckpointManager(CheckpointConfig(num_to_keep=2), storage)

    return opened


@pytest.fixture
def store(tmp_path):
    store = ArtifactStore(str(tmp_path))
    for name in NAMES:
        store.write(f"{FOLDER}/{name}/trace.jsonl", b"{}\n")
    return store


SPOILT = [
    b"",
    bytes(100),
    b'{"ray_version": "2.60.0", "checkpoint_res',
    b"[]",
    b"{}",
    json.dumps({"checkpoint_results": 3}).encode(),
]


@pytest.mark.parametrize("content", SPOILT)
def test_a_damaged_list_is_written_anew(store, manager, content):
    """Bug: leave it to Ray, which refuses this folder from then on."""
    store.write(f"{FOLDER}/{_LIST}", content)
    with pytest.raises(Exception):  # noqa: B017
        manager()
    said = []
    mend_checkpoint_list(store, FOLDER, said.append)
    assert len(said) == 1 and "resumes from the 2 checkpoints" in said[0]
    found = manager()
    assert [r.checkpoint.path.rpartition("/")[2] for r in found._checkpoint_results] == NAMES
    assert found.latest_checkpoint_result.checkpoint.path.endswith(NAMES[-1])
    mend_checkpoint_list(store, FOLDER, said.append)
    assert len(said) == 1, "what was written is sound"


def test_a_list_that_names_a_checkpoint_that_is_gone_is_written_anew(store, manager):
    """Checkpoints that nobody needs are removed behind Ray's back."""
    store.write(f"{FOLDER}/{_LIST}", b"")
    mend_checkpoint_list(store, FOLDER, [].append)
    store.remove(f"{FOLDER}/{NAMES[1]}")
    mend_checkpoint_list(store, FOLDER, pytest.fail)
    assert manager().latest_checkpoint_result.checkpoint.path.endswith(NAMES[0])


def test_without_checkpoints_a_damaged_list_goes(tmp_path, manager):
    store = ArtifactStore(str(tmp_path))
    store.write(f"{FOLDER}/{_LIST}", b"")
    mend_checkpoint_list(store, FOLDER, [].append)
    assert store.read(f"{FOLDER}/{_LIST}") is None
    assert manager().latest_checkpoint_result is None


def test_a_new_training_has_no_list(tmp_path):
    mend_checkpoint_list(ArtifactStore(str(tmp_path)), FOLDER, pytest.fail)
