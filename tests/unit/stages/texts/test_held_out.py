"""Held-out prompts: in an order of their own, and refused where they were trained on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.base.lineage import ancestors
from pipeline.base.stage import StageContext
from schemas.errors import ArtifactError, ConfigError
from stages.texts import held_out
from stages.texts.identity import clean, prompt_id
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
    lines = [{"prompt": f"p{i}", "tag": tag} for i, tag in enumerate((["x"], "colors", None))]
    lines += [{"prompt": f"q{i}"} for i in range(6)]
    content = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "tagged.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode())
    config = configured(f"eval.url={tmp_path / 'tagged.jsonl'}")
    samples, _ = chosen(evaluation_context(tmp_path, config, ["a white cross"], []))
    assert {s["prompt"]: s["category"] for s in samples if s["category"] != "other"} == {
        "p1": "colors"
    }


@pytest.mark.parametrize("mark", ["\ufeff", "\u200b", "\u00ad", "\u200d", "\ufe0f"])
def test_a_prompt_with_a_character_that_nobody_sees_was_trained_on(tmp_path, mark):
    """Bug: take ids of the raw texts; then this prompt is held out and trained on."""
    seen = f"a{mark} small red ring"
    for trained in ([seen], [PROMPTS[0]]):
        with pytest.raises(ArtifactError, match="was trained on"):
            chosen(evaluation_context(tmp_path / trained[0], configured(), trained, []))
    assert prompt_id(clean(seen)) == prompt_id(PROMPTS[0])


def test_another_column_is_judged_on_and_many_odd_rows_are_told(tmp_path):
    file = tmp_path / "DrawBench.csv"
    rows = "".join(f"A red colored car {i}.,Colors\n" for i in range(12))
    file.write_text(f"Prompts,Category\n{rows},Colors\n   ,Colors\n")
    config = configured(f"eval.url={file}", "eval.column=Prompts", "eval.prompts=20")
    warnings: list[str] = []
    context = replace(evaluation_context(tmp_path, config, [], []), warn=warnings.append)
    assert len(chosen(context)[0]) == 12
    held_out.tell_of_failed_rows(context)
    assert len(warnings) == 1 and "2 of 14 rows of eval.url" in warnings[0]


def test_too_few_prompts_are_refused(tmp_path):
    file = tmp_path / "few.txt"
    file.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="2 prompts are too few"):
        chosen(evaluation_context(tmp_path, configured(f"eval.url={file}"), ["a white cross"], []))
