"""Where a training's curves are shown: TensorBoard, W&B and MLflow behind one protocol.

A tracker that fails is left out with one warning, and the training goes on. No tracker is given
keys: its library takes them from the environment.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipeline.base import metrics
from pipeline.base.foreign import sentence
from pipeline.base.scratch import scratch_prefix
from pipeline.base.stage import StageContext
from schemas.base import identity_of
from schemas.config import PipelineConfig
from schemas.errors import ConfigError, LaddError
from schemas.trackers import MlflowTracker, WandbTracker

BOARD = "tensorboard"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
"""The package of each tracker that is not always installed, by the module that it brings."""


class Tracker(Protocol):
    """Shows numbers by update. Calls come in the order of the updates; after a resume, from the
    update behind the checkpoint.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def publish(self) -> None:
        """Bring what was logged to where it is kept."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told of a training."""

    id: str
    """The same at every start of one training."""
    name: str
    done: int
    """Updates before this start."""
    parameters: dict[str, Any]
    """The identity configuration of its section."""

    @classmethod
    def of(cls, context: StageContext, done: int) -> TrackedRun:
        identity = identity_of(getattr(context.config, context.stage))
        title = f"{context.config.name} {context.stage} {context.key}"
        return cls(f"{context.stage}-{context.key}", title, done, identity)


def check_trackers(config: PipelineConfig) -> None:
    """Raise ConfigError for a tracker whose package is not installed on this machine."""
    for tracker in config.trackers:
        if tracker.kind in PACKAGES and find_spec(tracker.kind) is None:
            raise ConfigError(
                f"trackers: {tracker.kind} is not installed; `pip install "
                f"{PACKAGES[tracker.kind]}`, or take it out of trackers"
            )


class Trackers:
    """All trackers of a configuration, as one `Tracker`."""

    def __init__(self, context: StageContext, done: int) -> None:
        self._context = context
        self._open: dict[str, Tracker] = {}
        run = TrackedRun.of(context, done)
        for config in context.config.trackers:
            opened = self._try(config.kind, partial(_OPEN[config.kind], config, run, context))
            if opened is not None:
                self._open[config.kind] = opened

    def log(self, step: int, values: Mapping[str, float]) -> None:
        metrics.put_training(self._context.stage, step, values)
        for kind, tracker in list(self._open.items()):
            self._try(kind, partial(tracker.log, step, values))

    def publish(self) -> None:
        for kind, tracker in list(self._open.items()):
            self._try(kind, tracker.publish)

    def close(self) -> None:
        for kind, tracker in list(self._open.items()):
            self._try(kind, tracker.close)

    def _try(self, kind: str, work: Callable[[], Any]) -> Any:
        """Do a tracker's work; leave it out if that fails. A LaddError is the store's, not its."""
        try:
            return work()
        except LaddError:
            raise
        except Exception as error:
            self._open.pop(kind, None)
            self._context.warn(
                f"{kind} gets no more curves of this training, which continues: "
                f"{without_secrets(sentence(error))}"
            )
            return None


def without_secrets(text: str) -> str:
    """Hide passwords in addresses, and the values of the environment's keys, tokens and
    passwords.
    """
    for name, value in os.environ.items():
        if name.endswith(("KEY", "TOKEN", "PASSWORD")) and len(value) >= 4:
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]*@", "://***@", text)


class TensorBoard:
    """Event files in the artifact's folder `tensorboard`."""

    def __init__(self, _config: object, run: TrackedRun, context: StageContext) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Elsewhere TensorBoard's own writer would not know what fsspec knows: keys, endpoint.
        self._context, self._scratch = context, None
        if context.store.is_local:
            where = context.store.path(f"{context.folder}/{BOARD}")
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix=scratch_prefix("tensorboard"))
            where = self._scratch.name
        self._writer = SummaryWriter(where, purge_step=run.done + 1 if run.done else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def publish(self) -> None:
        """Upload the files, where the store is not a folder."""
        if self._scratch is None:
            return
        self._writer.flush()
        for path in Path(self._scratch.name).iterdir():
            self._context.store.put(path, f"{self._context.folder}/{BOARD}/{path.name}")

    def close(self) -> None:
        self._writer.close()
        self.publish()


class Wandb:
    """A run of Weights & Biases, whose id is the training's: a resumed training continues it. W&B
    itself drops an update that it has already.
    """

    def __init__(self, config: WandbTracker, run: TrackedRun, _context: StageContext) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, init_timeout=60
        )
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            id=run.id,
            name=run.name,
            config=run.parameters,
            resume="allow" if config.mode == "online" else None,
            settings=settings,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def publish(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of MLflow, found again by a tag. What it has already is not logged twice."""

    def __init__(self, config: MlflowTracker, run: TrackedRun, _context: StageContext) -> None:
        # MLflow's own defaults try for minutes, while a training waits.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(config.uri)
        experiment = self._client.get_experiment_by_name(config.experiment)
        number = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(config.experiment)
        )
        found = self._client.search_runs([number], f"tags.training = '{run.id}'", max_results=1)
        self._logged = 0
        if found:
            self._id = found[0].info.run_id
            self._logged = int(found[0].data.metrics.get(_UPDATE, 0))
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"training": run.id}
        self._id = self._client.create_run(number, run_name=run.name, tags=tags).info.run_id
        parameters = [Param(name, str(value)[:500]) for name, value in flat(run.parameters)]
        self._client.log_batch(self._id, params=parameters)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if step <= self._logged:
            return
        now = int(1000 * time.time())
        named = {**values, _UPDATE: float(step)}
        metrics = [Metric(name, value, now, step) for name, value in named.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def publish(self) -> None:
        pass

    def close(self) -> None:
        self._client.set_terminated(self._id)


_UPDATE = "update"
"""A metric that says up to which update MLflow has the others."""


def flat(parameters: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Names and values of nested parameters, with dots between the names of levels."""
    rows = []
    for name, value in parameters.items():
        path = f"{prefix}{name}"
        rows += flat(value, f"{path}.") if isinstance(value, Mapping) else [(path, value)]
    return rows


_OPEN: dict[str, Callable[[Any, TrackedRun, StageContext], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}
