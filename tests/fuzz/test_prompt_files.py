"""Mutated prompt files, settings and configuration files: only a LaddError may come out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_config, read_preset
from schemas.config import PipelineConfig
from schemas.errors import LaddError
from stages.texts.identity import clean
from stages.texts.prompt_files import FORMATS, PACKED, Fields, rows_of
from tests.support.fuzzing import fuzzed, mutated
from tests.support.prompt_files import written

pytestmark = pytest.mark.slow

FIELDS = Fields("prompts.sources", "prompts.sources.column")
PROMPTS = ["a red circle", 'say "x", or y', "grün ☃ \u200d \U0001f469\u200d\U0001f4bb", "a\tb"] * 5
KINDS = [*FORMATS, *(f"jsonl.{packed}" for packed in PACKED), "parquet.gz", "csv.zst"]
PLACES = ["name", "store", "teacher.revision", "distill.steps", "distill.learning_rate", "gates"]
PLACES += ["prompts.sources", "prompts.buckets", "eval.url", "eval.gates.a.b", "distill", "x.y"]


@pytest.mark.parametrize("kind", KINDS)
@fuzzed
@given(data=st.data())
def test_a_mutated_file_of_prompts_is_read_or_refused_in_a_sentence(tmp_path, kind, data):
    path = tmp_path / f"p.{kind}"
    path.write_bytes(data.draw(mutated(written(f"p.{kind}", PROMPTS))))
    with contextlib.suppress(LaddError):
        for row in rows_of(str(path), "prompt", FIELDS):
            if row.prompt is None:
                assert row.reason
            else:
                assert row.prompt == clean(row.prompt) != "" and row.prompt.encode()


@fuzzed
@given(
    st.sampled_from(PLACES),
    st.text() | st.text(st.sampled_from("[]{}:,'\"#&*!|>%@`-? \n\t\\0e1.~xn")),
)
def test_any_setting_is_taken_or_refused_in_a_sentence(place, text):
    with contextlib.suppress(LaddError):
        settings = [f"{place}={text}"]
        config = load_config(preset="shapes-smoke", settings=settings, environment={})
        assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


@fuzzed
@given(text=st.text())
def test_bare_text_is_text_as_typed(text):
    with contextlib.suppress(LaddError):
        setting = f"teacher.revision={text}"
        config = load_config(preset="shapes-smoke", settings=[setting], environment={})
        typed = text.strip()
        if typed[:1] not in ("'", '"') and typed not in ("", "~", "null", "Null", "NULL"):
            assert config.teacher.revision == typed


@fuzzed
@given(data=st.data())
def test_a_mutated_configuration_is_read_or_refused_in_a_sentence(tmp_path, data):
    import yaml

    sound = yaml.safe_dump(read_preset("shapes-smoke")).encode()
    path = tmp_path / "p.yaml"
    path.write_bytes(data.draw(mutated(sound)))
    with contextlib.suppress(LaddError):
        load_config(path, environment={})
