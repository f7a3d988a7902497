"""What lies outside the store enters the keys by its contents."""

from __future__ import annotations

import os
import time

import pytest

from pipeline.base import fingerprints
from pipeline.base.pins import make_pins, read_pins, with_pins
from pipeline.commands.opening import open_config
from pipeline.dag import STAGES
from pipeline.outside import require_unchanged
from pipeline.planning import Selection, make_plan, take_over
from schemas.errors import StageFailed
from tests.support.manifests import manifest_of

AFTER_ENCODE = ("encode", "distill", "dpo", "eval")
ALL = ("prompts", "encode", "distill", "pairs", "dpo", "eval")
NO_SHARDS = ("prompts", "distill", "pairs", "dpo", "eval")
INPUTS = {
    "prompts.txt": NO_SHARDS,
    "shards/1.tar": AFTER_ENCODE,
    "teacher/vae/weights.safetensors": ALL,
    "teacher/model_index.json": ALL,
    "pairs.jsonl": ("pairs", "dpo", "eval"),
    "reward/model.safetensors": ("pairs", "dpo", "eval"),
    "chooser/config.json": ("dpo", "eval"),
    "judging.txt": ("eval",),
    "score/vocab.txt": ("eval",),
    "features/model.safetensors": ("eval",),
}
"""What the configuration below reads outside the store, and the stages that depend on it."""


@pytest.fixture
def outside(tmp_path, store):
    """The inputs, all two lines long, and the configuration that names them."""
    for name in INPUTS:
        write(tmp_path / name, "one\ntwo\n")
    at = tmp_path
    source = f"{{kind: file, url: {at}/prompts.txt}}"
    return open_config(
        preset="shapes",
        settings=[
            f"store={store.url}",
            f"prompts.sources=[{source}]",
            "prompts.count=null",
            f"encode.external=[{at}/shards/*.tar]",
            f"teacher.model={at}/teacher",
            f"pairs.url={at}/pairs.jsonl",
            f"pairs.reward={{name: pick_score, model: {at}/reward}}",
            f"dpo.chooser={{name: clip_score, model: {at}/chooser}}",
            f"eval.url={at}/judging.txt",
            f"eval.scores=[{{name: clip_score, model: {at}/score}}]",
            f"eval.features={{name: clip_features, model: {at}/features}}",
        ],
        environment={},
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - 60,) * 2)  # so that its digest may be remembered


def test_a_student_made_when_its_micro_batch_entered_the_key_is_found(config, store):
    """Bug: ask for its key alone; then a user's students are all trained again."""
    before = plan(config, store)["distill"]
    above = [plan(config, store)[name].key for name in before.inputs]
    identity = STAGES["distill"].identity(config)
    old = identity | {"distill": identity["distill"] | {"micro_batch": 4}}
    refs = [
        {"stage": name, "key": key, "digest": "d"}
        for name, key in zip(before.inputs, above, strict=True)
    ]
    store.commit(manifest_of("distill", key="0" * 16, version=3, identity=old, inputs=refs))
    for change, is_found in (({}, True), ({"micro_batch": 2}, True), ({"seed": 5}, False)):
        changed = config.distill.model_copy(update=change)
        student = plan(config.model_copy(update={"distill": changed}), store)["distill"]
        assert (student.key == "0" * 16) == is_found == (student.manifest is not None)


def plan(config, store, **selection):
    return {stage.name: stage for stage in make_plan(config, store, Selection(**selection))}


def commit(config, store, *, with_contents=True):
    """Commit an artifact of each stage; without contents, as before contents entered the keys."""
    keys: dict[str, str] = {}
    for name, stage in plan(config, store).items():
        above = [keys[upstream] for upstream in stage.inputs]
        outside = stage.outside if with_contents else {}
        keys[name] = STAGES[name].key(config, above, outside)
        store.commit(
            manifest_of(
                name,
                key=keys[name],
                version=STAGES[name].version,
                identity=STAGES[name].identity(config),
                outside=outside,
            )
        )


def to_run(config, store):
    return tuple(name for name, stage in plan(config, store).items() if stage.action == "run")


@pytest.mark.parametrize("name", INPUTS)
def test_one_byte_makes_exactly_what_depends_on_it_again(outside, store, tmp_path, name):
    commit(outside, store)
    assert to_run(outside, store) == ()
    write(tmp_path / name, "one\ntwO\n")
    assert to_run(outside, store) == INPUTS[name]
    first = plan(outside, store)[INPUTS[name][0]].why
    assert name.split("/")[-1] in first or name.split("/")[0] in first
    assert "was " in first


