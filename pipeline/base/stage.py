"""The definition of a stage: its name, version, configuration, inputs and work.

Knows no stage by name and nothing about Ray. docs/architecture.md describes artifacts, keys, and
identity and runtime fields.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.base.claims import Crew
    from pipeline.base.store import Artifact, ArtifactStore
    from schemas.config import PipelineConfig
    from schemas.manifest import OutsideInput
    from schemas.records import ShardStats

_entered = ""
"""The folder that this process entered last."""
Files = dict[str, tuple[int, str]]
"""Path relative to the artifact: bytes and sha256."""


@dataclass(frozen=True)
class Stage:
    """A declared stage. Its module `stages.<name>` is imported only when it is needed, and imports
    neither torch nor Ray at the top level. It has

    - `run(context: StageContext) -> StageResult`, which does the work;
    - `estimate(config) -> str`, one line for `plan`: what the stage would make;
    - optionally `check(config)`, which raises ConfigError before anything starts;
    - optionally `warnings(config) -> list[str]`, what `plan` should warn of;
    - if it trains, `course(config) -> Course`: which updates its artifact is taken from.
    """

    name: str
    version: int
    """The author increases it when the bytes that the stage makes change."""
    sections: tuple[str, ...]
    """Sections of the configuration whose identity fields enter the key, or single fields of other
    sections, such as `prompts.buckets`.
    """
    inputs: Callable[[PipelineConfig], tuple[str, ...] | None]
    """The stages whose artifacts it reads; None leaves the stage out of the graph."""
    makes: str
    """What the user calls its artifact."""
    taken: tuple[str, ...] = ()
    """Of a stage that trains, the fields that say what is taken from a training, such as its
    length. They are left out of the training's key.
    """
    data: tuple[str, ...] = ()
    """Patterns of the files that the next stages alone read, such as pictures: they may be dropped
    when those are done.
    """
    reads_lineage: bool = False
    """Whether it reads all from which its inputs were made, not its inputs alone."""
    in_shards: bool = False
    """Whether several runs may make it together, each some of its shards."""

    def identity(self, config: PipelineConfig) -> dict[str, Any]:
        """Return the identity fields of its sections, as JSON values."""
        from schemas.base import identity_of

        return {
            section: identity_of(reduce(getattr, section.split("."), config))
            for section in self.sections
        }

    def former_identity(self, config: PipelineConfig) -> dict[str, Any]:
        """Return the identity as it was when fields that have left it still counted."""
        identity = self.identity(config)
        for section, kept in self.retired(config).items():
            identity[section] |= {name: getattr(getattr(config, section), name) for name in kept}
        return identity

    def retired(self, config: PipelineConfig) -> dict[str, dict[str, Any]]:
        """Return what the identity keeps of the fields that have left it, by section."""
        from schemas.base import retired_in

        sections = {name: reduce(getattr, name.split("."), config) for name in self.sections}
        return {name: kept for name, section in sections.items() if (kept := retired_in(section))}

    def outside(self, config: PipelineConfig) -> Iterator[tuple[str, str, Any]]:
        """Yield the path, the kind and the value of each field of its sections that names something
        outside the store.
        """
        from schemas.base import outside_fields

        for section in self.sections:
            yield from outside_fields(reduce(getattr, section.split("."), config), section)

    def key(
        self,
        config: PipelineConfig,
        input_keys: list[str],
        outside: Mapping[str, OutsideInput] | None = None,
        *,
        former: bool = False,
    ) -> str:
        """Return the artifact's key, known before anything runs: 16 hex digits of a sha256 over the
        identity, the inputs' keys, and the fingerprints of what lies outside the store. With
        `former`, over the former identity.
        """
        content: dict[str, Any] = {
            "stage": self.name,
            "version": self.version,
            "config": self.former_identity(config) if former else self.identity(config),
            "inputs": input_keys,
        }
        if outside:
            content["outside"] = {name: seen.digest for name, seen in outside.items()}
        return digest_of(content)[:16]

    def training_key(
        self, config: PipelineConfig, input_keys: list[str], outside: Mapping[str, OutsideInput]
    ) -> str:
        """Return the key of the training that the artifact is taken from: artifacts that differ
        only in what is `taken` share it. Empty for a stage that does not train.
        """
        if not self.taken:
            return ""
        identity = self.identity(config)
        for taken in self.taken:
            section, name = taken.split(".")
            identity[section].pop(name, None)
        content = {
            "training": self.name,
            "version": self.version,
            "config": identity,
            "inputs": input_keys,
            "outside": {
                name: seen.digest
                for name, seen in outside.items()
                if not name.startswith(self.taken)
            },
        }
        return digest_of(content)[:16]

    def module(self) -> ModuleType:
        return importlib.import_module(f"stages.{self.name}")


def digest_of(content: Any) -> str:
    """Return the sha256 of the content as canonical JSON."""
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def enter(folder: str) -> None:
    """Change to the folder where the user started the command, if this machine has it: Ray starts
    its workers elsewhere, and paths in a configuration may be relative.
    """
    global _entered
    if os.path.isdir(folder):
        os.chdir(folder)
        _entered = folder


def entered() -> str:
    """Return the folder that was entered last, or else the working folder. The former may have been
    laid anew since, and then the latter is gone: so Ray does with the folder of a job when a node
    joins on the same machine.
    """
    return _entered or os.getcwd()


def _tell_nobody(stats: ShardStats) -> None:
    """Outside an engine there is no log."""


@dataclass(frozen=True)
class StageContext:
    """What the engine passes to a stage's `run` on the head node. It can be sent to workers."""

    stage: str
    key: str
    training: str
    """The key of the training that the artifact is taken from; empty where nothing is trained."""
    config: PipelineConfig
    store: ArtifactStore
    inputs: dict[str, Artifact]
    report: Callable[[str, int, int], None]
    """Report progress: what is counted, how many are done, how many in total (0 if unknown)."""
    warn: Callable[[str], None]
    """Warn the user: the text goes to the terminal, the log and the run's record."""
    note: Callable[[str], None]
    """Tell the user what was found while the stage runs; it goes where a warning goes."""
    tell_shard: Callable[[ShardStats], None] = _tell_nobody
    """Tell the log and the run's trace of a shard that was made."""
    crew: Crew | None = None
    """The runs that work on this artifact. Outside an engine there is none but this."""

    def finish(self) -> None:
        """Call this before writing what is made of all shards, if its bytes may differ between two
        runs: only one run goes on, the others take what it commits.
        """
        if self.crew is not None:
            self.crew.finish()

    @property
    def folder(self) -> str:
        """Where the stage writes, relative to the store: `artifacts/<stage>/<key>`."""
        return self.store.folder(self.stage, self.key)

    @property
    def training_folder(self) -> str:
        """Where the training's checkpoints are, relative to the store."""
        return self.store.training_folder(self.stage, self.training)

    def put_folder(self, local: Path, name: str) -> Files:
        """Upload all files below a local folder into the artifact's folder `name`."""
        files = {}
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            file = f"{name}/{path.relative_to(local).as_posix()}"
            files[file] = self.store.put(path, f"{self.folder}/{file}")
        return files

    def written(self, *prefixes: str) -> Files:
        """Return the files that workers wrote into these folders of the artifact."""
        names = [name for name in self.store.list(self.folder) if name.startswith(prefixes)]
        contents = self.store.read_all([f"{self.folder}/{name}" for name in names])
        return {
            name.removeprefix(f"{self.folder}/"): (
                len(content),
                hashlib.sha256(content).hexdigest(),
            )
            for name, content in contents.items()
        }


