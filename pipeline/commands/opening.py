"""Opens what commands need: the configuration, the store, the plan, an artifact, a student."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.base.lineage import committed
from pipeline.base.pins import make_pins, read_pins, with_pins
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.config import load_config
from pipeline.dag import STAGES
from pipeline.planning import PlannedStage, Selection, make_plan
from pipeline.student_start import with_start
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError
from stages.teachers import pinned
from stages.teachers.hub import commit_of


@dataclass(frozen=True)
class Opened:
    """A configuration with its store and its plan."""

    config: PipelineConfig
    store: ArtifactStore
    stages: list[PlannedStage]

    def made(self, stage: str) -> Artifact:
        """Return this configuration's artifact of a stage. Raises ArtifactError if missing."""
        key = next(s.key for s in self.stages if s.name == stage)
        found = self.store.find(stage, key)
        if found is None:
            raise ArtifactError(
                f"this configuration has no {STAGES[stage].makes} yet; `ladd-pipeline run --until "
                f"{stage}` makes it"
            )
        return found

    @contextlib.contextmanager
    def student_folder(self, named: Path | None, *, tuned: bool = False) -> Iterator[Path]:
        """Give a local folder with a student: `named`, or this configuration's from the store."""
        if named is None:
            with self.made("dpo" if tuned else "distill").local_folder("model") as folder:
                yield folder
        elif (named / "model_index.json").exists():
            yield named
        else:
            raise ArtifactError(f"{named} is not a diffusers folder: it has no model_index.json")


def open_config(
    file: Path | None = None,
    preset: str | None = None,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    *,
    pin: bool = False,
) -> PipelineConfig:
    """Return the resolved configuration: the embedded teacher has its revision, models of the hub
    have the commits to which the store has pinned their branches, and `distill.init` has the key of
    the student that it names. With `pin`, what has no pin yet gets one. Raises ConfigError.
    """
    config = load_config(file, preset, settings, environment)
    config = config.model_copy(update={"teacher": pinned(config.teacher)})
    store = ArtifactStore(config.store)
    config = with_start(config, store, pin=pin)
    return pin_models(config, store) if pin else with_pins(config, read_pins(config, store))


def open_store(
    file: Path | None, preset: str | None, settings: Sequence[str] | None
) -> ArtifactStore:
    """Open the configuration's store."""
    return ArtifactStore(open_config(file, preset, settings or ()).store)


def open_plan(
    file: Path | None,
    preset: str | None,
    settings: Sequence[str] | None,
    selection: Selection | None = None,
    *,
    pin: bool = False,
) -> Opened:
    """Open the configuration, its store, and the plan for the selected stages (by default all).
    With `pin`, models of the hub are pinned to commits first.
    """
    config = open_config(file, preset, settings or (), pin=pin)
    store = ArtifactStore(config.store)
    plan = make_plan(config, store, selection or Selection(), partial(print, file=sys.stderr))
    return Opened(config, store, plan)


def pin_models(config: PipelineConfig, store: ArtifactStore) -> PipelineConfig:
    """Pin the hub models that have no commit yet; return the configuration with all commits."""
    make_pins(config, store, commit_of)
    return with_pins(config, read_pins(config, store))


def find_artifact(store: ArtifactStore, key: str) -> Artifact:
    """Return the artifact whose key begins with `key`, or that is named `stage/key`. Raises
    ArtifactError unless exactly one matches.
    """
    matches = [
        (stage, manifest.key)
        for stage in STAGES
        for manifest in committed(store, stage)
        if manifest.key.startswith(key) or f"{stage}/{manifest.key}" == key
    ]
    found = store.find(*matches[0]) if len(matches) == 1 else None
    if found is None:
        how_many = "more than one artifact" if matches else "no artifact"
        raise ArtifactError(
            f"{how_many} in {store.url} begins with {key!r}; `ladd-pipeline artifacts ls` lists "
            "them"
        )
    return found
