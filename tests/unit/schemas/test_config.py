"""Every field of the configuration is documented, and what does not go together is refused."""

from __future__ import annotations

import pytest

from schemas.words import documented_schema


def test_every_field_is_documented():
    """By words of its own, or by those of the section that it holds."""
    schema = documented_schema()
    for model, part in ({"PipelineConfig": schema} | schema["$defs"]).items():
        for name, field in part.get("properties", {}).items():
            refs = [one["$ref"] for one in (field, *field.get("anyOf", ())) if "$ref" in one]
            sections = [schema["$defs"][ref.rpartition("/")[2]] for ref in refs]
            words = "description" in field or any("description" in one for one in sections)
            assert words or name == "sources", f"{model}.{name} has no words under it"


@pytest.mark.parametrize("field", ["prompts.seed", "distill.seed"])
def test_seed_below_zero(refused, field):
    code, text = refused("plan", "--set", f"{field}=-1")
    assert code == 2, text
    assert field in text and "greater than or equal to 0" in text


def test_mismatched_prompts_in_batches_of_one(refused):
    code, text = refused(
        "plan", distill={"global_batch": 1, "objective": {"mismatched_share": 0.2}}
    )
    assert code == 2, text
    assert "mismatched_share needs a global_batch of at least 2" in text


def test_bucket_that_is_no_size(refused):
    code, text = refused("plan", prompts={"buckets": {"square": 1}})
    assert code == 2, text
    assert "'square' is not WIDTHxHEIGHT" in text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shard_teacher": True}, "shard_teacher needs a shard_over above 1"),
        (
            {"student_time": {"rollout": 0.5}, "objective": {"regression_weight": 1.0}},
            "rollout does not go with objective.regression_weight",
        ),
    ],
)
def test_options_that_would_do_nothing_or_the_wrong_thing(refused, wrong, said):
    code, text = refused("plan", distill=wrong)
    assert code == 2, text
    assert said in text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"guidance_scale": 1, "negative_prompt": "blur"}, "negative_prompt has no effect without"),
        ({"guidance_scale": 1, "guidance_stop": 0.5}, "guidance_stop have no effect without"),
        (
            {"guidance_scale": 1, "skip_layer_guidance": {"layers": [7]}},
            "skip_layer_guidance has no effect without guidance",
        ),
        ({"guidance_start": 0.5, "guidance_stop": 0.5}, "leave none of 28 steps guided"),
        ({"guidance_range": [4, 4]}, "must rise; for one scale set guidance_scale"),
        (
            {"steps": 4, "skip_layer_guidance": {"layers": [7]}},
            "skip_layer_guidance has no effect in 4 steps",
        ),
    ],
)
def test_guidance_that_would_do_nothing(refused, wrong, said):
    code, text = refused("plan", synthesize={"steps": 28, **wrong})
    assert code == 2, text
    assert said in text


@pytest.mark.parametrize(
    ("look", "changes", "words"),
    [
        (None, {"choose": "best"}, "choose: best needs a look"),
        ({}, {"choose_by": "beauty"}, "beauty is none of distance, diversity, layout"),
        ({"every": 3}, {"choose": "best"}, "look.every 3 is no multiple of checkpoint_every 2"),
        ({"every": 6}, {"choose": "best"}, "look.every 6 is above all 5 updates"),
        ({"steps": 3}, {}, "distill.look.steps is 3, but the student takes 4 or 2 or 1 steps"),
        ({"scores": [{"name": "layuot"}]}, {}, "distill.look.scores.name: unknown score 'layuot'"),
        ({"features": {"name": "clip"}}, {}, "distill.look.features.name: unknown score 'clip'"),
    ],
)
def test_looks_that_cannot_be_taken_or_chosen_by(refused, look, changes, words):
    known = {"scores": [{"name": "layout"}], "features": {"name": "judge_features"}}
    code, text = refused("run", distill=changes | {"look": look if look is None else known | look})
    assert code == 2, text
    assert words in text
