"""An unfinished stage goes on only where its inputs are still the same; what a manifest records."""

from __future__ import annotations

import subprocess

import pytest

from pipeline import stage_task
from pipeline.base.store import ArtifactStore
from pipeline.config import load_config
from pipeline.stage_task import _begin, environment
from tests.support.manifests import manifest_of


def test_a_manifest_needs_no_git(monkeypatch):
    """Bug: let the missing program end the stage when its work is done; images have no git."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment().git_commit is None
    assert environment().packages["torch"]


@pytest.mark.parametrize(
    ("installed", "project", "named"),
    [("", "ladd-pipeline", "checkout"), ("", "other", ""), (".venv/site-packages", "other", "")],
)
def test_a_commit_is_that_of_our_own_code(tmp_path, monkeypatch, installed, project, named):
    """Bug: ask git in site-packages; it answers for whatever repository holds them."""
    git = ["git", "-C", tmp_path, "-c", "user.name=me", "-c", "user.email=me@here"]
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / installed / "pipeline").mkdir(parents=True)
    monkeypatch.setattr(stage_task, "__file__", f"{tmp_path / installed}/pipeline/stage_task.py")
    monkeypatch.setenv("LADD_REVISION", "image")
    load_config(None, "shapes")  # reads LADD_… too
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert environment().git_commit == (commit if named else "image")
    monkeypatch.setenv("LADD_REVISION", "")  # as an image without the argument has it
    assert environment().git_commit == (commit if named else None)


HALF = ("artifacts/synthesize/k/shards/64x64/000000.tar", "training/synthesize/k/checkpoint")


def prompts(store: ArtifactStore, digest: str):
    return {"prompts": store.commit(manifest_of("prompts", {"train.parquet": (1, digest)}))}


@pytest.mark.parametrize("changed", [False, True])
def test_shards_of_other_prompts_are_thrown_away(tmp_path, changed):
    """Bug: after `--force prompts` with an edited file, half the pictures show the old prompts."""
    before, after = (ArtifactStore(str(tmp_path / name)) for name in ("before", "after"))
    store = ArtifactStore(str(tmp_path / "store"))
    warnings = []
    _begin(store, "synthesize", "k", "", prompts(before, "a" * 64), warnings.append)
    for name in HALF:
        store.write(name, b"made")
    digest = ("b" if changed else "a") * 64
    _begin(store, "synthesize", "k", "", prompts(after, digest), warnings.append)
    assert [store.read(name) is None for name in HALF] == [changed, changed]
    assert not warnings


@pytest.mark.parametrize("content", [b"", bytes(90), b'{"prompts": "a', b"[1]"])
def test_where_nobody_knows_the_inputs_all_is_made_again_and_it_is_said(tmp_path, content):
    store = ArtifactStore(str(tmp_path / "store"))
    inputs = prompts(store, "a" * 64)
    warnings = []
    for name in (*HALF, "artifacts/synthesize/k/inputs.json"):
        store.write(name, content)
    _begin(store, "synthesize", "k", "", inputs, warnings.append)
    assert [store.read(name) for name in HALF] == [None, None]
    assert len(warnings) == 1 and "inputs.json cannot be read" in warnings[0]
    _begin(store, "synthesize", "k", "", inputs, warnings.append)
    assert len(warnings) == 1
