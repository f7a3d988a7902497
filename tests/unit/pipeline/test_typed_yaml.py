"""Text stays text, in files, settings and the environment; odd numbers are refused."""

from __future__ import annotations

import pytest

from pipeline.config import load_config, read_yaml
from pipeline.fields import types_at
from pipeline.sweep import make_trials
from pipeline.typed_yaml import read_document, read_value
from schemas.config import FileSource
from schemas.errors import ConfigError


def load(*settings, **environment):
    return load_config(preset="shapes-smoke", settings=settings, environment=environment)


TEXTS = ["12e45678", "6180689", "1_000", "0x1F", "1:30", "2024-05-01", "no", "nan", ".inf", "a: b"]
TEXTS += [
    "runs of June #2",
    "a #b",
    "*x",
    "&x",
    "!x",
    "[x",
    "%x",
    "@x",
    "`x",
    "C:\\new\\table",
    "=",
    "|",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_typed(text):
    assert load(f"teacher.revision={text}").teacher.revision == text
    assert load(LADD_TEACHER__REVISION=text).teacher.revision == text
    for quote in "'\"":
        quoted = f"{quote}{text}{quote}"
        if quote == "'" or "\\" not in text:
            assert load(f"teacher.revision={quoted}").teacher.revision == text


@pytest.mark.parametrize("text", ["12e45678", "6180689", "no", "2024-05-01", "1:30", "nan"])
def test_text_in_a_file_is_taken_as_written(tmp_path, text):
    (tmp_path / "p.yaml").write_text(
        f"preset: shapes-smoke\nteacher: {{revision: {text}}}\nencode: {{external: [{text}]}}\n"
        f"eval: {{gates: {{a: {text}}}}}\n"
    )
    config = load_config(tmp_path / "p.yaml", environment={})
    assert config.teacher.revision == config.eval.gates["a"] == text
    assert config.encode.external == [text]


@pytest.mark.parametrize("null", ["null", "~", ""])
def test_nothing_is_nothing_where_a_field_may_be_empty(null):
    assert load("teacher.revision=x", f"teacher.revision={null}").teacher.revision is None
    assert load(f"prompts.count={null or 'null'}", "prompts.sources=[{kind: file, url: x}]")
    assert load("name=null").name == "null"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["store="], "field store: .*got None.*from --set store"),
        (["distill.steps=10 # ten"], r"'# ten' is left over"),
        (["distill.steps=10 11"], "distill.steps"),
        (["teacher.revision='a' b"], "not a YAML value"),
        (["teacher.revision='a' #b"], "'#b' is left over"),
        (["distill.renoise.mean=nan"], "must be a finite number .got 'nan'"),
        (["distill.learning_rate=.inf"], "must be a finite number .got inf"),
        (["distill.learning_rate=12e45678"], "must be a finite number .got '12e45678'"),
        (["student_time.grid=[1, .nan]"], "unknown field student_time"),
        (["prompts.buckets={64x64: .inf}"], r"prompts.buckets.64x64: must be a finite number"),
        (["distill.steps=yes"], "must be a number .got true"),
        ([f"distill.steps={10**30}"], "distill.steps: is too large"),
        ([f"distill.steps={'9' * 5000}"], "distill.steps"),
        (["distill.steps=2024-99-99"], "distill.steps"),
        (["distill.steps=!!int ''"], "not a YAML value"),
        (["distill={steps: 3, steps: 4}"], "'steps' is there twice"),
        (["name=a/b"], "field name"),
        (["store=~nobody-of-this-name/x"], "store: ~nobody-of-this-name/x has no full path"),
        (["name=\udcff"], "not text in UTF-8"),
        (['teacher.revision="\\ud800"'], "not text in UTF-8"),
        (
            ["prompts.sources=[{kind: file, ulr: x}]"],
            r"unknown field prompts.sources.0.ulr; did you mean url\?",
        ),
        (["prompts.sources=[{kind: grammar, url: x}]"], "sources.0.url; known: kind, weight"),
        (["prompts.sources=[{url: x}]"], r"prompts.sources.0.kind: must be file or grammar"),
        (["prompts.sources=[{kind: fil, url: x}]"], "0.kind: must be file or grammar"),
        (["prompts.sources=[{kind: file, url: 3.5, column: {}}]"], "prompts.sources.0.column: "),
        (["eval.url={a: b}"], r"field eval\.url: Input should be a valid string"),
        (["eval.url=[]"], "field eval.url: List should have at least 1 item"),
    ],
)
def test_what_is_refused_says_where_and_why(settings, said):
    with pytest.raises(ConfigError, match=said):
        load(*settings)


