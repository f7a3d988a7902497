"""`artifacts gc` deletes nothing by mistake and all that is left over; `verify` names damages."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from pipeline import cli
from pipeline.base import lease
from pipeline.base.checkpoint_list import list_checkpoints
from pipeline.base.claims import claims_folder, run_folder
from pipeline.base.lease import held
from pipeline.base.leftovers import leftovers
from pipeline.base.store import ArtifactStore, to_json
from pipeline.commands.opening import open_config
from pipeline.commands.upkeep import _cleared
from pipeline.planning import PlannedStage, Selection, make_plan, used_by
from schemas.manifest import InputRef
from tests.support.command import call_here
from tests.support.manifests import manifest_of

pytestmark = pytest.mark.slow


def test_gc_deletes_nothing_for_a_configuration_that_nobody_named(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "store" / "artifacts" / "distill" / "0123456789abcdef" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    arguments = ["artifacts", "gc", "--delete", "--set", f"store={tmp_path}/store"]
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "--config FILE or --preset NAME" in capsys.readouterr().err
    assert kept.exists()


@pytest.fixture
def call(tmp_path):
    """Run `artifacts` on a store; gives exit code and output."""

    def run(*arguments):
        where = ["--preset", "shapes", "--set", f"store={tmp_path}/store"]
        done = call_here("artifacts", *arguments, *where)
        return done.returncode, done.stdout + done.stderr

    return run


def planned(stage, tmp_path):
    """The key of a stage's training in the configuration of `call`."""
    config = open_config(preset="shapes", environment={})
    store = ArtifactStore(str(tmp_path / "store"))
    return next(s.training for s in make_plan(config, store, Selection()) if s.name == stage)


