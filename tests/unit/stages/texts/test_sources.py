"""Sources of prompts: found out before work, mixed by weight, several files in one."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.config import FileSource
from schemas.errors import ConfigError
from stages.texts.prompt_files import Fields
from stages.texts.sources import mixed, read_file, require_prompts

EVAL = Fields("eval.url", "eval.column")


def file_source(path, **more):
    return {"sources": [{"kind": "file", "url": str(path), **more}], "count": None}


def source(url, **more):
    url = [str(one) for one in url] if isinstance(url, list) else str(url)
    return FileSource(kind="file", url=url, **more)


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "there is no file"),
        ("empty.txt", b"\n \n", "empty.txt holds no prompts"),
        ("latin.txt", "ein grüner Kreis\n".encode("latin-1"), "latin.txt.*not UTF-8.*iconv"),
        ("utf16.txt", "a red circle\n".encode("utf-16-le"), "utf16.txt .*zero bytes, as UTF-16"),
        ("p.csv", b"id,text\n1,a\n", "sources.column: .*p.csv has no column 'prompt'; it has id, "),
        ("p.jsonl", b'{"text": "a"}\n', "sources.column: .*p.jsonl .*no field 'prompt': only text"),
        ("p.docx", b"", "must end in one of .txt"),
        ("p.gz", b"", "must end in one of .txt"),
    ],
)
def test_files_that_hold_no_prompts_are_found_before_work(
    refused, tmp_path, command, name, content, said
):
    import re

    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, text = refused(command, prompts=file_source(tmp_path / name))
    assert code == 2, text
    assert re.search(said, text) and str(tmp_path / name) in text


def test_faults_of_eval_url_are_called_so(tmp_path):
    """DrawBench's column is called `Prompts`."""
    file = tmp_path / "DrawBench.csv"
    file.write_text("Prompts,Category\nA red colored car.,Colors\n")
    with pytest.raises(ConfigError, match=r"^eval.column: .*DrawBench.csv has no column") as error:
        require_prompts(source(file), EVAL)
    assert "it has Prompts, Category" in str(error.value)
    require_prompts(source(file, column="Prompts"), EVAL)
    with pytest.raises(ConfigError, match=r"^eval.url: there is no file"):
        require_prompts(source(tmp_path / "none.csv"), EVAL)


def test_a_source_may_be_many_files(tmp_path):
    for name in ("a0.txt", "a1.txt", "b.txt", "._a0.txt"):
        (tmp_path / name).write_text(f"from {name}\n")
    for url, found in (
        (tmp_path / "a*.txt", ["a0.txt", "a1.txt"]),
        (tmp_path / "a{0..1}.txt", ["a0.txt", "a1.txt"]),
        ([tmp_path / "b.txt", tmp_path / "a0.txt", tmp_path / "b.txt"], ["a0.txt", "b.txt"]),
        (tmp_path, ["a0.txt", "a1.txt", "b.txt"]),
    ):
        assert list(read_file(source(url))) == [f"from {name}" for name in found]


def test_a_row_says_which_file_it_is_from(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x\n\n \u200b\n")
    rows = list(mixed([source(tmp_path / "*.txt")], 0))
    assert [(row.source, row.place, row.prompt, row.reason) for row in rows] == [
        (name, place, prompt, reason)
        for name in ("a.txt", "b.txt")
        for place, prompt, reason in (("line 1", "x", None), ("line 3", None, "empty"))
    ]


def test_a_folder_without_prompt_files_is_no_source(tmp_path):
    (tmp_path / "p.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"the folder .*p\.parquet holds no file"):
        require_prompts(source(tmp_path / "p.parquet"))


def test_sources_are_mixed_by_weight_until_dry(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(300)))
    sources = [source(tmp_path / "a.txt", weight=3), source(tmp_path / "b.txt", weight=1)]
    drawn = [row.source for row in mixed(sources, 0)]
    assert len(drawn) == 600
    assert np.mean([name == "a.txt" for name in drawn[:300]]) == pytest.approx(0.75, abs=0.08)
