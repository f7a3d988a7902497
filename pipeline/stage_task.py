"""The Ray task of one stage: finds its inputs, does the work, commits the artifact."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from pipeline.base import retries
from pipeline.base.adopt import adopt_training
from pipeline.base.claims import Crew, MadeElsewhere
from pipeline.base.guarded import GuardedStore
from pipeline.base.lease import clear
from pipeline.base.lineage import contents_of
from pipeline.base.stage import StageContext, StageResult, enter
from pipeline.base.store import Artifact, ArtifactStore, json_object
from pipeline.board import Reporter, ShardTeller, Speaker
from pipeline.dag import STAGES
from pipeline.devices import cluster_devices
from pipeline.outside import Seen, require_unchanged
from schemas.config import PipelineConfig
from schemas.errors import StageFailed
from schemas.manifest import Environment, Expected, FileEntry, InputRef, Manifest

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "ray",
    "pyarrow",
    "numpy",
    "pillow",
    "ladd-pipeline",
)

REVISION = "LADD_REVISION"
"""The variable by which an image names the commit that it was built from."""


@dataclass(frozen=True)
class Job:
    """What a stage task needs; it is serialised and sent to the task."""

    config: PipelineConfig
    store: ArtifactStore
    keys: dict[str, str]
    trainings: dict[str, str]
    """The training's key of each stage that trains; empty for the others."""
    inputs: dict[str, tuple[str, ...]]
    accepted: dict[str, str]
    """Why artifacts were declared good for this configuration; empty for what was made for it."""
    outside: dict[str, Seen]
    """Fingerprints of what each stage reads outside the store, as the keys have them."""
    running: frozenset[str]
    forced: frozenset[str]
    repairs: dict[str, frozenset[str]]
    """The damaged files of artifacts that are there; these alone are made again."""
    expected: dict[str, Expected]
    """What each running stage is expected to take, where that is known."""
    cwd: str
    """The folder that relative paths in the configuration start from."""


def run_stage(name: str, job: Job, board: Any, *_upstream: dict[str, Any]) -> dict[str, Any]:
    """The Ray task of one stage, which takes what another run commits. Runs on the head node."""
    enter(job.cwd)
    store, key = job.store, job.keys[name]
    note = Speaker(board, name, "note")
    try:
        is_forced = name in job.forced
        again = is_forced or name in job.repairs
        with Crew(store, name, key, job.config.on_conflict, note, again=again) as crew:
            if is_forced:  # its manifest may be damaged
                crew.wait_until_alone()
                crew.finish()
                for made in filter(None, (key, job.trainings[name])):
                    clear(store, name, made)
            elif not again and store.find(name, key) is not None:
                raise MadeElsewhere
            return _make(name, job, board, crew)
    except MadeElsewhere:
        found = store.find(name, key)
        counts = found.manifest.counts if found is not None else {}
        return {"stage": name, "action": "done", "counts": counts, "seconds": 0.0}


def _make(name: str, job: Job, board: Any, crew: Crew) -> dict[str, Any]:
    """Find the inputs, do the work, commit. Raises MadeElsewhere if another run has committed."""
    store, key, training = job.store, job.keys[name], job.trainings[name]
    stage, found, tried_before = STAGES[name], None, retries.total()
    if stage.in_shards:
        crew.join()
    else:
        crew.finish()
    inputs = _inputs(name, job)
    warn, note = Speaker(board, name, "warning"), Speaker(board, name, "note")
    if name in job.repairs and (found := store.find(name, key)) is not None:
        store = GuardedStore.of(found, job.repairs[name])
        inputs = {above: replace(artifact, store=store) for above, artifact in inputs.items()}
    else:
        _begin(store, name, key, training, inputs, warn)
    started, clock = datetime.now(UTC), time.monotonic()
    if found is None:
        store.write(
            f"{store.folder(name, key)}/config.yaml",
            yaml.safe_dump(job.config.recorded()).encode(),
        )
    context = StageContext(
        stage=name,
        key=key,
        training=training,
        config=job.config,
        store=store,
        inputs=inputs,
        report=Reporter(board, name),
        warn=warn,
        note=note,
        tell_shard=ShardTeller(board, name),
        crew=crew,
    )
    if training:
        above = [artifact.manifest.key for artifact in inputs.values()]
        former = stage.key(job.config, above, job.outside[name], former=True)
        adopt_training(context, stage.module().course(job.config), {key, former})
    result = stage.module().run(context)
    seconds = time.monotonic() - clock
    require_unchanged(stage, job.config, job.outside[name])
    crew.finish()
    if found is None:
        store.commit(_manifest(name, job, inputs, result, started, seconds))
    action = "ran" if found is None else "repaired"
    return {
        "stage": name,
        "action": action,
        "counts": result.counts,
        "seconds": seconds,
        "retries": retries.total() - tried_before,
    }