@pytest.mark.parametrize("name", INPUTS)
def test_touching_makes_nothing_again(outside, store, tmp_path, name):
    commit(outside, store)
    os.utime(tmp_path / name, (1_600_000_000,) * 2)
    assert to_run(outside, store) == ()


def test_what_several_stages_name_is_looked_at_once(outside, store, monkeypatch):
    looked = []
    real = fingerprints.fingerprint

    def counted(kind, value, digests):
        looked.append((kind, str(value)))
        return real(kind, value, digests)

    monkeypatch.setattr(fingerprints, "fingerprint", counted)
    plan(outside, store)
    assert len(looked) == len(set(looked)) > 6


def test_the_plan_says_what_changed(outside, store, tmp_path):
    commit(outside, store)
    write(tmp_path / "prompts.txt", "one\ntwo\nthree\n")
    write(tmp_path / "shards/2.tar", "two\n")
    write(tmp_path / "teacher/vae/weights.safetensors", "new\n")
    why = {name: stage.why for name, stage in plan(outside, store).items()}
    assert "prompts.txt: 2 → 3 lines, was " in why["prompts"]
    assert "teacher: vae/weights.safetensors changed, was " in why["prompts"]
    assert "*.tar: 1 → 2 files, was " in why["encode"]


def test_what_a_model_does_not_read_does_not_count(outside, store, tmp_path):
    commit(outside, store)
    for name in ("README.md", "sample.png", ".git/config.json", ".cache/huggingface/x.json"):
        write(tmp_path / "teacher" / name, "text")
    assert to_run(outside, store) == ()


def test_an_input_that_is_gone_is_taken_as_unchanged(outside, store, tmp_path):
    """A run goes on where its prompt file is not: on a cluster, say."""
    commit(outside, store)
    (tmp_path / "prompts.txt").unlink()
    stages = plan(outside, store)
    assert to_run(outside, store) == ()
    assert "prompts.sources.0.url cannot be looked at" in stages["prompts"].why


def test_what_was_made_before_contents_entered_the_keys_stays_valid(outside, store, tmp_path):
    commit(outside, store, with_contents=False)
    before = plan(outside, store)
    assert {stage.action for stage in before.values()} == {"done"}
    assert "made before contents entered the keys" in before["prompts"].why
    take_over(store, list(before.values()))
    assert plan(outside, store)["prompts"].why == "artifact exists"
    write(tmp_path / "judging.txt", "other\n")
    assert to_run(outside, store) == ("eval",)


def test_what_was_made_before_is_made_anew_under_a_key_with_contents(outside, store):
    commit(outside, store, with_contents=False)
    old = plan(outside, store)["prompts"].key
    forced = plan(outside, store, force=frozenset({"prompts"}))["prompts"]
    assert forced.action == "run"
    assert forced.key != old


def test_an_input_that_changes_while_it_is_read_is_refused(outside, store, tmp_path):
    """Bug: look only before the stage runs; then the key names contents that it has not read."""
    seen = plan(outside, store)["prompts"].outside
    require_unchanged(STAGES["prompts"], outside, seen)
    write(tmp_path / "prompts.txt", "one\nthree\n")
    with pytest.raises(StageFailed, match=r"prompts\.txt\) changed while the stage read it"):
        require_unchanged(STAGES["prompts"], outside, seen)


def test_a_branch_is_pinned_to_its_commit_when_it_is_first_used(store):
    settings = [f"store={store.url}", "teacher.model=maker/model", "teacher.family=sd3"]

    def opened(*more):
        return open_config(preset="shapes", settings=[*settings, *more], environment={})

    config, asked = opened(), []

    def resolve(model, revision):
        asked.append((model, revision))
        return "c0ffee" + "0" * 34

    commit(config, store, with_contents=False)
    assert to_run(config, store) == ()
    make_pins(config, store, resolve)
    make_pins(opened(), store, resolve)
    assert asked == [("maker/model", None)]
    assert opened().teacher.revision == "c0ffee" + "0" * 34
    assert with_pins(config, read_pins(config, store)) == opened()
    # What was made of the branch before it was pinned stays valid.
    assert to_run(opened(), store) == ()
    # Another branch, or a commit, is another teacher.
    assert to_run(opened("teacher.revision=next"), store) == ALL_STAGES
    make_pins(opened(f"teacher.revision={'ab' * 20}"), store, resolve)
    assert len(asked) == 1


ALL_STAGES = ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval")
