"""Ray Train's list of a training's checkpoints. Ray writes it in place, so a kill at that moment
leaves half of it, and Ray then refuses to train there ever again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

from pipeline.base.store import ArtifactStore, json_object

_LIST = "checkpoint_manager_snapshot.json"
_RESULTS = ("checkpoint_results", "pending_training_results")


def mend_checkpoint_list(store: ArtifactStore, folder: str, warn: Callable[[str], None]) -> None:
    """Write the list of a training's folder anew, from the checkpoints that are there, if Ray Train
    could not use it. A checkpoint that is itself damaged is skipped by the training, as ever.
    """
    content = store.read(f"{folder}/{_LIST}")
    if content is None:
        return
    there = sorted({name.split("/")[0] for name in store.list(folder) if "/" in name})
    checkpoints = [name for name in there if name.startswith("checkpoint_")]
    if _is_usable(json_object(content) or {}, checkpoints):
        return
    warn(
        f"{store.url.rstrip('/')}/{folder}/{_LIST} is damaged or names checkpoints that are gone; "
        f"training goes on from the {len(checkpoints)} checkpoints in that folder"
    )
    if checkpoints:
        store.write(f"{folder}/{_LIST}", json.dumps(_listed(checkpoints)).encode())
    else:
        store.remove(f"{folder}/{_LIST}")


def _is_usable(content: dict[str, Any], checkpoints: list[str]) -> bool:
    try:
        named = {row["checkpoint_dir_name"] for part in _RESULTS for row in content[part]}
        latest = content["latest_checkpoint_result"]
        rows, order = content["checkpoint_results"], content["checkpoint_report_indices"]
        return (
            named <= {*checkpoints}
            and (latest is None or latest["checkpoint_dir_name"] in named)
            and all(isinstance(row["metrics"], dict) for row in rows)
            and len(rows) == len(order)
            and all(isinstance(place, int) for place in (*order, content["current_report_index"]))
        )
    except (KeyError, TypeError):
        return False


def _listed(checkpoints: list[str]) -> dict[str, Any]:
    """The list as Ray Train 2.60 writes it, with the checkpoints in the order of their names, which
    begin with the time.
    """
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
