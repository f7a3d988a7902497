"""Ray Train's list of a training's checkpoints: a checkpoint that it names is whole.

Ray writes it in place, so a kill at that moment leaves half of it, and Ray then refuses to train
there ever again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from pipeline.base.store import ArtifactStore, json_object

_LIST = "checkpoint_manager_snapshot.json"
_RESULTS = ("checkpoint_results", "pending_training_results")


def whole_checkpoints(store: ArtifactStore, folder: str) -> list[str] | None:
    """Return the names of the checkpoints in a training's folder that were saved to the end, or
    None if the list of them is damaged.
    """
    content = store.read(f"{folder}/{_LIST}")
    if content is None:
        return []
    named = _named(json_object(content) or {})
    return None if named is None else [name for name in _there(store, folder) if name in named]


def mend_checkpoint_list(store: ArtifactStore, folder: str, warn: Callable[[str], None]) -> None:
    """Write the list of a training's folder anew, without what is no longer there, for Ray Train
    refuses a list that names it. If the list is damaged, all that are there are listed; a
    checkpoint that is itself damaged is skipped by the training, as ever.
    """
    whole = whole_checkpoints(store, folder)
    if whole is None:
        whole = _there(store, folder)
        warn(
            f"{store.url.rstrip('/')}/{folder}/{_LIST} is damaged; training resumes from the "
            f"{len(whole)} checkpoints in that folder"
        )
    list_checkpoints(store, folder, whole)


def list_checkpoints(store: ArtifactStore, folder: str, names: Sequence[str]) -> None:
    """Write the list."""
    if names:
        store.write(f"{folder}/{_LIST}", json.dumps(_listed(names)).encode())
    else:
        store.remove(f"{folder}/{_LIST}")


def _there(store: ArtifactStore, folder: str) -> list[str]:
    names = {name.split("/")[0] for name in store.list(folder) if "/" in name}
    return sorted(name for name in names if name.startswith("checkpoint_"))


def _named(content: dict[str, Any]) -> set[str] | None:
    """Return the checkpoints that a list names, or None unless Ray Train could use it."""
    try:
        named = {row["checkpoint_dir_name"] for part in _RESULTS for row in content[part]}
        latest = content["latest_checkpoint_result"]
        rows, order = content["checkpoint_results"], content["checkpoint_report_indices"]
        usable = (
            (latest is None or latest["checkpoint_dir_name"] in named)
            and all(isinstance(row["metrics"], dict) for row in rows)
            and len(rows) == len(order)
            and all(isinstance(place, int) for place in (*order, content["current_report_index"]))
            and all(isinstance(name, str) for name in named)
        )
    except (KeyError, TypeError):
        return None
    return named if usable else None


def _listed(checkpoints: Sequence[str]) -> dict[str, Any]:
    """The list as Ray Train 2.60 writes it. Its order says nothing: a training chooses by name."""
    rows = [{"checkpoint_dir_name": name, "metrics": {}} for name in checkpoints]
    return {
        "ray_version": metadata.version("ray"),
        "checkpoint_results": rows,
        "checkpoint_report_indices": list(range(len(rows))),
        "latest_checkpoint_result": rows[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(rows),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
