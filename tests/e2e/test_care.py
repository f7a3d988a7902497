"""A finished store is cared for: data are dropped, damages repaired, leftovers cleaned up."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from schemas.records import ShardStats
from tests.support.command import artifact, call_here

pytestmark = pytest.mark.slow
TIMES = r"[\d.]+\s(ms|s|times)\b|on \d+ \w+ \d+, \d\d:\d\d UTC"


@pytest.fixture
def care(smoke_store, tmp_path):
    """A copy of a finished store, and a command on it."""
    store = tmp_path / "store"
    shutil.copytree(smoke_store, store)

    def call(*arguments: str, code: int = 0) -> str:
        where = ["--preset", "shapes-smoke", "--set", f"store={store}"]
        done = call_here(*arguments, *where)
        text = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == code and "Traceback" not in text, text
        return text

    return store, call


def files(folder: Path, *endings: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(endings)
    }


def untimed(report: Path) -> dict:
    """A report without what a clock has said."""
    content = json.loads(report.read_text())
    for name in ("created", "headline"):
        content.pop(name)
    for system in content["systems"]:
        system.pop("seconds_per_picture")
    return content


def cards_of(evaluation: Path) -> list[str]:
    """The students' model cards, without what a clock has said."""
    return [
        re.sub(TIMES, "", (evaluation / folder / "README.md").read_text())
        for folder in ("student", "model")
    ]


def test_report_and_card_come_out_the_same_without_the_data(care):
    store, call = care
    first = artifact(store, "eval")
    report, cards = untimed(first / "report.json"), cards_of(first)
    pictures = files(first / "shards", ".tar", ".parquet")
    proof = json.loads((first / "manifest.json").read_text())["details"]["held_out_proof"]
    for stage in ("synthesize", "encode", "pairs"):
        assert "dropped" in call("artifacts", "drop", stage)
        assert not list(artifact(store, stage).rglob("*.tar"))
    assert not list((artifact(store, "encode") / "latents").rglob("*.npy"))
    text = call("artifacts", "verify")
    assert text.count("files were dropped on") == 3
    shutil.rmtree(first)
    call("run")
    again = artifact(store, "eval")
    assert untimed(again / "report.json") == report
    assert cards_of(again) == cards
    assert files(again / "shards", ".tar", ".parquet") == pictures
    made = json.loads((again / "manifest.json").read_text())["details"]["held_out_proof"]
    assert made == proof


def test_plan_says_what_needs_dropped_data_before_anything_starts(care):
    store, call = care
    call("artifacts", "drop", "encode")
    for command in (("plan",), ("run",), ("run", "--dry-run")):
        text = call(*command, "--set", "distill.learning_rate=0.5", code=4)
        assert "distill needs the latents of encode/" in text and "which were dropped on" in text
        assert "`ladd-pipeline artifacts repair encode` makes them again" in text
    assert len(list((store / "artifacts" / "distill").iterdir())) == 1
    assert "│ run" not in call("plan")


def test_plan_foresees_that_the_lineage_is_gone(care):
    """Bug: `eval` ended with exit code 4 after it had begun, and `plan` had not said so."""
    store, call = care
    shutil.rmtree(artifact(store, "encode"))
    assert "│ run" not in call("plan")
    shutil.rmtree(artifact(store, "eval"))
    for command in ("plan", "run"):
        text = call(command, code=4)
        assert "was made from encode/" in text and "no longer in the store" in text
        assert "`ladd-pipeline run --until encode` makes it again" in text
    assert not list((store / "artifacts" / "eval").glob("*/shards"))


def test_a_shorter_student_is_taken_from_its_checkpoint_without_the_latents(care):
    store, call = care
    shutil.rmtree(artifact(store, "distill"))
    call("artifacts", "drop", "encode", "--force")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("checkpoint_*/**/*")}
    call("run", "--until", "distill")
    assert (artifact(store, "distill") / "model" / "transformer").is_dir()
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("checkpoint_*/**/*")}


def test_repair_makes_the_damaged_shards_again_and_no_other(care):
    store, call = care
    pictures, latents = artifact(store, "synthesize"), artifact(store, "encode")
    good = files(store / "artifacts", ".tar", ".npy", ".parquet")
    tars = sorted(pictures.rglob("*.tar"))
    flipped = bytearray(tars[0].read_bytes())
    flipped[700] ^= 1
    tars[0].write_bytes(flipped)
    next(latents.glob("latents/*/*.npy")).unlink()
    next(latents.rglob("*.prompts.parquet")).write_bytes(b"short")
    stamps = {path: path.stat().st_mtime_ns for path in (*tars[1:], pictures / "manifest.json")}
    text = call("artifacts", "verify", code=4)
    assert "is missing" in text and "bytes instead of" in text and tars[0].name not in text
    assert tars[0].name in call("artifacts", "verify", "--deep", code=4)
    assert "3 files made again" in call("artifacts", "repair", "--deep")
    assert files(store / "artifacts", ".tar", ".npy", ".parquet") == good
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert "match their manifests (sizes and contents)" in call("artifacts", "verify", "--deep")
    assert "nothing is damaged" in call("artifacts", "repair", "--deep")


def test_repair_of_a_stage_makes_again_what_was_dropped(care):
    store, call = care
    good = files(artifact(store, "encode"), ".npy")
    call("artifacts", "drop", "encode")
    assert "nothing is damaged" in call("artifacts", "repair")
    assert "dropped)" in call("artifacts", "ls")
    assert "data dropped" in call("status")
    assert "files made again" in call("artifacts", "repair", "encode")
    assert files(artifact(store, "encode"), ".npy") == good
    assert "dropped" not in call("artifacts", "ls")