def test_addresses_may_be_one_or_many():
    assert load("eval.url=a #1.csv").eval.url == "a #1.csv"
    assert load("eval.url=[a.csv, 123]").eval.url == ["a.csv", "123"]
    (source,) = load("prompts.sources=[{kind: file, url: 20240501}]").prompts.sources
    assert isinstance(source, FileSource) and source.url == "20240501"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LADD_DISTIL__STEPS": "3"}, r"LADD_DISTIL__STEPS is no field; did you mean distill\?"),
        ({"LADD_STOR": "x"}, r"LADD_STOR is no field; did you mean store\?"),
        ({"LADD_DISTILL__STEP": "3"}, "unknown field distill.step .from LADD_DISTILL__STEP."),
        ({"LADD_STORE": ""}, "field store: .*from LADD_STORE"),
        ({"LADD_DISTILL__STEPS": "many"}, "distill.steps: .*from LADD_DISTILL__STEPS"),
    ],
)
def test_variables_that_are_no_fields(environment, said):
    with pytest.raises(ConfigError, match=said):
        load(**environment)


def test_variables_of_others_are_left_alone():
    config = load(LADD_DEBUG="1", LADD_UNRELATED="x", LADD_NAME="  two words ", ladd_store="x")
    assert config.name == "two words"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_from_windows(tmp_path, encoding):
    text = "preset: shapes-smoke\r\nname: grün\r\nstore: 'C:\\new'\r\n"
    (tmp_path / "p.yaml").write_bytes(text.encode(encoding))
    assert load_config(tmp_path / "p.yaml", environment={}).name == "grün"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: a\nstore: b\nname: c\n", "line 3: 'name' is there twice"),
        (b"distill:\n\tsteps: 3\n", "indent with spaces"),
        (b'store: "C:\\data"\n', "use single quotes"),
        ("name: grün\n".encode("latin-1"), "save it as UTF-8"),
        (b"name: 2024-99-99\nray: {num_cpus: 2024-99-99}\n", "cannot be read"),
        (b"a: &a [*a]\n", "aliases"),
        (b"? [a]\n: b\n", "a name is no text"),
        (b"[" * 5000, "cannot be read"),
        (b"", "must contain fields"),
        (b"a: b\n---\nc: d\n", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, said):
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "p.yaml", preset="shapes-smoke", environment={})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


def test_a_sweep_takes_text_as_typed():
    def opened(settings, environment=None):
        return load_config(preset="shapes-smoke", settings=settings, environment={})

    trials = make_trials(opened, ["teacher.revision=no,6180689,1e5"], False)
    assert [trial.config.teacher.revision for trial in trials] == ["no", "6180689", "1e5"]


def test_what_has_no_place_is_left_to_the_validation():
    assert types_at(["distill", "nothing"]) == []
    assert read_value("a #b", [], "x") == "a #b"


@pytest.mark.parametrize(
    "bomb",
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
        + "encode: {external: *a8}\n",
        "encode: {external: &a [*a]}\n",
    ],
    ids=["a billion", "itself"],
)
def test_aliases_that_stand_for_a_billion_values_are_refused(bomb):
    """Bug: show what is wrong with the field, and spell it out."""
    with pytest.raises(ConfigError, match=r"aliases \(\*name\) stand for more than 1,000,000"):
        read_document(bomb.encode(), "file")