@dataclass(frozen=True)
class StageResult:
    """The result of a stage; the engine turns it into the manifest.

    Three names in `details` mean the same in every stage, and the engine shows them at the end of a
    run: `model` (a folder with a model), `samples` (sample grids, the latest last) and
    `failed_gates` (gates that the result misses; exit code 6). The same holds for a file
    `report.html`.
    """

    files: Files
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    device_hours: float = 0.0

    @classmethod
    def of_shards(
        cls,
        shards: Iterable[ShardStats],
        devices: float,
        *,
        files: Mapping[str, tuple[int, str]] | None = None,
        **fields: Any,
    ) -> StageResult:
        """Make a result from shards whose workers each held `devices`; `files` are additional
        files, `fields` the remaining fields.
        """
        shards = list(shards)
        return cls(
            files=files_of(shards) | dict(files or {}),
            device_hours=device_hours(shards, devices),
            **fields,
        )


def files_of(shards: Iterable[ShardStats]) -> Files:
    """Return every file of these shards."""
    return {
        file: (stats.sizes[file], digest)
        for stats in shards
        for file, digest in stats.files.items()
    }


def device_hours(shards: Iterable[ShardStats], devices: float) -> float:
    """Return the hours times devices that these shards took on workers with `devices` each."""
    return sum(stats.seconds for stats in shards) / 3600 * devices
