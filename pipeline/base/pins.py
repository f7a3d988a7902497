"""Pins the hub revisions of a configuration: a branch or a tag is the commit that it named when the
store first used it.

Each pin is a small file in the store's folder `pins/`; without it, the next run looks again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pipeline.base.store import ArtifactStore, json_object, to_json
from schemas.base import outside_fields

Pins = dict[tuple[str, str | None], str]
"""A hub model and the revision asked for: the commit."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISIONS = {"model": "revision", "init": "init_revision"}
"""Fields that may name a model of the hub, and the fields of their revisions."""
_STUDENT = re.compile(r"latest|(distill/)?[0-9a-f]{6,16}")
_M = TypeVar("_M", bound=BaseModel)


def read_pins(config: BaseModel, store: ArtifactStore) -> Pins:
    """Return all pins of the store, or none if the configuration names no model of the hub."""
    if all(kind != "model" or is_here(value) for _, kind, value in outside_fields(config)):
        return {}
    names = [f"pins/{name}" for name in sorted(store.list("pins")) if name.endswith(".json")]
    pins: Pins = {}
    for content in store.read_all(names).values():
        row = json_object(content) or {}
        try:
            if _COMMIT.fullmatch(row["commit"]):
                pins[row["model"], row["revision"]] = row["commit"]
        except (KeyError, TypeError):
            continue  # not a pin of ours
    return pins


def make_pins(
    config: BaseModel, store: ArtifactStore, resolve: Callable[[str, str | None], str | None]
) -> None:
    """Pin what has no pin yet. `resolve` returns the commit that a model's revision names now, or
    None if that cannot be known: then it stays unpinned.
    """
    known = read_pins(config, store)
    for model, revision in sorted(_asked(config) - set(known), key=str):
        commit = resolve(model, revision)
        if commit is not None:
            mark = hashlib.sha256(f"{model}@{revision}".encode()).hexdigest()[:16]
            row = {"model": model, "revision": revision, "commit": commit}
            # If another run was first, its pin holds.
            store.create(f"pins/{mark}.json", to_json(row))


def with_pins(config: _M, pins: Pins) -> _M:
    """Return the configuration with commits for the revisions that are pinned."""
    return _changed(config, pins) if pins else config


def without_pins(config: _M, pins: Pins) -> _M:
    """Return the configuration as it was before `with_pins`."""
    asked: dict[tuple[str, str | None], str | None] = {
        (model, commit): revision for (model, revision), commit in pins.items()
    }
    return _changed(config, asked) if pins else config


def is_here(model: str) -> bool:
    """Whether a model is a folder of this machine rather than one of the hub."""
    return Path(model).is_dir()


def names_student(model: str) -> bool:
    """Whether a start of a training is a student of the store: `latest` or a key."""
    return _STUDENT.fullmatch(model) is not None and not is_here(model)


def _asked(config: BaseModel) -> set[tuple[str, str | None]]:
    """Return the hub models that a configuration names without a commit, with their revisions."""
    found: set[tuple[str, str | None]] = set()

    def note(model: str, revision: str | None) -> str | None:
        if not (revision and _COMMIT.fullmatch(revision)):
            found.add((model, revision))
        return revision

    _mapped(config, note)
    return found


def _changed(config: _M, revisions: Mapping[tuple[str, str | None], str | None]) -> _M:
    changed: _M = _mapped(config, lambda *asked: revisions.get(asked, asked[1]))
    return changed


def _mapped(value: Any, revise: Callable[[str, str | None], str | None]) -> Any:
    """Return a copy with `revise(model, revision)` for the revision of each hub model below."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, revise) for item in value)
    if not isinstance(value, BaseModel):
        return value
    update: dict[str, Any] = {}
    for name in type(value).model_fields:
        before = getattr(value, name)
        after = _mapped(before, revise)
        if after is not before and after != before:
            update[name] = after
    for field, revision in _REVISIONS.items():
        if revision in type(value).model_fields:
            model = getattr(value, field)
            if model is not None and not is_here(model) and not names_student(model):
                update[revision] = revise(model, getattr(value, revision))
    return value.model_copy(update=update) if update else value
