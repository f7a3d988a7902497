"""Which artifact a stage's key names, when contents outside the store enter the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.base.fingerprints import Look, Unseen, open_digests
from pipeline.base.pins import Pins, without_pins
from pipeline.base.stage import Stage
from pipeline.base.store import Artifact, ArtifactStore, json_object, to_json
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ServiceUnavailable, StageFailed
from schemas.manifest import Manifest, OutsideInput

Seen = dict[str, OutsideInput]
"""Fingerprints by field."""
_TAKEN_OVER = "outside.json"
"""In the folder of an artifact that was made before contents entered the keys: the fingerprints of
what lay outside when this version first used it.
"""


@dataclass(frozen=True)
class Asked:
    """The artifact that is asked for: of a stage, a configuration, and inputs."""

    stage: Stage
    config: PipelineConfig
    pins: Pins
    store: ArtifactStore
    input_keys: list[str]
    others: Callable[[str], list[Manifest]]
    """Returns the manifests of all artifacts of a stage, newest first."""


@dataclass(frozen=True)
class Keyed:
    """A stage's key, and its artifact if there is one."""

    key: str
    artifact: Artifact | None
    seen: Seen
    note: str = ""
    """What the plan should say about it."""


def find_keyed(asked: Asked, look: Look, *, forced: bool = False, needed: bool = True) -> Keyed:
    """Look outside, make the key, and find the artifact.

    What cannot be looked at now is taken to be as it was for the newest artifact that is otherwise
    the same: a run goes on where its prompt file is not. An artifact that was made before contents
    entered the keys is found too, under its old key; it stays valid until what it was made from
    changes. If the stage is `forced`, it is not looked for. A damaged manifest is no artifact then,
    nor where the artifact is not `needed`.
    """
    seen: Seen = {}
    unseen: dict[str, str] = {}
    for field, kind, value in asked.stage.outside(asked.config):
        found = look.at(kind, value)
        if isinstance(found, Unseen):
            unseen[field] = found.why
        elif found is not None:
            seen[field] = found
    seen = _as_before(asked, seen, unseen) if unseen else seen
    key = asked.stage.key(asked.config, asked.input_keys, seen)
    try:
        artifact = asked.store.find(asked.stage.name, key)
    except ArtifactError as error:
        if (needed and not forced) or isinstance(error, ServiceUnavailable):
            raise
        artifact = None
    if artifact is None and not forced:
        before = _made_before(asked, seen) if seen or asked.pins else None
        before = before or _made_with_retired(asked, seen) or _accepted(asked, key, seen)
        if before is not None:
            return before
    return Keyed(key, artifact, seen, _note(unseen))


def record(store: ArtifactStore, stage: str, key: str, seen: Seen) -> None:
    """Record what lies outside now for an artifact that was made before that entered the keys."""
    content = {field: row.model_dump() for field, row in seen.items()}
    store.create(f"{store.folder(stage, key)}/{_TAKEN_OVER}", to_json(content))


def require_unchanged(stage: Stage, config: PipelineConfig, seen: Seen) -> None:
    """Raise StageFailed if what lies outside has changed since the plan was made: the key would
    name contents that the stage has not read.
    """
    look = Look(open_digests())
    for field, kind, value in stage.outside(config):
        now = look.at(kind, value)
        if field in seen and isinstance(now, OutsideInput) and now.digest != seen[field].digest:
            raise StageFailed(
                f"{stage.name}: {field} ({_shown(field, value)}) changed while the stage read it; "
                "run the command again to use the new contents"
            )


def changes_outside(
    old: Mapping[str, OutsideInput], new: Seen, stage: Stage, config: PipelineConfig
) -> list[str]:
    """Return a sentence for each outside input whose contents differ, such as
    `prompts.txt: 1,632 → 1,640 lines, was 3f2a…`.
    """
    names = {field: _shown(field, value) for field, _, value in stage.outside(config)}
    return [
        f"{names[field]}: {_difference(old[field], seen, names[field])}"
        for field, seen in new.items()
        if field in old and old[field].digest != seen.digest
    ]


def _made_before(asked: Asked, seen: Seen) -> Keyed | None:
    """Find an artifact that was made before contents entered the keys."""
    key = asked.stage.key(without_pins(asked.config, asked.pins), asked.input_keys)
    artifact = asked.store.find(asked.stage.name, key)
    if artifact is None or artifact.manifest.outside:
        return None
    taken = _taken_over(asked.store.read(f"{artifact.folder}/{_TAKEN_OVER}"))
    if any(field in taken and taken[field].digest != row.digest for field, row in seen.items()):
        return None
    note = "" if taken or not seen else "made before contents entered the keys"
    return Keyed(key, artifact, seen, note)