def _inputs(name: str, job: Job) -> dict[str, Artifact]:
    inputs: dict[str, Artifact] = {}
    for upstream in job.inputs[name]:
        artifact = job.store.find(upstream, job.keys[upstream])
        if artifact is None:
            raise StageFailed(
                f"{name}: the artifact of {upstream} has disappeared from {job.store.url} "
                "since the plan was made"
            )
        inputs[upstream] = replace(artifact, accepted=job.accepted[upstream])
    return inputs


def _begin(
    store: ArtifactStore,
    name: str,
    key: str,
    training: str,
    inputs: dict[str, Artifact],
    warn: Callable[[str], None],
) -> None:
    """Delete what an unfinished run or a training made if its inputs have changed since: `--force`
    may have made them again, with another version of a library say, under the same key.
    """
    marks = {key: f"{store.folder(name, key)}/inputs.json"}
    if training:
        marks[training] = f"{store.training_folder(name, training)}/inputs.json"
    files = {upstream: contents_of(artifact) for upstream, artifact in inputs.items()}
    for made, mark in marks.items():
        left = store.read(mark)
        if left is not None and (known := json_object(left)) != files:
            if known is None:
                warn(
                    f"{store.url.rstrip('/')}/{mark} cannot be read, so the inputs of an "
                    "unfinished run are unknown; its files are made again"
                )
            clear(store, name, made)
        store.write(mark, json.dumps(files, sort_keys=True).encode())


def _manifest(
    name: str,
    job: Job,
    inputs: dict[str, Any],
    result: StageResult,
    started: datetime,
    seconds: float,
) -> Manifest:
    config = job.config
    return Manifest(
        stage=name,
        key=job.keys[name],
        version=STAGES[name].version,
        inputs=[
            InputRef(stage=i, key=a.manifest.key, digest=a.digest, accepted=a.accepted)
            for i, a in inputs.items()
        ],
        identity=STAGES[name].identity(config),
        outside=job.outside[name],
        config=config.recorded(),
        environment=environment(),
        counts=result.counts,
        metrics=result.metrics,
        details=result.details,
        files=[
            FileEntry(path=p, size=size, sha256=digest)
            for p, (size, digest) in sorted(result.files.items())
        ],
        started=started.isoformat(),
        seconds=round(seconds, 3),
        device_hours=round(result.device_hours, 6),
        devices=cluster_devices(job.expected.get(name)),
    )


def environment() -> Environment:
    """Return the versions of the main packages, and the commit of this checkout or this image."""
    packages = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    return Environment(
        python=platform.python_version(),
        packages=packages,
        git_commit=_commit(Path(__file__).resolve().parents[1]) or os.environ.get(REVISION) or None,
        platform=platform.platform(),
    )


def _commit(root: Path) -> str | None:
    """Return the commit of our checkout at `root`. None where it is another's: a repository may
    hold the virtual environment that we are installed in.
    """
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    with contextlib.suppress(OSError, ValueError, subprocess.CalledProcessError):  # none, no git
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        said = subprocess.check_output(command, cwd=root, stderr=subprocess.DEVNULL, text=True)
        top, commit = said.splitlines()
        if project["name"] == "ladd-pipeline" and root.samefile(top):
            return commit
    return None
