"""The graph: who feeds whom, and what enters the keys."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.config import validate
from pipeline.planning import Selection, make_plan
from schemas.base import identity_of
from schemas.config import DistillConfig, DpoConfig

ALL = ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval")


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("prompts.seed=1", ALL),
        ("synthesize.steps=20", ALL[1:]),
        ("encode.dtype=float32", ("encode", "distill", "dpo", "eval")),
        ("distill.seed=5", ("distill", "dpo", "eval")),
        ("distill.frozen_weights=int8", ("distill", "dpo", "eval")),
        ("pairs.margin=0.5", ("pairs", "dpo", "eval")),
        ("dpo.beta=5", ("dpo", "eval")),
        ("eval.bootstrap=200", ("eval",)),
        ("distill.workers=2", ()),
        ("name=other", ()),
        ("teacher.dtype=float32", ALL),
    ],
)
def test_identity_fields_change_the_keys_of_what_lies_behind(config, store, setting, changed):
    other = open_config(preset="shapes", settings=[setting], environment={})
    keys = [{s.name: s.key for s in make_plan(c, store, Selection())} for c in (config, other)]
    assert tuple(name for name in ALL if keys[0][name] != keys[1][name]) == changed


def test_adapters_on_a_shared_base_are_told_from_those_on_a_copy_of_their_own():
    """They are rounded differently; adapters of `dpo` are trained as before."""
    identity = identity_of(DistillConfig.model_validate({"lora": {"rank": 4}}))
    assert identity["lora"]["base"] == "shared"
    assert "base" not in identity_of(DpoConfig())["lora"]


def keys_of(**sections) -> list[str]:
    config = validate(
        {
            "teacher": {"family": "sd3", "model": "m"},
            "prompts": {"sources": [{"kind": "grammar"}], "count": 3, "buckets": {"64x64": 1}},
            **sections,
        }
    )
    return [s.key for s in make_plan(config, ArtifactStore("memory://golden"), Selection())]


def test_key_is_golden():
    """A refactor must not change keys: that would cost every user their artifacts. These are from
    before noise levels could be shifted.
    """
    unshifted = {"student_time": {"shift": 1}, "renoise": {"shift": 1}}
    assert keys_of(distill=unshifted, dpo={"shift": 1}) == GOLDEN_KEYS


def test_the_teachers_shift_makes_another_student():
    same = [a == b for a, b in zip(keys_of(), GOLDEN_KEYS, strict=True)]
    assert same == [True, True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("preset", "key"), [("shapes", "bd75ee26bd89033e"), ("shapes-smoke", "8291f0d5f1b17d9d")]
)
def test_the_embedded_presets_keep_their_keys(preset, key):
    """The key of `eval` holds those of all other stages."""
    config = open_config(preset=preset, environment={})
    assert make_plan(config, ArtifactStore("memory://golden"), Selection())[-1].key == key


GOLDEN_KEYS = [
    "ffb340f0b8babfdc",
    "09dab0c3ea0b1b15",
    "15b74710f93cb042",
    "f9816c77237bf6a0",
    "c691c60765019017",
    "8523880531230957",
    "1de0b7cbe9488356",
]


def test_external_shards_take_synthesis_out_of_the_graph(store):
    config = open_config(preset="shapes", settings=["encode.external=[x.tar]"], environment={})
    assert [s.name for s in make_plan(config, store, Selection())] == [
        "prompts",
        "encode",
        "distill",
        "pairs",
        "dpo",
        "eval",
    ]


def test_buckets_enter_the_key_of_external_shards_latents(store):
    """Bug: leave `prompts.buckets` out of encode's sections; then old latents are taken for new
    buckets.
    """
    keys = set()
    for settings in ((), ("prompts.buckets={32x32: 1}",)):
        config = open_config(
            preset="shapes", settings=["encode.external=[x.tar]", *settings], environment={}
        )
        keys |= {s.key for s in make_plan(config, store, Selection()) if s.name == "encode"}
    assert len(keys) == 2


def test_without_tuning_an_evaluation_needs_neither_pairs_nor_dpo(store):
    """Bug: leave `eval.tuned` out of the graph; the first number on a student costs a tuning."""
    config = open_config(preset="shapes", settings=["eval.tuned=false"], environment={})
    plan = {stage.name: stage for stage in make_plan(config, store, Selection())}
    assert plan["eval"].inputs == ("prompts", "distill")
    skipped = {name for name, stage in plan.items() if stage.action == "skip"}
    assert skipped == {"pairs", "dpo"}
    asked = {s.name: s.action for s in make_plan(config, store, Selection(until="dpo"))}
    assert asked["dpo"] == asked["pairs"] == "run" and asked["eval"] == "skip"
    whole = open_config(preset="shapes", environment={})
    keys = {s.name: s.key for s in make_plan(whole, store, Selection())}
    assert keys["eval"] != plan["eval"].key and keys["dpo"] == plan["dpo"].key


def test_pairs_need_the_student_only_where_it_draws_them(store):
    def inputs(*settings):
        config = open_config(preset="shapes", settings=settings, environment={})
        return next(s.inputs for s in make_plan(config, store, Selection()) if s.name == "pairs")

    assert inputs() == ("prompts",)
    assert inputs("pairs.model=student") == ("prompts", "distill")
    assert inputs("pairs.model=student", "pairs.url=votes.jsonl") == ("prompts",)
