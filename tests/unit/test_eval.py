"""What an evaluation refuses, and what it makes of numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.lineage import ancestors
from pipeline.base.shards import table_bytes
from pipeline.base.stage import StageContext
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.config import load_config
from schemas.errors import ArtifactError, ConfigError
from schemas.manifest import InputRef
from schemas.report import Interval, SystemResult
from stages.eval import check
from stages.judging.summary import _gate, interval_of
from stages.prompts import SAMPLE_SCHEMA, prompt_id
from stages.texts import held_out as eval_prompts
from tests.manifests import manifest_of

PROMPTS = [f"a {size} {color} ring" for size in ("small", "big") for color in ("red", "blue")]
PROMPTS += [f"a {color} circle left of a ring" for color in ("red", "blue", "white", "green")]

KEY = "k" * 16


def configured(*settings: str):
    return load_config(None, "shapes-smoke", settings, {})


def commit(
    store: ArtifactStore,
    stage: str,
    tables: dict[str, bytes],
    inputs: tuple[Artifact, ...] = (),
    **details,
) -> Artifact:
    folder = store.folder(stage, KEY)
    files = {name: store.write(f"{folder}/{name}", content) for name, content in tables.items()}
    refs = [InputRef(stage=i.manifest.stage, key=i.manifest.key, digest=i.digest) for i in inputs]
    return store.commit(manifest_of(stage, files, key=KEY, inputs=refs, details=details))


def lists(prompts: list[str]) -> bytes:
    schema = pa.schema({"prompt_id": pa.string(), "prompt": pa.string()})
    return table_bytes([{"prompt_id": prompt_id(p), "prompt": p} for p in prompts], schema)


def context_of(tmp_path: Path, config, trained: list[str], paired: list[str]) -> StageContext:
    """An evaluation to come: PROMPTS are held out, these others were trained on."""
    store = ArtifactStore(str(tmp_path / "store"))
    rows = [
        {
            "key": f"{prompt_id(p)}-000",
            "prompt_id": prompt_id(p),
            "prompt": p,
            "seed": i,
            "width": 64,
            "height": 64,
        }
        for i, p in enumerate(PROMPTS)
    ]
    prompts = commit(store, "prompts", {"held_out.parquet": table_bytes(rows, SAMPLE_SCHEMA)})
    encode = commit(
        store, "encode", {"p.parquet": lists(trained)}, (prompts,), prompts=["p.parquet"]
    )
    student = commit(store, "distill", {}, (prompts, encode))
    pairs = commit(store, "pairs", {"shards/pairs/0.parquet": lists(paired)}, (prompts,))
    tuned = commit(store, "dpo", {}, (prompts, pairs, student))
    inputs = {"prompts": prompts, "distill": student, "dpo": tuned}
    return StageContext("eval", "e" * 16, config, store, inputs, lambda *_: None)


def chosen(context: StageContext) -> tuple[list[dict], dict]:
    """The samples, and the proof that they are held out."""
    samples = eval_prompts.chosen_samples(context)
    return samples, eval_prompts.prove_held_out(samples, ancestors(context.inputs.values()))


def test_lineage_reaches_back_to_the_prompts(tmp_path):
    context = context_of(tmp_path, configured(), ["a white cross"], [])
    stages = list(ancestors(context.inputs.values()))
    assert set(stages) == {"prompts", "encode", "distill", "pairs", "dpo"}
    assert stages.index("encode") < stages.index("distill") < stages.index("dpo")


@pytest.mark.parametrize("setting", ["eval.student_steps=[1,3]", "eval.tuned_steps=3"])
def test_steps_off_the_students_grid_are_refused_before_anything_starts(setting):
    field = setting.split("=")[0]
    with pytest.raises(ConfigError, match=rf"{field} is 3, .* takes 4 or 2 or 1"):
        check(configured(setting))


def test_held_out_prompts_are_taken_in_an_order_of_their_own(tmp_path):
    context = context_of(tmp_path, configured(), ["a white cross"], ["a blue cross"])
    samples, proof = chosen(context)
    assert sorted(s["prompt"] for s in samples) == sorted(PROMPTS)
    assert [s["prompt_id"] for s in samples] == sorted(s["prompt_id"] for s in samples)
    assert {s["category"] for s in samples} == {"one object", "two objects, relation"}
    assert proof["compared_with"] == {
        f"artifacts/encode/{KEY}": 1,
        f"artifacts/pairs/{KEY}": 1,
    }
    fewer = eval_prompts.prove_held_out(samples[1:], ancestors(context.inputs.values()))
    assert fewer["prompt_ids"] != proof["prompt_ids"]


@pytest.mark.parametrize("where", ["trained", "paired"])
def test_a_prompt_that_was_trained_on_is_refused(tmp_path, where):
    seen = {"trained": ["a white cross"], "paired": ["a blue cross"]}
    seen[where].append(PROMPTS[2])
    with pytest.raises(ArtifactError, match=f"{PROMPTS[2]!r} was trained on"):
        chosen(context_of(tmp_path, configured(), **seen))


def test_a_prompt_file_that_was_trained_on_is_refused(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    rows = [{"tag": "single_object", "prompt": f"a photo of {i} cats"} for i in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configured(f"eval.url={file}")
    samples, _ = chosen(context_of(tmp_path, config, ["a white cross"], []))
    assert {s["category"] for s in samples} == {"single_object"} and len(samples) == 9
    with pytest.raises(ArtifactError, match="a photo of 3 cats"):
        chosen(context_of(tmp_path / "leak", config, ["a photo of 3 cats"], []))


def test_tags_that_are_no_text_are_no_categories(tmp_path):
    lines = [{"prompt": "a", "tag": ["x"]}, {"prompt": "b", "tag": "colors"}, {"prompt": "c"}]
    content = "\n".join(json.dumps(line) for line in [*lines, {"prompt": "d", "tag": None}])
    (tmp_path / "tagged.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert eval_prompts._tags(str(tmp_path / "tagged.jsonl")) == {"b": "colors"}


def test_too_few_prompts_are_refused(tmp_path):
    file = tmp_path / "few.txt"
    file.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="2 prompts are too few"):
        chosen(context_of(tmp_path, configured(f"eval.url={file}"), ["a white cross"], []))


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ("student_3.attributes: '>= 0.5'", "names no system.*did you mean"),
        ("student_4.atributes: '>= 0.5'", "names nothing that is measured.*did you mean"),
        ("student_4.attributes: about 1", "is not a demand"),
    ],
)
def test_a_gate_that_means_nothing_is_refused_before_anything_runs(gate, reason):
    with pytest.raises(ConfigError, match=reason):
        check(configured(f"eval.gates={{{gate}}}"))


def result_of(value: float) -> SystemResult:
    return SystemResult(
        name="student_4",
        title="student",
        kind="student",
        steps=4,
        guidance_scale=None,
        scores={"attributes": Interval(mean=value, low=value, high=value)},
        by_bucket={},
        by_category={},
        distances={"fid": 3.0},
        diversity=1.0,
        seconds_per_picture=0.1,
    )


def test_a_gate_says_by_how_much_it_is_missed():
    missed = _gate("student_4.attributes", ">= 0.85", [result_of(0.8)])
    assert not missed.passed and missed.misses_by == pytest.approx(0.05)
    assert _gate("student_4.attributes", ">= 0.85", [result_of(0.85)]).passed
    assert _gate("student_4.fid", "< 3.5", [result_of(0.8)]).passed
    assert not _gate("student_4.fid", "< 3", [result_of(0.8)]).passed


def test_an_interval_covers_the_mean_as_often_as_it_says():
    config = configured("eval.bootstrap=400").eval
    rng = np.random.default_rng(0)
    found = [interval_of((rng.random(60) < 0.3).astype(float), config) for _ in range(200)]
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in found])
    assert 0.88 <= covered <= 0.99
    assert interval_of(np.ones(5), config) == Interval(mean=1, low=1, high=1)
