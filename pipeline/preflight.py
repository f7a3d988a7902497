"""Before the first sample: whether all that a run will need is there, over all of its stages.

Everything that can be known is looked at first, and all that is missing is said at once: a wrong
number of workers must not show after a week of sampling.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.base import mapping, training
from pipeline.base.resources import Node, cluster_nodes, pool_request
from pipeline.base.sizes import size_text
from pipeline.base.store import ArtifactStore
from pipeline.base.training import TrainingPlan
from pipeline.batch_fit import Fit, largest_fit
from pipeline.dag import STAGES
from pipeline.devices import machine_memory, machine_of
from pipeline.estimates import Outlook
from pipeline.lacking import require_inputs
from pipeline.machine import can_write
from pipeline.planning import PlannedStage
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ConfigError, LaddError
from schemas.resources import Placement, WorkerPool

_MEND_ROOM = "or set costs.check_room=false if you know better"


def require_ready(
    config: PipelineConfig,
    store: ArtifactStore,
    stages: list[PlannedStage],
    ahead: Outlook | None,
    *,
    hub: Callable[[str], None] | None = None,
) -> None:
    """Raise one error for all that the stages that would run lack: the error itself if it is one.

    With `hub`, models of the hub are looked at too; it is told what is still to be downloaded.
    """
    running = [stage.name for stage in stages if stage.action == "run"]
    found = _Problems()
    with found.noted():
        require_inputs(store, config, stages)
    for name in running:
        if check := getattr(STAGES[name].module(), "check", None):
            with found.noted():
                check(config)
    if not config.ray.is_joined:
        _look_at_workers(config, running, found)
    missing = _look_at_models(config, running, found, hub) if hub is not None else 0
    with found.noted():
        _require_writable(store)
    if ahead is not None and config.costs.check_room:
        _look_at_memory(config, ahead, found)
        for need in _needs(config, store, stages, ahead, missing):
            with found.noted():
                _require_space(*need)
    found.raise_all()


def tell_of_cluster(
    config: PipelineConfig, running: Collection[str], warn: Callable[[str, str], None]
) -> None:
    """Warn, before the first sample, of trainings for which a joined cluster has no room as it is:
    it may grow until then.
    """
    if not config.ray.is_joined:
        return
    nodes = cluster_nodes()
    for name in running:
        if STAGES[name].taken:
            plan = TrainingPlan.of(getattr(config, name))
            share = training.worker_share(plan, nodes)
            room, needed = share.room(nodes), plan.min_workers or plan.workers
            if room < needed:
                warn(
                    name,
                    f"the cluster has room for {room} of {needed} workers now, each with {share}; "
                    "when the training begins, it will wait for nodes",
                )


class _Problems:
    """Collects what is wrong, each sentence once."""

    def __init__(self) -> None:
        self._found: dict[str, LaddError] = {}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except LaddError as error:
            self._found.setdefault(str(error), error)

    def raise_all(self) -> None:
        errors = list(self._found.values())
        if not errors:
            return
        if len(errors) == 1:
            raise errors[0]
        whole = ConfigError(f"{len(errors)} problems must be fixed before anything starts:")
        for number, error in enumerate(errors, 1):
            whole.add_note(f"  {number}. {error}")
        raise whole


def _look_at_workers(config: PipelineConfig, running: list[str], found: _Problems) -> None:
    """Note workers that will never fit on this machine."""
    nodes = _nodes(config)
    pools: dict[str, WorkerPool] = {}
    for name in running:
        section = getattr(config, name, None)
        if STAGES[name].taken:
            with found.noted():
                training.require_room(name, TrainingPlan.of(section), nodes)  # type: ignore[arg-type]
        if isinstance(pool := getattr(section, "pool", None), WorkerPool):
            pools[name] = pool
    if "dpo" in running:
        pools["pairs"] = config.pairs.pool
    for name, pool in pools.items():
        request = pool_request(pool.model_copy(update={"placement": Placement()}), nodes)
        if request.gpus or pool.workers > 1:  # one worker without a GPU needs no place of its own
            with found.noted():
                mapping.require_room(name, request, nodes)


def _nodes(config: PipelineConfig) -> list[Node]:
    """Return the nodes of the Ray that runs in this process, or of the one that would."""
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return cluster_nodes()
    here = machine_of(config)
    gpus = here.count if here.device.is_gpu else 0
    return [Node({"CPU": here.cores, "GPU": gpus, "memory": machine_memory()})]


def _look_at_models(
    config: PipelineConfig, running: list[str], found: _Problems, tell: Callable[[str], None]
) -> int:
    """Note models of the hub that cannot be had; return the bytes still to be downloaded."""
    wanted: dict[Any, Any] = {}
    for name in running:
        if models := getattr(STAGES[name].module(), "models", None):
            with found.noted():
                wanted |= {model.repository: model for model in reversed(models(config))}
    missing = 0
    for model in wanted.values():
        with found.noted():
            size = model.to_download()
            if size:
                tell(f"{model.model}: {size_text(size)} are downloaded from the hub")
            missing += size
    return missing


def _look_at_memory(config: PipelineConfig, ahead: Outlook, found: _Problems) -> None:
    """Note stages that need more memory than their devices have."""
    fleet = ahead.fleet
    here = machine_memory() if fleet.is_here and not fleet.device.is_gpu else 0
    has = fleet.device.memory or here
    for name, expected in ahead.stages.items():
        if expected is None or expected.device_bytes is None or not has:
            continue
        sharing = 1 if fleet.device.is_gpu else expected.workers
        needed = expected.device_bytes * sharing
        if needed > has:
            fit = largest_fit(config, name, ahead.counts, has / sharing)
            who = f"a {fleet.device.kind}" if fleet.device.is_gpu else "this machine"
            with found.noted():
                raise ConfigError(
                    f"{name}: by the estimate its workers need {_precise(needed)} of memory, and "
                    f"{who} has {_precise(has)}; {_smaller(config, name, fit)}, {_MEND_ROOM}"
                )


def _smaller(config: PipelineConfig, stage: str, fit: Fit | None) -> str:
    """Say how a stage takes less memory; `fit` is the largest micro-batch that would do."""
    ways = []
    if fit is not None:
        ways = [f"lower {stage}.micro_batch to {fit.micro_batch}"]
    if stage in ("distill", "dpo") and not getattr(config, stage).checkpoint_blocks:
        ways = [f"set {stage}.checkpoint_blocks", *ways]
    elif stage == "distill":
        ways += ["set distill.lora", "shard over more workers (distill.shard_over)"]
    return ", ".join(ways or ["use devices with more memory, or fewer workers on one machine"])


def _needs(
    config: PipelineConfig,
    store: ArtifactStore,
    stages: list[PlannedStage],
    ahead: Outlook,
    download: int,
) -> Iterator[tuple[str, Path, float, str]]:
    """Yield what is needed of each disk that is here: for what, where, bytes, and what helps."""
    known = {name: found for name, found in ahead.stages.items() if found is not None}
    if store.is_local:
        made = sum(_there(store, stage) for stage in stages if stage.name in known)
        whole = sum(found.store_bytes for found in known.values())
        yield "store", Path(store.root), whole - made, "name another store"
    if not config.ray.is_joined and ahead.fleet.is_here and known:
        most = max(found.scratch_bytes * found.workers for found in known.values())
        yield "TMPDIR", Path(tempfile.gettempdir()), most, "set TMPDIR to a larger disk"
    if download:
        from huggingface_hub import constants

        yield "HF_HOME", Path(constants.HF_HUB_CACHE), download, "set HF_HOME to a larger disk"


def _there(store: ArtifactStore, stage: PlannedStage) -> int:
    """Return the bytes that a stage has in the store already."""
    folders = [store.folder(stage.name, stage.key)]
    if stage.training:
        folders.append(store.training_folder(stage.name, stage.training))
    return sum(sum(store.list(folder).values()) for folder in folders)


def _require_space(what: str, folder: Path, needed: float, mend: str) -> None:
    place = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    disk = shutil.disk_usage(place)
    left = disk.free
    if disk.total and needed > left:  # some file systems have no size
        raise ConfigError(
            f"{what}: by the estimate the run needs {_precise(needed)} in {folder}, whose disk has "
            f"{_precise(left)} left; make room, {mend}, {_MEND_ROOM}"
        )


def _require_writable(store: ArtifactStore) -> None:
    if store.is_local and not can_write(Path(store.root)):
        raise ArtifactError(
            f"store: {store.root} cannot be written; grant this user write permission, or name "
            "another store"
        )


def _precise(number: float) -> str:
    """Return bytes with four digits: what is needed and what is there may differ in the last."""
    return size_text(number, 4)
