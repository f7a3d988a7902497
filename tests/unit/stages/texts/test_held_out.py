"""Held-out prompts: in an order of their own, and refused where they were trained on."""

from __future__ import annotations

import json

import pytest

from pipeline.base.lineage import ancestors
from pipeline.base.stage import StageContext
from schemas.errors import ArtifactError, ConfigError
from stages.texts import held_out
from tests.support.held_out import KEY, PROMPTS, configured, evaluation_context


def chosen(context: StageContext) -> tuple[list[dict], dict]:
    """The samples, and the proof that they are held out."""
    samples = held_out.chosen_samples(context)
    return samples, held_out.prove_held_out(samples, ancestors(context.inputs.values()))


def test_held_out_prompts_are_taken_in_an_order_of_their_own(tmp_path):
    context = evaluation_context(tmp_path, configured(), ["a white cross"], ["a blue cross"])
    samples, proof = chosen(context)
    assert sorted(s["prompt"] for s in samples) == sorted(PROMPTS)
    assert [s["prompt_id"] for s in samples] == sorted(s["prompt_id"] for s in samples)
    assert {s["category"] for s in samples} == {"one object", "two objects, relation"}
    assert proof["compared_with"] == {
        f"artifacts/encode/{KEY}": 1,
        f"artifacts/pairs/{KEY}": 1,
    }
    fewer = held_out.prove_held_out(samples[1:], ancestors(context.inputs.values()))
    assert fewer["prompt_ids"] != proof["prompt_ids"]


@pytest.mark.parametrize("where", ["trained", "paired"])
def test_a_prompt_that_was_trained_on_is_refused(tmp_path, where):
    seen = {"trained": ["a white cross"], "paired": ["a blue cross"]}
    seen[where].append(PROMPTS[2])
    with pytest.raises(ArtifactError, match=f"{PROMPTS[2]!r} was trained on"):
        chosen(evaluation_context(tmp_path, configured(), **seen))


def test_a_prompt_file_that_was_trained_on_is_refused(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    rows = [{"tag": "single_object", "prompt": f"a photo of {i} cats"} for i in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configured(f"eval.url={file}")
    samples, _ = chosen(evaluation_context(tmp_path, config, ["a white cross"], []))
    assert {s["category"] for s in samples} == {"single_object"} and len(samples) == 9
    with pytest.raises(ArtifactError, match="a photo of 3 cats"):
        chosen(evaluation_context(tmp_path / "leak", config, ["a photo of 3 cats"], []))


def test_tags_that_are_no_text_are_no_categories(tmp_path):
    lines = [{"prompt": "a", "tag": ["x"]}, {"prompt": "b", "tag": "colors"}, {"prompt": "c"}]
    content = "\n".join(json.dumps(line) for line in [*lines, {"prompt": "d", "tag": None}])
    (tmp_path / "tagged.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert held_out._tags(str(tmp_path / "tagged.jsonl")) == {"b": "colors"}


def test_too_few_prompts_are_refused(tmp_path):
    file = tmp_path / "few.txt"
    file.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="2 prompts are too few"):
        chosen(evaluation_context(tmp_path, configured(f"eval.url={file}"), ["a white cross"], []))
