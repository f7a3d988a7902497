"""The manifest of an artifact: its existence is the commit, its content records how the artifact
was made.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from schemas.base import Frozen

SCHEMA_VERSION = 3
_FORMER = 2
"""The version of a manifest without `tables` and `devices`, made from nothing that was declared
good: older programs read it too.
"""


class FileEntry(Frozen):
    """One file of an artifact."""

    path: str
    """Relative to the artifact's folder."""
    size: int
    """Bytes."""
    sha256: str


class Table(Frozen):
    """A Parquet file beside the manifest, named after its contents."""

    path: str
    """Relative to the artifact's folder."""
    size: int
    """Bytes."""
    sha256: str


class Tables(Frozen):
    """Where the long parts of a large manifest are; `pipeline.base.tables` reads them."""

    files: Table
    count: int
    """Files of the artifact."""
    bytes: int
    """Bytes of all these files."""
    details: Table | None = None
    """Those of the details that are long."""


class OutsideInput(Frozen):
    """What lay outside the store and entered a result: files or a model's folder."""

    digest: str
    """Of the contents: it enters the key."""
    files: int = 1
    size: int | None = None
    """Bytes."""
    lines: int | None = None
    """Lines of a single text file."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Digests of single files by name, if there are few."""


class InputRef(Frozen):
    """An artifact that a stage read."""

    stage: str
    key: str
    digest: str
    """sha256 of the input's manifest."""
    accepted: str = ""
    """Why somebody declared it good for a configuration that it was not made for; usually empty.
    Since schema version 3.
    """


class Environment(Frozen):
    """The software that made the artifact. Recorded, but never part of the key."""

    python: str
    packages: dict[str, str]
    git_commit: str | None = None
    platform: str = ""


class Expected(Frozen):
    """What was expected of an artifact before it was made."""

    device_hours: float
    seconds: float
    store_bytes: float
    source: str
    """What the estimate was made from: model, probe, or an earlier artifact `stage/key`."""


class Devices(Frozen):
    """What made the artifact, and what that was expected to take."""

    kind: str
    """Of the cluster's GPUs, or of its cores if it has none: nvidia-h100, cpu-amd-epyc. Several
    kinds are joined by `+`.
    """
    count: float
    """GPUs, or cores, that the cluster had when the artifact was finished."""
    expected: Expected | None = None


class Manifest(Frozen):
    """The record of an artifact, written last. `details` differs by stage: it holds what readers of
    the artifact need (a bucket's rows, a grid).

    Of a large artifact, `files` and long `details` are in `tables`. `Artifact.files`,
    `Artifact.entry` and `Artifact.details` give them wherever they are.
    """

    schema_version: int = _FORMER
    stage: str
    key: str
    version: int
    """The stage's version."""
    inputs: list[InputRef]
    identity: dict[str, Any]
    """The identity configuration that entered the key."""
    outside: dict[str, OutsideInput] = Field(default_factory=dict)
    """What the identity configuration names outside the store, by field. Empty in artifacts of
    schema version 1, which did not look at contents.
    """
    config: dict[str, Any]
    """The stage's whole resolved configuration, runtime fields too."""
    environment: Environment
    counts: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    files: list[FileEntry]
    tables: Tables | None = None
    started: str
    """UTC, ISO 8601."""
    seconds: float
    device_hours: float = 0.0
    """Hours times devices (GPUs if there are any, else CPU cores) that the stage held."""
    devices: Devices | None = None
    """None in artifacts before schema version 3."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files of the artifact."""
        return self.tables.bytes if self.tables else sum(file.size for file in self.files)

    def to_json(self) -> bytes:
        """Return the manifest as it is stored."""
        without: dict[str, Any] = {
            name: True for name in ("tables", "devices") if getattr(self, name) is None
        }
        if not any(ref.accepted for ref in self.inputs):
            without["inputs"] = {"__all__": {"accepted"}}
        version = _FORMER if len(without) == 3 else SCHEMA_VERSION
        manifest = self.model_copy(update={"schema_version": version})
        return (manifest.model_dump_json(indent=2, exclude=without) + "\n").encode()


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names it and says why."""


class NewerManifest(ManifestError):
    """A manifest that a newer version of this program wrote."""


def read_manifest(text: str | bytes, where: str) -> Manifest:
    """Parse a manifest. Raises ManifestError naming the file and the field, or NewerManifest naming
    its schema version.
    """
    import json

    from pydantic import ValidationError

    content = text.encode() if isinstance(text, str) else text
    if not content.strip(b"\0 \r\n\t"):
        raise ManifestError(f"manifest {where} is not valid: it is empty, or holds only zeros")
    try:
        raw = json.loads(content)
        version = int(raw["schema_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ManifestError(
            f"manifest {where} is not valid: it has no readable schema_version ({error})"
        ) from error
    if version > SCHEMA_VERSION:
        raise NewerManifest(
            f"manifest {where} has schema version {version}, this ladd-pipeline reads up to "
            f"{SCHEMA_VERSION}"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ManifestError(
            f"manifest {where} is not valid: field {field}: {first['msg']}"
        ) from error
