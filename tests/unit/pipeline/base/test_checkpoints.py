"""What an artifact is taken from, of a checkpoint on a remote store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.base.checkpoints import folder_of
from pipeline.base.course import Saved
from pipeline.base.store import ArtifactStore
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config

SAVED = Saved(3, "")
PARTS = {
    "state/shard-00001.safetensors": ("weight", "weight.exp_avg"),
    "state/shard-00002.safetensors": ("bias", "average.weight"),
    "state/shard-00003.safetensors": ("average.bias",),
}
OTHERS = {"trace.jsonl", "lora/adapter.safetensors"}


@pytest.fixture
def fetched(tiny_sd3, tmp_path) -> Callable[..., set[str]]:
    """The files that are fetched of a checkpoint on a store."""

    def of(url: str, takes: str | None) -> set[str]:
        store = ArtifactStore(url)
        context = make_context("distill", make_tiny_config(tiny_sd3, tmp_path), store)
        where = f"{context.training_folder}/{SAVED.name}"
        for name, tensors in PARTS.items():
            save_file({tensor: np.zeros(4) for tensor in tensors}, tmp_path / "part")
            store.put(tmp_path / "part", f"{where}/{name}")
        for name in OTHERS:
            store.write(f"{where}/{name}", b"whole")
        with folder_of(context, SAVED, takes) as folder:
            paths = [path for path in folder.rglob("*") if path.is_file()]
            names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
            assert all(
                names[name] == size for name, size in store.list(where).items() if name in names
            )
            return set(names)

    return of


@pytest.mark.parametrize(
    ("takes", "parts"),
    [("", {1, 2, 3}), ("average.", {2, 3}), (None, set())],
)
def test_of_a_remote_checkpoint_only_the_files_are_fetched_that_are_needed(fetched, takes, parts):
    wanted = {name for number, name in enumerate(PARTS, 1) if number in parts}
    assert fetched(f"memory://checkpoints-{takes}", takes) == wanted | OTHERS


def test_a_checkpoint_in_a_folder_is_read_in_its_place(fetched, tmp_path):
    assert fetched(str(tmp_path / "store"), "average.") == set(PARTS) | OTHERS
