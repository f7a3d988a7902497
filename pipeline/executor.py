"""Runs a plan: walks the bound Ray DAG, submits each stage as a Ray task, commits what it made.

The only module that touches Ray's DAG nodes. Stage tasks are coordinators that take no CPU; they
run on the node where the command runs: the head, in a Ray job.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import yaml

from pipeline.dag import STAGES, declare
from pipeline.lease import held
from pipeline.observe import Observer
from pipeline.planning import PlannedStage, Selection, make_plan
from pipeline.stage import StageContext, StageResult, digest_of, enter
from pipeline.store import Artifact, ArtifactStore, to_json
from schemas.config import PipelineConfig
from schemas.errors import LaddError, StageFailed
from schemas.manifest import Environment, FileEntry, InputRef, Manifest

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


@dataclass(frozen=True)
class Job:
    """What a stage task needs to know; crosses the wire."""

    config: PipelineConfig
    store: ArtifactStore
    keys: dict[str, str]
    inputs: dict[str, tuple[str, ...]]
    running: frozenset[str]
    forced: frozenset[str]
    cwd: str
    """Where relative paths of the configuration begin."""


def execute(
    config: PipelineConfig, store: ArtifactStore, plan: list[PlannedStage], observer: Observer
) -> list[dict[str, Any]]:
    """Run what the plan says; returns a row a stage: name, action, key, counts, seconds. Raises the
    first failure.

    Starts nothing when nothing is to run.
    """
    running = [stage for stage in plan if stage.action == "run"]
    rows = {
        s.name: {"stage": s.name, "action": s.action, "key": s.key, "counts": {}, "seconds": 0.0}
        for s in plan
    }
    for stage in plan:
        if stage.manifest is not None and stage.action == "done":
            rows[stage.name]["counts"] = stage.manifest.counts
    if not running:
        return list(rows.values())
    for stage in running:
        check = getattr(importlib.import_module(f"stages.{stage.name}"), "check", None)
        if check is not None:
            check(config)
    # The store must be writable before an hour of work, not after it.
    started = datetime.now(UTC)
    record = f"runs/{started:%Y%m%dT%H%M%S.%f}-{config.name}"
    summary = {
        "started": started.isoformat(),
        "command": sys.argv[1:],
        "config": config.model_dump(mode="json"),
    }
    store.write(f"{record}/run.json", to_json(summary | {"status": "running"}))
    job = Job(
        config=config,
        store=store,
        keys={s.name: s.key for s in plan},
        inputs={s.name: s.inputs for s in plan},
        running=frozenset(s.name for s in running),
        forced=frozenset(s.name for s in running if s.why == "forced"),
        cwd=os.getcwd(),
    )
    status = "failed"
    try:
        with ray_cluster(config):
            for outcome in _walk(job, observer):
                rows[outcome["stage"]] |= outcome
        status = "done"
    except StageFailed as error:
        if any(event["event"] == "failed" for event in observer.events):
            error.add_note(f"its traceback is in {store.url}/{record}/events.jsonl")
        raise
    finally:
        done = {
            "status": status,
            "ended": datetime.now(UTC).isoformat(),
            "stages": list(rows.values()),
        }
        store.write(f"{record}/run.json", to_json(summary | done))
        store.write(f"{record}/events.jsonl", b"".join(to_line(event) for event in observer.events))
    return list(rows.values())


def make(
    selection: Selection,
    stage: str,
    config: PipelineConfig,
    store: ArtifactStore,
    observer: Observer,
) -> Artifact:
    """Plan, run what the selection leaves to run, and return the artifact of `stage`. Raises the
    first failure.
    """
    plan = make_plan(config, store, selection)
    execute(config, store, plan, observer)
    artifact = store.find(stage, next(s.key for s in plan if s.name == stage))
    assert artifact is not None
    return artifact


def to_line(event: dict[str, Any]) -> bytes:
    return (json.dumps(event) + "\n").encode()


@contextlib.contextmanager
def ray_cluster(config: PipelineConfig) -> Iterator[None]:
    """Join the configured cluster, or start Ray on this machine for the time being; within another
    such block, that one's cluster serves.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "ignore_reinit_error": True,
    }
    if config.ray.address is None:
        options |= {
            "address": "local",  # without it, Ray joins what somebody else has started here
            "num_cpus": config.ray.num_cpus or os.cpu_count(),
            "include_dashboard": False,
            "object_store_memory": 512 << 20,
        }
    else:
        options["address"] = config.ray.address
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
        signal.signal(signal.SIGTERM, ours)  # Ray puts its own there
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StageFailed(
            "ray.address: cannot join or start a Ray cluster "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    try:
        _quiet_ray_data()
        yield
    finally:
        ray.shutdown()


def _quiet_ray_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _walk(job: Job, observer: Observer) -> Iterator[dict[str, Any]]:
    """Submit the bound nodes in order, upstream results as top-level arguments; yields each stage's
    outcome.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_ProgressBoard).remote()
    stage_task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(run_stage)
    nodes = declare(
        lambda name: _Bound(stage_task.options(name=name), name, job, board), job.config
    )
    references: dict[str, Any] = {}
    for name, node in nodes.items():
        if name not in job.running:
            references[node.get_stable_uuid()] = {"stage": name}
            continue
        arguments = [
            references[a.get_stable_uuid()] if hasattr(a, "get_stable_uuid") else a
            for a in node.get_args()
        ]
        references[node.get_stable_uuid()] = stage_task.options(
            **_submittable(node.get_options())
        ).remote(*arguments)
        observer.event("stage", name=name, key=job.keys[name], what="queued")
    pending = {
        references[nodes[name].get_stable_uuid()]: name for name in nodes if name in job.running
    }
    while pending:
        ready, _ = ray.wait(list(pending), timeout=0.5)
        with contextlib.suppress(ray.exceptions.RayActorError):  # progress is not worth a run
            for stage, unit, done, total in ray.get(board.drain.remote()):
                observer.progress(stage, unit, done, total)
        for reference in ready:
            name = pending.pop(reference)
            try:
                outcome = ray.get(reference)
            except LaddError as error:
                observer.record("failed", stage=name, error=str(error))
                raise _original(error) from None
            except ray.exceptions.RayError as error:
                observer.record("failed", stage=name, error=str(error))
                raise StageFailed(f"{name} failed unexpectedly: {_last_line(error)}") from error
            observer.event("done", stage=name, seconds=f"{outcome['seconds']:.0f} s")
            yield outcome


@dataclass
class _Bound:
    """Gives `declare` a `.bind()` that puts the task's own arguments before the upstream nodes."""

    task: Any
    name: str
    job: Job
    board: Any

    def bind(self, *upstream: Any) -> Any:
        return self.task.bind(self.name, self.job, self.board, *upstream)


def _submittable(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("name",) if name in options}


class _ProgressBoard:
    """An actor that collects progress from stage tasks and training workers."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], tuple[int, int]] = {}

    def post(self, stage: str, unit: str, done: int, total: int) -> None:
        self._latest[stage, unit] = (done, total)

    def drain(self) -> list[tuple[str, str, int, int]]:
        rows = [(stage, unit, *counts) for (stage, unit), counts in self._latest.items()]
        self._latest.clear()
        return rows


@dataclass(frozen=True)
class _Reporter:
    """`StageContext.report` on any node: fire and forget."""

    board: Any
    stage: str

    def __call__(self, unit: str, done: int, total: int) -> None:
        self.board.post.remote(self.stage, unit, done, total)


def run_stage(name: str, job: Job, board: Any, *_upstream: dict[str, Any]) -> dict[str, Any]:
    """The Ray task of one stage: find the inputs, do the work, commit. Runs on the head node."""
    enter(job.cwd)
    store, key = job.store, job.keys[name]
    found = store.find(name, key)
    if name in job.forced:
        _clear(store, name, key)
    elif found is not None:  # another run was faster
        return {"stage": name, "action": "done", "counts": found.manifest.counts, "seconds": 0.0}
    inputs: dict[str, Artifact] = {}
    for upstream in job.inputs[name]:
        artifact = store.find(upstream, job.keys[upstream])
        if artifact is None:
            raise StageFailed(
                f"{name}: the artifact of {upstream} has gone from {store.url} since the "
                "plan was made"
            )
        inputs[upstream] = artifact
    _begin(store, name, key, inputs)
    stage = STAGES[name]
    started, clock = datetime.now(UTC), time.monotonic()
    store.write(
        f"{store.folder(name, key)}/config.yaml",
        yaml.safe_dump(job.config.model_dump(mode="json")).encode(),
    )
    result = stage.module().run(
        StageContext(name, key, job.config, store, inputs, _Reporter(board, name))
    )
    seconds = time.monotonic() - clock
    manifest = _manifest(name, job, inputs, result, started, seconds)
    store.commit(manifest)
    return {"stage": name, "action": "ran", "counts": result.counts, "seconds": seconds}


def _begin(store: ArtifactStore, name: str, key: str, inputs: dict[str, Artifact]) -> None:
    """Throw away what an unfinished run has made of inputs that are others by now: a file of
    prompts may change, and `--force prompts` then makes others under the same key.
    """
    mark = f"{store.folder(name, key)}/inputs.json"
    files = {
        upstream: digest_of([[entry.path, entry.sha256] for entry in artifact.manifest.files])
        for upstream, artifact in inputs.items()
    }
    content = json.dumps(files, sort_keys=True).encode()
    if store.read(mark) not in (None, content):
        _clear(store, name, key)
    store.write(mark, content)


def _clear(store: ArtifactStore, name: str, key: str) -> None:
    """Remove an artifact and its training, unless another run is at it."""
    with held(store, f"training/{name}/{key}", name):
        store.remove(store.folder(name, key))
        store.remove(f"training/{name}/{key}")


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
        inputs=[InputRef(stage=i, key=a.manifest.key, digest=a.digest) for i, a in inputs.items()],
        identity=STAGES[name].identity(config),
        config=config.model_dump(mode="json"),
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
    )


def environment() -> Environment:
    """Versions of what matters, and the commit of this checkout where there is one."""
    packages = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    here = os.path.dirname(os.path.abspath(__file__))
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, no checkout
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.check_output(
            command, cwd=here, stderr=subprocess.DEVNULL, text=True
        ).strip()
    return Environment(
        python=platform.python_version(),
        packages=packages,
        git_commit=commit,
        platform=platform.platform(),
    )


def _original(error: LaddError) -> LaddError:
    """Ray wraps what a task raises in a class made on the fly; give back the plain one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LaddError) else error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