def test_repair_writes_no_other_bytes_than_the_manifest_knows(care):
    store, call = care
    report = artifact(store, "eval") / "report.json"
    pages = files(artifact(store, "eval"), ".html", ".md")
    report.unlink()
    text = call("artifacts", "repair", code=4)
    assert "report.json came out with different bytes" in text and "--force eval" in text
    assert files(artifact(store, "eval"), ".html", ".md") == pages and not report.exists()


def test_failed_samples_are_made_again_where_they_failed(care):
    """A flaky device, played by markers that count failures."""
    store, call = care
    pictures = artifact(store, "synthesize")
    assert "0 shards with failed samples" in call("synthesize", "--retry-failed")
    good = files(pictures, ".tar")
    markers = sorted(pictures.glob("shards/*/*.json"))
    stats = ShardStats.model_validate_json(markers[0].read_text())
    stats = stats.model_copy(update={"counts": stats.counts | {"failed": 1}, "seal": ""})
    markers[0].write_text(stats.model_dump_json())
    stamps = {path: path.stat().st_mtime_ns for path in sorted(pictures.rglob("*.tar"))}
    assert "1 shards with failed samples are made again" in call("synthesize", "--retry-failed")
    assert files(pictures, ".tar") == good
    changed = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert [path.with_suffix("") for path in changed] == [markers[0].with_suffix("")]
    manifest = json.loads((pictures / "manifest.json").read_text())
    assert manifest["counts"]["failed"] == 0


def test_what_is_still_needed_is_not_dropped(care):
    store, call = care
    pictures = artifact(store, "synthesize")
    (artifact(store, "encode") / "manifest.json").unlink()
    text = call("artifacts", "drop", "synthesize", code=4)
    assert "nothing has been made from synthesize/" in text
    text = call("artifacts", "drop", "prompts", code=2)
    assert "prompts has no data to drop; stages that have: synthesize, encode, pairs" in text
    assert list(pictures.rglob("*.tar"))


def test_a_pushed_store_is_a_store_and_a_stopped_copy_goes_on(care, tmp_path):
    store, call = care
    other = tmp_path / "other"
    call("artifacts", "push", "--to", str(other))
    assert files(other / "artifacts", ".tar", ".npy", ".safetensors", "manifest.json") == files(
        store / "artifacts", ".tar", ".npy", ".safetensors", "manifest.json"
    )
    there = call_here("plan", "--preset", "shapes-smoke", "--set", f"store={other}")
    assert "│ run" not in there.stdout and there.stdout.count("│ done") == 7
    cut = artifact(other, "encode")
    (cut / "manifest.json").unlink()  # the copy was stopped
    lost = next(cut.glob("latents/*/*.npy"))
    lost.unlink()
    size = (artifact(store, "encode") / lost.relative_to(cut)).stat().st_size
    assert f"{size / 1e6:.1f} MB copied to" in call("artifacts", "push", "--to", str(other))
    assert "0.0 MB copied to" in call("artifacts", "push", "--to", str(other))
    assert lost.exists() and (cut / "manifest.json").exists()


def test_a_student_is_pulled_with_its_lineage_but_without_the_pictures(care, tmp_path):
    store, _ = care
    mine = tmp_path / "mine"

    def on_mine(*arguments: str, code: int = 0) -> str:
        done = call_here(*arguments, "--preset", "shapes-smoke", "--set", f"store={mine}")
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    text = on_mine("artifacts", "pull", "dpo", "--from", str(store))
    assert "synthesize/" in text and "without its data" in text
    assert not list(mine.rglob("*.tar")) and not list(mine.glob("artifacts/eval"))
    assert (artifact(mine, "dpo") / "model" / "transformer").is_dir()
    assert "match their manifests" in on_mine("artifacts", "verify")
    assert "│ run" not in on_mine("plan", "--until", "dpo")
    other = ("--until", "distill", "--set", "distill.seed=9")
    assert "needs the latents" in on_mine("plan", *other, code=4)
    on_mine("artifacts", "pull", "encode", "--from", str(store))
    assert "needs the latents" not in on_mine("plan", *other)


def test_another_making_of_an_artifact_is_not_overwritten(care, tmp_path):
    store, call = care
    other = tmp_path / "other"
    shutil.copytree(store, other)
    manifest = artifact(other, "eval") / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"seconds": 1.5}))
    text = call("artifacts", "push", "eval", "--to", str(other), code=4)
    assert "have the same key but different contents" in text
    assert json.loads(manifest.read_text())["seconds"] == 1.5


def test_an_accepted_artifact_stands_for_that_of_a_changed_configuration(care):
    store, call = care
    changed = ("--set", "synthesize.quality=77")
    assert "synthesize.quality changed from" in call("plan", "--json", *changed)
    key = artifact(store, "synthesize").name
    reason = "the pictures are PNG, which knows no quality"
    text = call("artifacts", "accept", key[:6], "--reason", reason, *changed)
    assert "synthesize.quality changed from" in text and f"synthesize/{key} stands for" in text
    text = call("plan", "--json", "--until", "distill", *changed)
    assert '"run"' not in text and f"accepted: {reason}" in text
    assert "nothing to accept" in call("artifacts", "accept", key, "--reason", "x", code=2)
    call("artifacts", "gc", "--delete", *changed)
    assert artifact(store, "synthesize").name == key and artifact(store, "distill")
    shutil.rmtree(artifact(store, "encode"))
    call("run", "--until", "encode", *changed)
    (ref,) = json.loads((artifact(store, "encode") / "manifest.json").read_text())["inputs"]
    assert ref["key"] == key and ref["accepted"] == reason
