"""Which student of the store `distill.init` names: its key, and for `latest` the newest one when it
is first used.
"""

from __future__ import annotations

from pipeline.base.lineage import committed
from pipeline.base.pins import names_student
from pipeline.base.store import ArtifactStore, json_object, to_json
from schemas.config import PipelineConfig
from schemas.errors import ConfigError

STAGE = "distill"
_PIN = "pins/latest-student.json"
"""Without it, a second training that has ended would be the `latest` that it should start from."""


def with_start(config: PipelineConfig, store: ArtifactStore, *, pin: bool) -> PipelineConfig:
    """Return the configuration with `distill/KEY` for a student that `distill.init` names. With
    `pin`, what `latest` means now is kept. Raises ConfigError unless it names one student.
    """
    named = config.distill.init
    if named is None or not names_student(named):
        return config
    key = _latest(store, pin=pin) if named == "latest" else _only(store, named)
    distill = config.distill.model_copy(update={"init": f"{STAGE}/{key}"})
    return config.model_copy(update={"distill": distill})


def start_of(config: PipelineConfig) -> tuple[str, str] | None:
    """Return stage and key of the student that the training starts from, if it does from one."""
    named = config.distill.init
    if named is None or not names_student(named):
        return None
    return STAGE, named.removeprefix(f"{STAGE}/")


def _latest(store: ArtifactStore, *, pin: bool) -> str:
    pinned = (json_object(store.read(_PIN) or b"") or {}).get("student")
    if isinstance(pinned, str):
        return pinned
    students = committed(store, STAGE)
    if not students:
        raise ConfigError(
            f"distill.init is latest, but {store.url} has no student yet; train one without "
            "distill.init first"
        )
    key = students[0].key
    if pin and not store.create(_PIN, to_json({"student": key})):
        return _latest(store, pin=False)  # another run was first
    return key


def _only(store: ArtifactStore, named: str) -> str:
    begin = named.removeprefix(f"{STAGE}/")
    if len(begin) == 16:
        return begin
    found = [one.key for one in committed(store, STAGE) if one.key.startswith(begin)]
    if len(found) != 1:
        how_many = "more than one student" if found else "no student"
        raise ConfigError(
            f"distill.init: {how_many} in {store.url} has a key that begins with {begin}; "
            "`ladd-pipeline artifacts ls` lists them"
        )
    return found[0]
