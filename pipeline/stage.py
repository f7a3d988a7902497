"""What a stage is: its name, version, configuration, inputs and work. Imports no stage and no
Ray.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.store import Artifact, ArtifactStore
from schemas.base import identity_of
from schemas.config import PipelineConfig


@dataclass(frozen=True)
class Stage:
    """A declared stage. Its module, `stages.<name>`, is imported only where the work is done.

    The module has `run(context: StageContext) -> StageResult` and may have `check(config)` that
    raises ConfigError before anything starts and imports nothing heavy.
    """

    name: str
    version: int
    """Bumped by the author when the bytes that the stage makes change."""
    sections: tuple[str, ...]
    """Sections of the configuration whose identity fields enter the key, or single fields of
    others, such as `prompts.buckets`.
    """

    def identity(self, config: PipelineConfig) -> dict[str, Any]:
        return {
            section: identity_of(reduce(getattr, section.split("."), config))
            for section in self.sections
        }

    def key(self, config: PipelineConfig, input_keys: list[str]) -> str:
        """The artifact's key, known before anything runs: 16 hex digits of a sha256 (ARCHITECTURE,
        Artifacts).
        """
        content = {
            "stage": self.name,
            "version": self.version,
            "config": self.identity(config),
            "inputs": input_keys,
        }
        return digest_of(content)[:16]

    def module(self) -> ModuleType:
        return importlib.import_module(f"stages.{self.name}")


def digest_of(content: Any) -> str:
    """sha256 of canonical JSON."""
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def enter(folder: str) -> None:
    """Make the folder in which the user stands the process's own, where this machine has it: Ray
    starts its workers in others, and paths in a configuration may be relative.
    """
    if os.path.isdir(folder):
        os.chdir(folder)


@dataclass(frozen=True)
class StageContext:
    """What the engine hands to a stage's `run`, on the head node."""

    stage: str
    key: str
    config: PipelineConfig
    store: ArtifactStore
    inputs: dict[str, Artifact]
    report: Callable[[str, int, int], None]
    """Progress: what is counted, how many are done, how many there are."""

    @property
    def folder(self) -> str:
        """Where the stage writes, relative to the store: `artifacts/<stage>/<key>`."""
        return self.store.folder(self.stage, self.key)

    def put_folder(self, local: Path, name: str) -> dict[str, tuple[int, str]]:
        """Put all files below a local folder into the artifact's folder `name`; returns them as
        `StageResult.files` takes them.
        """
        files = {}
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            file = f"{name}/{path.relative_to(local).as_posix()}"
            files[file] = self.store.put(path, f"{self.folder}/{file}")
        return files

    def written(self, *prefixes: str) -> dict[str, tuple[int, str]]:
        """What workers wrote into these folders of the artifact, as `StageResult.files` takes
        it.
        """
        names = [name for name in self.store.list(self.folder) if name.startswith(prefixes)]
        contents = self.store.read_all([f"{self.folder}/{name}" for name in names])
        return {
            name: (len(content), hashlib.sha256(content).hexdigest())
            for name, content in zip(names, contents, strict=True)
        }


@dataclass(frozen=True)
class StageResult:
    """What a stage has made; the engine turns it into the manifest."""

    files: dict[str, tuple[int, str]]
    """Path relative to the artifact: bytes and sha256."""
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    device_hours: float = 0.0
