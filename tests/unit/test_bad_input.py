"""Bad input gets one clear sentence, the right exit code, no traceback, and nothing half
written.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import cli
from tests.conftest import make_tiny_config


@pytest.fixture
def refused(tiny_sd3, tmp_path, monkeypatch, capsys):
    """Call the command in this process and expect it to refuse; gives the exit code and the
    sentence.
    """

    def call(*arguments, **sections):
        config = make_tiny_config(tiny_sd3, tmp_path / "store").model_dump(mode="json")
        for name, values in sections.items():
            config[name] = {**config[name], **values} if isinstance(values, dict) else values
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(config))
        command, *rest = arguments or ("run",)
        monkeypatch.setattr(
            sys, "argv", ["ladd-pipeline", command, "-c", str(path), *map(str, rest)]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output.err
        assert "Traceback" not in output.err
        assert not list((tmp_path / "store").glob("artifacts/*/*/manifest.json"))
        return stop.value.code, errors[0]

    return call


def file_source(path, **more):
    return {"sources": [{"kind": "file", "url": str(path), **more}], "count": None}


def test_unknown_field(refused):
    code, text = refused("plan", distill={"learning_rat": 1})
    assert code == 2, text
    assert "unknown field distill.learning_rat; did you mean learning_rate?" in text


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
    assert "mismatched_share needs a global_batch of 2" in text


def test_wrong_type(refused):
    code, text = refused("plan", "--set", "distill.steps=many")
    assert code == 2, text
    assert "distill.steps" in text and "integer" in text and "'many'" in text


def test_unknown_stage(refused):
    code, text = refused("run", "--until", "distil")
    assert code == 2, text
    assert "unknown stage 'distil'; did you mean distill?" in text


def test_a_store_of_shards_that_nobody_knows(refused):
    code, text = refused("run", "--until", "encode", encode={"external": ["nosuch://x/*.tar"]})
    assert code == 2, text
    assert "encode.external: nosuch://x/*.tar" in text


def test_an_unknown_score_is_named_before_anything_runs(refused):
    code, text = refused(eval={"scores": [{"name": "atributes"}]})
    assert code == 2, text
    assert "eval.scores" in text and "did you mean attributes?" in text


def test_missing_prompt_file(refused, tmp_path):
    code, text = refused(prompts=file_source(tmp_path / "none.txt"))
    assert code == 2, text
    assert f"there is no file {tmp_path / 'none.txt'}" in text


@pytest.mark.slow
def test_empty_prompt_file(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    code, text = refused(prompts=file_source(tmp_path / "empty.txt"))
    assert code == 2, text
    assert "empty.txt holds no prompts" in text


@pytest.mark.slow
def test_prompt_file_that_is_not_utf8(refused, tmp_path):
    (tmp_path / "latin.txt").write_bytes("ein grüner Kreis\n".encode("latin-1"))
    code, text = refused(prompts=file_source(tmp_path / "latin.txt"))
    assert code == 2, text
    assert "latin.txt is not UTF-8" in text and "iconv" in text


@pytest.mark.slow
def test_teacher_folder_without_a_transformer(refused, tiny_sd3, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_sd3, broken)
    shutil.rmtree(broken / "transformer")
    code, text = refused(teacher={"model": str(broken)})
    assert code == 2, text
    assert f"{broken} has no folder 'transformer'" in text


@pytest.mark.slow
def test_model_that_is_nowhere(refused):
    code, text = refused(teacher={"model": "nobody/no-such-model"})
    assert code == 2, text
    assert (
        "teacher.model: 'nobody/no-such-model' is neither a folder here nor a model that the "
        "hub gives us" in text
    )


def test_gc_deletes_nothing_for_a_configuration_that_nobody_named(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "store" / "artifacts" / "distill" / "0123456789abcdef" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    arguments = ["artifacts", "gc", "--delete", "--set", f"store={tmp_path}/store"]
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "--config FILE or --preset NAME" in capsys.readouterr().err
    assert kept.exists()


@pytest.mark.slow
def test_truncated_shard(refused, tmp_path):
    from pipeline.base.shards import write_tar

    write_tar(
        tmp_path / "00000.tar", [(f"{i:09d}", {"jpg": b"x" * 3000, "txt": b"a"}) for i in range(3)]
    )
    content = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[:6000])
    code, text = refused(
        "run", "--until", "encode", encode={"external": [str(tmp_path / "00000.tar")]}
    )
    assert code == 4, text
    assert "00000.tar is damaged or cut short" in text


def test_manifest_of_a_newer_schema(refused, tiny_sd3, tmp_path):
    from pipeline.base.store import ArtifactStore
    from pipeline.planning import Selection, make_plan

    config = make_tiny_config(tiny_sd3, tmp_path / "store")
    planned = make_plan(config, ArtifactStore(config.store), Selection())[0]
    folder = tmp_path / "store" / "artifacts" / "prompts" / planned.key
    folder.mkdir(parents=True)
    path = folder / "manifest.json"
    path.write_text(json.dumps({"schema_version": 99}))
    config_file = tmp_path / "again.yaml"
    config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    sys.argv = ["ladd-pipeline", "plan", "-c", str(config_file)]
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 4


def test_read_only_store(refused, tmp_path):
    """/proc refuses to make folders, for root too."""
    code, text = refused("run", store="/proc/ladd-store")
    assert code == 4, text
    assert "store /proc/ladd-store: cannot write runs/" in text


@pytest.mark.slow
def test_bucket_that_does_not_fit_the_teacher(refused):
    code, text = refused(prompts={"buckets": {"32x32": 1, "44x20": 1}})
    assert code == 2, text
    assert (
        "bucket 44x20 does not fit the teacher: both sides must be divisible by 8" in text
        and "use 48x16" in text
    )


def test_bucket_that_is_no_size(refused):
    code, text = refused("plan", prompts={"buckets": {"square": 1}})
    assert code == 2, text
    assert "'square' is not WIDTHxHEIGHT" in text


def test_store_without_a_driver(refused):
    code, text = refused("plan", store="nosuch://bucket")
    assert code == 2, text
    assert "store: 'nosuch://bucket' cannot be opened" in text


def test_only_without_its_inputs(refused):
    code, text = refused("run", "--only", "encode")
    assert code == 4, text
    assert "`ladd-pipeline run --until" in text


def test_uneven_grid(refused):
    code, text = refused(
        "run", distill={"student_time": {"grid": [1.0, 0.9, 0.5, 0.25], "warmup_steps": 1}}
    )
    assert code == 2, text
    assert "evenly spaced" in text


def test_unknown_option_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", "run", "--untill", "x"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--untill" in capsys.readouterr().err


def test_init_never_overwrites(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", "init", str(tmp_path)])
    cli.main()
    first = Path(tmp_path / "pipeline.yaml").read_text()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert Path(tmp_path / "pipeline.yaml").read_text() == first


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
