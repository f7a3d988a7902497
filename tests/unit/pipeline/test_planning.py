"""What would run, and why."""

from __future__ import annotations

import threading

import pytest

from pipeline.base.lineage import survey
from pipeline.base.store import ArtifactStore
from pipeline.dag import STAGES
from pipeline.planning import Selection, changed_fields, make_plan
from schemas.errors import ArtifactError
from tests.support.manifests import manifest_of


def commit(store, config, *names):
    for stage in make_plan(config, store, Selection()):
        if stage.name in names:
            store.commit(
                manifest_of(
                    stage.name,
                    key=stage.key,
                    version=STAGES[stage.name].version,
                    identity=STAGES[stage.name].identity(config),
                )
            )


def actions(config, store, **selection):
    return {s.name: s.action for s in make_plan(config, store, Selection(**selection))}


ALL = ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval")


def test_fresh_store_runs_everything(config, store):
    assert set(actions(config, store).values()) == {"run"}
    assert actions(config, store, until="synthesize") == dict(
        zip(ALL, ["run", "run", *["skip"] * 5], strict=True)
    )


def test_finished_work_is_not_repeated_even_when_its_inputs_are_gone(config, store):
    commit(store, config, "distill")
    assert actions(config, store, until="distill") == dict(
        zip(ALL, ["skip", "skip", "skip", "done", *["skip"] * 3], strict=True)
    )
    assert actions(config, store) == dict(
        zip(ALL, ["run", "skip", "skip", "done", "run", "run", "run"], strict=True)
    )
    assert actions(config, store, until="encode")["encode"] == "run"


def test_force_runs_a_finished_stage_and_what_it_misses(config, store):
    commit(store, config, *ALL)
    assert actions(config, store, force=frozenset({"encode"})) == dict(
        zip(ALL, ["done", "done", "run", *["done"] * 4], strict=True)
    )


def test_from_and_only_need_their_inputs(config, store):
    commit(store, config, "prompts", "synthesize")
    assert actions(config, store, only="encode")["encode"] == "run"
    with pytest.raises(ArtifactError, match=r"needs the artifact of encode.*--until encode"):
        make_plan(config, store, Selection(start="distill"))
    with pytest.raises(ArtifactError, match="needs the artifact of encode"):
        make_plan(config, store, Selection(only="distill"))


def test_plan_says_which_field_changed_from_what_to_what(config, store):
    commit(store, config, *ALL)
    other = config.model_copy(
        update={"synthesize": config.synthesize.model_copy(update={"guidance_scale": 2.5})}
    )
    why = {s.name: s.why for s in make_plan(other, store, Selection())}
    assert (
        why["synthesize"]
        == f"synthesize.guidance_scale changed from {config.synthesize.guidance_scale} to 2.5"
    )
    assert why["encode"] == "input changed: synthesize"


def test_changed_fields_reach_into_lists_and_missing_sections():
    assert changed_fields({"a": {"b": 1}}, {"a": {"b": 2, "c": None}}) == [
        "a.b changed from 1 to 2",
        "a.c changed from nothing to null",
    ]


def test_unknown_stage(refused):
    code, text = refused("run", "--until", "distil")
    assert code == 2, text
    assert "unknown stage 'distil'; did you mean distill?" in text


def test_only_without_its_inputs(refused):
    code, text = refused("run", "--only", "encode")
    assert code == 4, text
    assert "`ladd-pipeline run --until" in text


SPOILT = [b"", bytes(300), b'{"schema_version": 1, "stage": "distill", "ke', b"[]", b"{}", b"\xff"]


def spoil(store, stage, content):
    """Write something in the place of each manifest of a stage."""
    for name in store.list(f"artifacts/{stage}"):
        store.write(f"artifacts/{stage}/{name}", content)


@pytest.mark.parametrize("content", SPOILT)
def test_a_damaged_manifest_is_named_with_the_mend_and_force_mends_it(config, store, content):
    """Bug: read the damaged manifest first when it is to be made anew; nothing helps then."""
    commit(store, config, *ALL)
    spoil(store, "distill", content)
    with pytest.raises(ArtifactError, match=r"distill/\w+/manifest\.json.*--force distill"):
        make_plan(config, store, Selection())
    assert actions(config, store, force=frozenset({"distill"}))["distill"] == "run"


@pytest.mark.parametrize("content", SPOILT)
def test_a_damaged_manifest_of_another_artifact_stops_no_plan(config, store, content):
    """Bug: read all manifests of a stage to say what differs, and fail at a stranger's."""
    other = config.model_copy(
        update={"synthesize": config.synthesize.model_copy(update={"guidance_scale": 2.5})}
    )
    commit(store, other, "synthesize")
    spoil(store, "synthesize", content)
    assert actions(config, store)["synthesize"] == "run"
    manifests, damaged = survey(store, "synthesize")
    assert manifests == [] and len(damaged) == 1 and "artifacts/synthesize/" in damaged[0]


def test_manifests_of_a_stage_are_read_at_once_and_once(config, store, monkeypatch):
    """Bug: a request after another for each artifact of a stage, for each question about it."""
    commit(store, config, "prompts")
    for number in range(4):
        store.commit(manifest_of("synthesize", key=f"{number:016x}"))
    met, read = threading.Barrier(4), []

    def meet(self, stage, key):
        if key.startswith("0" * 15):
            read.append(key)
            met.wait(20)
        return find(self, stage, key)

    find = ArtifactStore.find
    monkeypatch.setattr(ArtifactStore, "find", meet)
    assert actions(config, store)["synthesize"] == "run"
    assert len(read) == 4


def test_copies_and_files_of_systems_among_the_artifacts_are_no_artifacts(config, store):
    commit(store, config, "prompts")
    (name,) = store.list("artifacts/prompts")
    content = store.read(f"artifacts/prompts/{name}")
    for strange in (".DS_Store", "._abc/manifest.json", "notes.json", f"{name}~"):
        store.write(f"artifacts/prompts/{strange}", b"\0\5\26")
    manifests, damaged = survey(store, "prompts")
    assert len(manifests) == 1 and not damaged
    store.write("artifacts/prompts/backup/manifest.json", content)
    manifests, damaged = survey(store, "prompts")
    assert len(manifests) == 1
    assert len(damaged) == 1 and "backup/manifest.json belongs to another artifact" in damaged[0]


def test_a_damaged_manifest_of_a_stage_that_is_not_asked_for_stops_no_plan(config, store):
    commit(store, config, *ALL)
    spoil(store, "eval", b"")
    assert actions(config, store, until="encode")["encode"] == "done"
    assert actions(config, store, only="distill")["distill"] == "done"
    with pytest.raises(ArtifactError, match="--force eval"):
        make_plan(config, store, Selection())
