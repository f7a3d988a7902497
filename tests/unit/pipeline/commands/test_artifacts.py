"""`artifacts gc` deletes nothing by mistake."""

from __future__ import annotations

import sys

import pytest

from pipeline import cli
from pipeline.base import lease
from pipeline.base.lease import held
from pipeline.base.store import ArtifactStore
from tests.support.command import call_here
from tests.support.manifests import manifest_of


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
