"""Local files that go along with a run, and those that cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.config import load_config
from pipeline.planning import Selection, make_plan
from pipeline.travelling import pack, require_shared_store
from schemas.errors import ConfigError

HERE = ["store=s3://bucket/prefix"]


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A working folder with prompts in it, beside it and above it."""
    folder = tmp_path / "home" / "work"
    for name in ("a.txt", "more/b.txt", "more/c.txt", "../beside/d.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"a red {name[-5]}\n" * 40)
    monkeypatch.chdir(folder)
    return folder


def configured(*urls: str, store: str = "s3://b/p"):
    sources = ", ".join(f"{{kind: file, url: '{url}'}}" for url in urls)
    settings = [f"store={store}", f"prompts.sources=[{sources}]"]
    return load_config(None, "shapes-smoke", settings, {})


def names(luggage) -> list[str]:
    return sorted(luggage.files)


def test_files_keep_their_places(work):
    found = pack(configured("a.txt", "more/*.txt", "s3://other/e.txt"), ["prompts"], 10_000)
    assert names(found) == ["a.txt", "more/b.txt", "more/c.txt"] and found.folder == ""
    assert found.command("/etc", "x.yaml", ["--until", "a b"]) == (
        "ladd-pipeline -C /etc run --config x.yaml --until 'a b'"
    )
    found = pack(configured("../beside", "more"), ["prompts"], 10_000)
    assert names(found) == ["beside/d.txt", "work/more/b.txt", "work/more/c.txt"]
    assert found.command("", "x.yaml", []) == "ladd-pipeline -C work run --config x.yaml"


def test_only_what_the_stages_read_goes_along(work):
    assert pack(configured("a.txt"), ["encode"], 10_000).files == {}


def test_keys_are_the_same_where_the_files_have_come(work, tmp_path, monkeypatch):
    """Bug: name the files by their new places; then nothing that was made is found again."""
    config = configured("../beside/d.txt", "more/?.txt", store="memory://travelling")
    luggage = pack(config, ["prompts"], 10_000)
    there = tmp_path / "elsewhere"
    for name, path in luggage.files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there / name)

    def keys() -> list[str]:
        return [s.key for s in make_plan(config, ArtifactStore(config.store), Selection())]

    before = keys()
    shutil.rmtree(work.parent)
    monkeypatch.chdir(there / luggage.folder)
    assert keys() == before
    (there / luggage.folder / "more/b.txt").write_text("changed")
    assert keys() != before


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "{work}/a.txt",
            "prompts.sources.0.url: {work}/a.txt is a path of this machine, which the",
        ),
        ("file://{work}/a.txt", "is a path of this machine"),
        ("~/a.txt", "is a path of this machine"),
        ("none.txt", "prompts.sources.0.url: there is no file none.txt"),
    ],
)
def test_what_the_cluster_cannot_see_is_refused(work, url, said, monkeypatch):
    monkeypatch.setenv("HOME", str(work))
    with pytest.raises(ConfigError) as refused:
        pack(configured(url.format(work=work)), ["prompts"], 10_000)
    assert said.format(work=work) in str(refused.value)


def test_a_folder_that_all_nodes_have_is_taken_as_it_is(work):
    config = configured(f"{work}/a.txt")
    assert pack(config, ["prompts"], 10_000, shared=[work]).files == {}
    require_shared_store(f"{work}/store", shared=[work])


def test_what_is_too_large_is_named(work):
    (work / "a.txt").write_bytes(b"x" * 200_000)
    with pytest.raises(ConfigError) as refused:
        pack(configured("a.txt", "more/b.txt"), ["prompts"], 1000)
    assert str(refused.value).startswith(
        "prompts.sources.0.url: the local files are 200 kB in all, and at most 1 kB go along; "
    )


def test_a_local_model_goes_along(work, tiny_sd3):
    shutil.copytree(tiny_sd3, work / "model")
    config = load_config(None, "shapes-smoke", [*HERE, "teacher={family: sd3, model: model}"], {})
    found = pack(config, ["encode"], 10_000_000)
    assert "model/model_index.json" in found.files
    hub = load_config(None, "shapes-smoke", [*HERE, "teacher={family: sd3, model: a/hub-id}"], {})
    assert pack(hub, ["encode"], 0).files == {}


@pytest.mark.parametrize("store", ["/data/store", "memory://x", "file:///data/store"])
def test_a_store_of_this_machine_alone_is_refused(store):
    with pytest.raises(ConfigError, match=r"store: .*name a bucket"):
        require_shared_store(store)
    require_shared_store("gs://bucket/prefix")
