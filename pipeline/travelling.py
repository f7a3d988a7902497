"""What goes along with a run to another machine: the local files that its configuration names.

They keep their places relative to the working folder, so that the configuration names the same text
there and its contents have the same fingerprints: keys do not change.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.addresses import expand, is_local, local_path
from pipeline.base.pins import is_here
from pipeline.base.sizes import size_text
from pipeline.dag import STAGES
from schemas.addresses import public_content
from schemas.config import PipelineConfig
from schemas.errors import ConfigError


@dataclass(frozen=True)
class Luggage:
    """Local files by their names in the folder that travels, and the working folder in it."""

    folder: str
    """The working folder, relative to the folder that travels; empty if it is that folder."""
    files: dict[str, Path]

    def command(self, root: str, config_file: str, words: Sequence[str]) -> str:
        """Return the command that runs the configuration where the folder has come to `root`."""
        where = "/".join(filter(None, (root, self.folder))) or "."
        return shlex.join(["ladd-pipeline", "-C", where, "run", "--config", config_file, *words])

    @staticmethod
    def packed(path: Path) -> str:
        """Return the bytes of a file as text."""
        return base64.b64encode(path.read_bytes()).decode()


def pack(
    config: PipelineConfig, stages: Iterable[str], most_bytes: int, shared: Sequence[Path] = ()
) -> Luggage:
    """Find the local files that some stages read. Folders in `shared` are there on all nodes.

    Raises ConfigError, naming the field, for files that cannot go along: those named by a path from
    the root, and what is larger than `most_bytes` together.
    """
    cwd = Path.cwd()
    found: dict[Path, str] = {}
    for field, path in _named(config, stages, shared):
        found.setdefault(path, field)
    root = Path(os.path.commonpath([cwd, *(path.parent for path in found)]))
    sizes = {path: path.stat().st_size for path in found}
    if sum(sizes.values()) > most_bytes:
        largest, size = max(found, key=lambda path: sizes[path]), size_text(sum(sizes.values()))
        raise ConfigError(
            f"{found[largest]}: the local files are {size} in all, and at most "
            f"{size_text(most_bytes)} go along; put {largest} into a bucket and name its URL"
        )
    folder = cwd.relative_to(root).as_posix()
    files = {path.relative_to(root).as_posix(): path for path in sorted(found)}
    return Luggage("" if folder == "." else folder, files)


def require_shared_store(store: str, shared: Sequence[Path] = ()) -> None:
    """Raise ConfigError for a store that other machines cannot see."""
    if store.startswith("memory://"):
        raise ConfigError(f"store: {store} is the memory of one process; name a bucket")
    if is_local(store) and not _below(Path(local_path(store)), shared):
        raise ConfigError(
            f"store: {store} is a folder of this machine, which the cluster cannot see; name a "
            "bucket, such as --set store=s3://bucket/prefix"
        )


def require_public(config: PipelineConfig, place: str, reader: str) -> None:
    """Raise ConfigError for an address with a secret in it, which would lie in `place`."""
    if field := next(_secret_addresses(config.model_dump(mode="json")), None):
        raise ConfigError(
            f"{field}: an address with a password or a signature would lie in {place}, for all to "
            f"read; use the plain address, and let {reader} read it"
        )


def _secret_addresses(content: Any, field: str = "") -> Iterator[str]:
    """Yield the fields of a configuration that hold an address with something secret in it."""
    if isinstance(content, (dict, list)):
        parts = content.items() if isinstance(content, dict) else enumerate(content)
        for name, part in parts:
            yield from _secret_addresses(part, f"{field}.{name}" if field else str(name))
    elif public_content(content) != content:
        yield field


def _named(
    config: PipelineConfig, stages: Iterable[str], shared: Sequence[Path]
) -> Iterator[tuple[str, Path]]:
    """Yield the field and the absolute path of each local file that stages read."""
    for stage in stages:
        for field, kind, value in STAGES[stage].outside(config):
            patterns = [value] if isinstance(value, str) else list(value)
            if kind == "model" and not is_here(patterns[0]):
                continue  # of the hub, or a student of the store
            for pattern in filter(is_local, patterns):
                written = os.path.expanduser(pattern)
                if os.path.isabs(written) or "://" in pattern:
                    _require_shared(field, Path(local_path(pattern)), shared)
                elif kind == "model":
                    root = Path(local_path(pattern))
                    yield from ((field, path) for path in root.rglob("*") if path.is_file())
                else:
                    yield from ((field, Path(one)) for one in expand([pattern], field, ("",)))


def _require_shared(field: str, path: Path, shared: Sequence[Path]) -> None:
    if not _below(path, shared):
        raise ConfigError(
            f"{field}: {path} is a path of this machine, which the cluster cannot see; put it into "
            "a bucket, or name it relative to the working folder: then it goes along"
        )


def _below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)