@pytest.fixture
def store(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    store.commit(manifest_of("prompts", key="0123456789abcdef"))
    store.commit(manifest_of("prompts", key="fedcba9876543210"))
    store.write("artifacts/prompts/fedcba9876543210/manifest.json", b"")
    return store


def test_damaged_manifests_are_listed_and_verified(call, store):
    code, text = call("ls")
    assert code == 0 and "0123456789abcdef" in text
    assert "warning: manifest" in text and "fedcba9876543210/manifest.json is not valid" in text
    code, text = call("verify")
    assert code == 4 and "fedcba9876543210/manifest.json is not valid" in text
    assert "--force prompts" in text
    code, text = call("show", "0123")
    assert code == 0 and '"key": "0123456789abcdef"' in text


def test_gc_leaves_folders_of_people_alone_and_takes_damaged_artifacts(call, store):
    store.write("artifacts/prompts/my notes/2026/plan.txt", b"x")
    store.write("artifacts/.DS_Store", b"x")
    code, text = call("gc", "--delete")
    assert code == 0 and text.count("deleted prompts/") == 2, text
    assert store.list("") == {"artifacts/prompts/my notes/2026/plan.txt": 1}


def test_gc_leaves_what_another_run_uses(call, store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    with held(store, "training/prompts/0123456789abcdef", "prompts"):
        code, text = call("gc", "--delete")
    assert code == 0 and "in use prompts/0123456789abcdef" in text
    assert store.find("prompts", "0123456789abcdef") is not None


def test_gc_leaves_what_a_live_run_is_making(call, store, monkeypatch):
    """It holds no training's lease yet, and its artifact has no manifest."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    store.write("artifacts/encode/00112233445566ff/shards/a/000000.tar", b"half a stage")
    record = {"artifacts": {"encode": "00112233445566ff"}, "trainings": {"dpo": "aabbccddeeff0011"}}
    store.write("runs/20260101T000000-x/run.json", to_json(record))
    store.write("training/dpo/aabbccddeeff0011/checkpoint_000000002/state", b"being written")
    with held(store, "runs/20260101T000000-x", "this run"):
        code, text = call("gc", "--delete")
        assert code == 0 and "in use encode/00112233445566ff" in text
        assert "in use dpo/aabbccddeeff0011" in text and "lease" not in text
    assert store.read("artifacts/encode/00112233445566ff/shards/a/000000.tar") is not None
    assert store.read("training/dpo/aabbccddeeff0011/checkpoint_000000002/state") is not None
    code, text = call("gc", "--delete")
    assert "deleted encode/00112233445566ff" in text and "deleted dpo/aabbccddeeff0011" in text


def test_gc_leaves_the_finished_inputs_of_a_live_run(call, store, monkeypatch):
    """Bug: look only at what the run makes, so that a training's latents go while it reads them."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    store.commit(manifest_of("encode", key="00112233445566ff"))
    store.write("runs/20260101T000000-x/run.json", to_json({"uses": ["encode/00112233445566ff"]}))
    with held(store, "runs/20260101T000000-x", "this run"):
        code, text = call("gc", "--delete")
    assert code == 0 and "in use encode/00112233445566ff" in text
    assert store.find("encode", "00112233445566ff") is not None
    code, text = call("gc", "--delete")
    assert "deleted encode/00112233445566ff" in text


def test_gc_leaves_an_artifact_that_a_run_joins_meanwhile(store, monkeypatch):
    """After gc has looked who is at work, and before it deletes."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    one = ("prompts", "0123456789abcdef")
    with held(store, run_folder(claims_folder(*one), "0a"), "prompts"):
        assert not _cleared(store, *one)
    with held(store, claims_folder(*one), "prompts"):
        assert not _cleared(store, *one)
    assert store.find(*one) is not None
    assert _cleared(store, *one) and store.find(*one) is None
    assert not store.all_files("claims") and not store.folders("claims/prompts")


def test_gc_leaves_a_checkpoint_of_a_training_that_begins_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    store, folder = ArtifactStore(str(tmp_path)), "training/distill/0123456789abcdef"
    for name in ("checkpoint_000000002", "checkpoint_000000004"):
        store.write(f"{folder}/{name}/state", b"x")
    found = list(leftovers(store, 0, busy=()))
    assert [one.what.split("_")[-1] for one in found] == ["000000002", "000000004"]
    with held(store, folder, "distill"):
        found[0].remove()
    list_checkpoints(store, folder, ["checkpoint_000000004"])  # saved to the end since
    found[1].remove()
    assert len(store.all_files(folder)) == 3
    found[0].remove()
    assert not any("000000002" in name for name in store.all_files(folder))


def test_what_an_accepted_artifact_was_made_from_is_used(tmp_path):
    store = ArtifactStore(str(tmp_path))
    refs = [InputRef(stage="prompts", key="0123456789abcdef", digest="d")]
    store.commit(manifest_of("prompts", key="0123456789abcdef"))
    store.commit(manifest_of("synthesize", key="00112233445566ff", inputs=refs))
    above = [InputRef(stage="synthesize", key="00112233445566ff", digest="d")]
    manifest = manifest_of("encode", key="aabbccddeeff0011", inputs=above)
    plan = [
        PlannedStage("encode", "aabbccddeeff0011", (), "done", "", "", manifest=manifest),
    ]
    config = open_config(preset="shapes", environment={})
    assert used_by(config, store, plan) == {("encode", "aabbccddeeff0011")}
    accepted = [replace(plan[0], accepted="the same, renamed")]
    assert used_by(config, store, accepted) == {
        ("encode", "aabbccddeeff0011"),
        ("synthesize", "00112233445566ff"),
        ("prompts", "0123456789abcdef"),
    }


def test_gc_is_dry_at_first_and_then_leaves_nothing_over(call, tmp_path, monkeypatch):
    store, key = ArtifactStore(str(tmp_path / "store")), planned("distill", tmp_path)
    training = store.training_folder("distill", key)
    store.write(f"{training}/checkpoint_000000002/state/a", b"whole")
    list_checkpoints(store, training, ["checkpoint_000000002"])
    kept = store.all_files("")
    dead = b'{"token": "t", "process": 1}'
    for name in (
        f"{training}/checkpoint_000000004/state/a",
        f"{training}/lease.json.0123456789abcdef.claim",
        "runs/20260101T000000-x/lease.json",
        "artifacts/encode/00112233445566ff/shards/a/000000.tar.0123456789ab.partial",
        ".doctor-0123456789ab/few/0",
    ):
        store.write(name, dead)
    (tmp_path / "store/artifacts/notes.partial").write_text("somebody's own")
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    before = store.all_files("")
    code, text = call("gc", "--older-than", "0")
    assert code == 0 and text.count("left over:") == 5 and "would be freed" in text
    assert store.all_files("") == before
    code, text = call("gc", "--delete")
    assert "orphaned checkpoint" in text and "claim" in text and "lease runs/" in text
    assert "half-written" not in text, "another process may be writing it"
    code, text = call("gc", "--delete", "--older-than", "0")
    assert code == 0 and text.count("deleted half-written") == 2
    assert store.all_files("") == kept | {"artifacts/notes.partial": 14}
