"""Takes over half-done trainings from before trainings had keys of their own: their folder is named
by the artifact's key, their checkpoints by the time.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.base.checkpoint_list import list_checkpoints, whole_checkpoints
from pipeline.base.course import WORK, Course, Saved
from pipeline.base.lease import held
from pipeline.base.stage import StageContext
from pipeline.base.store import json_object, to_json


def adopt_training(context: StageContext, course: Course, former: set[str]) -> None:
    """Move what the keys in `former` have trained to this training. Raises Locked if a run of
    another version is training there.

    A checkpoint behind the trunk, or one with the adapters of an ended `dpo`, is one of the tail.
    """
    store = context.store
    for key in sorted(former):
        old, new = store.training_folder(context.stage, key), context.training_folder
        names = [n for n in whole_checkpoints(store, old) or () if Saved.parse(n) is None]
        if not names:
            continue
        with held(store, old, context.stage), held(store, new, context.stage):
            spent = (json_object(store.read(f"{old}/spent.json") or b"") or {}).get("device_hours")
            for name in names:
                files = store.list(f"{old}/{name}")
                step = _last_step(store.read(f"{old}/{name}/trace.jsonl") or b"")
                if step is None:
                    continue
                has_ended = any(PurePosixPath(file).parts[0] == "lora" for file in files)
                tail = context.key if has_ended or step > course.trunk else ""
                moved = f"{new}/{Saved(step, tail).name}"
                for file in files:
                    store.copy(f"{old}/{name}/{file}", f"{moved}/{file}")
                work = to_json({"device_hours": spent or 0.0, "micro_batch": []})
                store.write(f"{moved}/{WORK}", work)
                there = {*(whole_checkpoints(store, new) or ()), PurePosixPath(moved).name}
                list_checkpoints(store, new, sorted(there))
                store.remove(f"{old}/{name}")
            list_checkpoints(store, old, [])


def _last_step(trace: bytes) -> int | None:
    """Return the update after which a checkpoint was saved, or None if its trace is damaged."""
    lines = trace.splitlines()
    step = (json_object(lines[-1]) or {}).get("step") if lines else None
    return step if isinstance(step, int) else None
