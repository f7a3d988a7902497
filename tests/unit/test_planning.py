"""Keys, plans and configuration."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.config import load_config, preset_names, validate
from pipeline.dag import STAGES
from pipeline.planning import Selection, changed_fields, make_plan
from pipeline.stage_task import environment
from schemas.base import identity_of
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ConfigError
from tests.manifests import manifest_of


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def config(store):
    return load_config(preset="shapes", settings=[f"store={store.url}"], environment={})


def commit(store, config, *names):
    for stage in make_plan(config, store, Selection()):
        if stage.name in names:
            store.commit(
                manifest_of(
                    stage.name,
                    key=stage.key,
                    version=STAGES[stage.name].version,
                    identity=STAGES[stage.name].identity(config),
                )
            )


def actions(config, store, **selection):
    return {s.name: s.action for s in make_plan(config, store, Selection(**selection))}


ALL = ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval")


def test_fresh_store_runs_everything(config, store):
    assert set(actions(config, store).values()) == {"run"}
    assert actions(config, store, until="synthesize") == dict(
        zip(ALL, ["run", "run", *["skip"] * 5], strict=True)
    )


def test_finished_work_is_not_repeated_even_when_its_inputs_are_gone(config, store):
    commit(store, config, "distill")
    assert actions(config, store, until="distill") == dict(
        zip(ALL, ["skip", "skip", "skip", "done", *["skip"] * 3], strict=True)
    )
    assert actions(config, store) == dict(
        zip(ALL, ["run", "skip", "skip", "done", "run", "run", "run"], strict=True)
    )
    assert actions(config, store, until="encode")["encode"] == "run"


def test_force_runs_a_finished_stage_and_what_it_misses(config, store):
    commit(store, config, *ALL)
    assert actions(config, store, force=frozenset({"encode"})) == dict(
        zip(ALL, ["done", "done", "run", *["done"] * 4], strict=True)
    )


def test_from_and_only_need_their_inputs(config, store):
    commit(store, config, "prompts", "synthesize")
    assert actions(config, store, only="encode")["encode"] == "run"
    with pytest.raises(ArtifactError, match=r"needs the artifact of encode.*--until encode"):
        make_plan(config, store, Selection(start="distill"))
    with pytest.raises(ArtifactError, match="needs the artifact of encode"):
        make_plan(config, store, Selection(only="distill"))


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("prompts.seed=1", ALL),
        ("synthesize.steps=20", ALL[1:]),
        ("encode.dtype=float32", ("encode", "distill", "dpo", "eval")),
        ("distill.seed=5", ("distill", "dpo", "eval")),
        ("pairs.margin=0.5", ("pairs", "dpo", "eval")),
        ("dpo.beta=5", ("dpo", "eval")),
        ("eval.bootstrap=200", ("eval",)),
        ("distill.workers=2", ()),
        ("name=other", ()),
        ("teacher.dtype=float32", ALL),
    ],
)
def test_identity_fields_change_the_keys_of_what_lies_behind(config, store, setting, changed):
    other = load_config(preset="shapes", settings=[setting], environment={})
    keys = [{s.name: s.key for s in make_plan(c, store, Selection())} for c in (config, other)]
    assert tuple(name for name in ALL if keys[0][name] != keys[1][name]) == changed


def test_plan_says_which_field_changed_from_what_to_what(config, store):
    commit(store, config, *ALL)
    other = config.model_copy(
        update={"synthesize": config.synthesize.model_copy(update={"guidance_scale": 2.5})}
    )
    why = {s.name: s.why for s in make_plan(other, store, Selection())}
    assert (
        why["synthesize"]
        == f"synthesize.guidance_scale changed from {config.synthesize.guidance_scale} to 2.5"
    )
    assert why["encode"] == "input changed: synthesize"


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


def test_key_is_golden():
    """A refactor must not change keys: that would cost every user their artifacts."""
    config = validate(
        {
            "teacher": {"family": "sd3", "model": "m"},
            "prompts": {"sources": [{"kind": "grammar"}], "count": 3, "buckets": {"64x64": 1}},
        }
    )
    keys = [s.key for s in make_plan(config, ArtifactStore("memory://golden"), Selection())]
    assert keys == GOLDEN_KEYS


GOLDEN_KEYS = [
    "ffb340f0b8babfdc",
    "09dab0c3ea0b1b15",
    "15b74710f93cb042",
    "f9816c77237bf6a0",
    "c691c60765019017",
    "8523880531230957",
    "1de0b7cbe9488356",
]


def test_runtime_fields_are_not_in_the_identity(config):
    identity = identity_of(config.distill)
    assert "learning_rate" in identity and "workers" not in identity and "log_every" not in identity
    assert "pool" not in identity_of(config.synthesize)


def test_precedence_flag_over_environment_over_file_over_preset(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("preset: shapes\ndistill: {steps: 11, learning_rate: 0.5}\nname: filed\n")
    environment = {
        "LADD_DISTILL__LEARNING_RATE": "0.25",
        "LADD_DISTILL__SEED": "3",
        "LADD_UNRELATED": "x",
    }
    config = load_config(file, settings=["distill.seed=4"], environment=environment)
    assert (
        config.name,
        config.distill.steps,
        config.distill.learning_rate,
        config.distill.seed,
    ) == ("filed", 11, 0.25, 4)
    assert (
        config.prompts.samples_per_shard
        == load_config(preset="shapes", environment={}).prompts.samples_per_shard
    )


def test_scientific_notation_without_a_dot_is_a_number():
    assert (
        load_config(
            preset="shapes", settings=["distill.learning_rate=1e-6"], environment={}
        ).distill.learning_rate
        == 1e-6
    )


@pytest.mark.parametrize("setting", ["distill", "=3", "distill.steps=[1"])
def test_malformed_settings_are_refused(setting):
    with pytest.raises(ConfigError, match="--set"):
        load_config(preset="shapes", settings=[setting], environment={})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    config = load_config(preset=name, environment={})
    assert config.distill.global_batch % config.distill.workers == 0


def test_unknown_preset_suggests():
    with pytest.raises(ConfigError, match="did you mean shapes"):
        load_config(preset="shape", environment={})


def test_changed_fields_reach_into_lists_and_missing_sections():
    assert changed_fields({"a": {"b": 1}}, {"a": {"b": 2, "c": None}}) == [
        "a.b changed from 1 to 2"
    ]


def test_external_shards_take_synthesis_out_of_the_graph(store):
    config = load_config(preset="shapes", settings=["encode.external=[x.tar]"], environment={})
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
        config = load_config(
            preset="shapes", settings=["encode.external=[x.tar]", *settings], environment={}
        )
        keys |= {s.key for s in make_plan(config, store, Selection()) if s.name == "encode"}
    assert len(keys) == 2


def test_pairs_need_the_student_only_where_it_draws_them(store):
    def inputs(*settings):
        config = load_config(preset="shapes", settings=settings, environment={})
        return next(s.inputs for s in make_plan(config, store, Selection()) if s.name == "pairs")

    assert inputs() == ("prompts",)
    assert inputs("pairs.model=student") == ("prompts", "distill")
    assert inputs("pairs.model=student", "pairs.url=votes.jsonl") == ("prompts",)


def test_a_manifest_needs_no_git(monkeypatch):
    """Bug: let the missing program end the stage when its work is done; images have no git."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment().git_commit is None
    assert environment().packages["torch"]