def _made_with_retired(asked: Asked, seen: Seen) -> Keyed | None:
    """Find an artifact that was made when a field that no longer does entered the key."""
    retired = asked.stage.retired(asked.config)
    if not retired:
        return None
    identity = asked.stage.identity(asked.config)
    for manifest in asked.others(asked.stage.name):
        without = {
            section: fields | retired.get(section, {}) if isinstance(fields, dict) else fields
            for section, fields in manifest.identity.items()
        }
        if without == identity and _reads_the_same(manifest, asked, seen):
            artifact = asked.store.find(asked.stage.name, manifest.key)
            return Keyed(manifest.key, artifact, seen)
    return None


def _accepted(asked: Asked, key: str, seen: Seen) -> Keyed | None:
    """Find an artifact that was declared good for this configuration: see `accept`."""
    row = json_object(asked.store.read(_acceptance(asked.stage.name, key)) or b"") or {}
    good, reason = row.get("key"), row.get("reason")
    if not isinstance(good, str) or not isinstance(reason, str):
        return None
    artifact = asked.store.find(asked.stage.name, good)
    if artifact is None:
        return None
    return Keyed(good, replace(artifact, accepted=reason), seen, f"accepted: {reason}")


def accept(artifact: Artifact, key: str, reason: str, changes: Sequence[str]) -> None:
    """Declare an artifact good for the configuration that has another `key`. `changes` are the
    differences between what it was made from and that configuration.
    """
    manifest = artifact.manifest
    content = {"key": manifest.key, "reason": reason, "changes": list(changes)}
    artifact.store.write(_acceptance(manifest.stage, key), to_json(content))


def _acceptance(stage: str, key: str) -> str:
    return f"accepted/{stage}/{key}.json"


def _reads_the_same(manifest: Manifest, asked: Asked, seen: Seen) -> bool:
    """Whether an artifact was made by this version of its stage, from the same inputs and the same
    contents outside the store.
    """
    return (
        manifest.version == asked.stage.version
        and [ref.key for ref in manifest.inputs] == asked.input_keys
        and {field: row.digest for field, row in manifest.outside.items()}
        == {field: row.digest for field, row in seen.items()}
    )


def _taken_over(content: bytes | None) -> Seen:
    rows = json_object(content or b"") or {}
    try:
        return {field: OutsideInput.model_validate(row) for field, row in rows.items()}
    except ValueError:  # not what we wrote: taken over again
        return {}


def _as_before(asked: Asked, seen: Seen, unseen: Mapping[str, str]) -> Seen:
    """Fill in what cannot be seen from the newest artifact that differs in nothing that can."""
    identity = asked.stage.identity(asked.config)
    for manifest in asked.others(asked.stage.name):
        before = manifest.outside
        if (
            manifest.identity == identity
            and manifest.version == asked.stage.version
            and [ref.key for ref in manifest.inputs] == asked.input_keys
            and set(before) == {*seen, *unseen}
            and all(before[field].digest == row.digest for field, row in seen.items())
        ):
            return dict(before)
    return seen


def _note(unseen: Mapping[str, str]) -> str:
    return "; ".join(f"{field} cannot be looked at: {why}" for field, why in unseen.items())


def _difference(old: OutsideInput, new: OutsideInput, shown: str) -> str:
    was = f"was {old.digest[:4]}…"
    if old.files != new.files:
        return f"{old.files:,} → {new.files:,} files, {was}"
    if old.lines is not None and new.lines is not None and old.lines != new.lines:
        return f"{old.lines:,} → {new.lines:,} lines, {was}"
    names = {**old.parts, **new.parts}
    differing = [name for name in names if old.parts.get(name) != new.parts.get(name)]
    if old.parts and new.parts and differing and differing != [shown]:
        first = differing[0]
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        return f"{first}{more} changed, was {old.parts.get(first, 'missing')[:4]}…"
    return f"its contents changed, {was}"


def _shown(field: str, value: str | Sequence[str]) -> str:
    """Return the name of a file or a folder, or the field of several."""
    if isinstance(value, str):
        return PurePosixPath(value.partition("?")[0]).name or value
    return _shown(field, value[0]) if len(value) == 1 else field
