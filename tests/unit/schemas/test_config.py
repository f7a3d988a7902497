"""Every field of the configuration is documented, and what does not go together is refused."""

from __future__ import annotations

import pytest

from schemas.config import PipelineConfig


def test_every_field_is_documented_and_either_identity_or_runtime():
    def visit(model):
        for name, field in model.model_fields.items():
            kinds = [
                k
                for k in (field.annotation, *getattr(field.annotation, "__args__", ()))
                if hasattr(k, "model_fields")
            ]
            for kind in kinds:
                visit(kind)
            words = field.description or any(kind.__doc__ for kind in kinds) or name == "sources"
            assert words, f"{model.__name__}.{name} has no words under it"

    visit(PipelineConfig)


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
