"""Files of prompts: every format, and one clear sentence for what is broken."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.config import FileSource
from schemas.errors import ConfigError
from stages.texts.sources import mixed, read_file, require_prompt_file


def file_source(path, **more):
    return {"sources": [{"kind": "file", "url": str(path), **more}], "count": None}


def test_missing_prompt_file(refused, tmp_path):
    code, text = refused(prompts=file_source(tmp_path / "none.txt"))
    assert code == 2, text
    assert f"there is no file {tmp_path / 'none.txt'}" in text


def test_empty_prompt_file(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    code, text = refused(prompts=file_source(tmp_path / "empty.txt"))
    assert code == 2, text
    assert "empty.txt holds no prompts" in text


def test_prompt_file_that_is_not_utf8(refused, tmp_path):
    (tmp_path / "latin.txt").write_bytes("ein grüner Kreis\n".encode("latin-1"))
    code, text = refused(prompts=file_source(tmp_path / "latin.txt"))
    assert code == 2, text
    assert "latin.txt is not UTF-8" in text and "iconv" in text


def write_as(path: Path, prompts: list[str]) -> str:
    match path.suffix:
        case ".txt":
            path.write_text("".join(f"{p}\n" for p in prompts))
        case ".jsonl":
            path.write_text("".join(json.dumps({"prompt": p, "id": 1}) + "\n" for p in prompts))
        case ".csv":
            with open(path, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([["id", "prompt"], *([i, p] for i, p in enumerate(prompts))])
        case ".parquet":
            pq.write_table(pa.table({"prompt": prompts}), path)
    return str(path)


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_prompts(ending, tmp_path):
    prompts = ["a, b", 'say "x"', "grün ☃"]
    source = FileSource(kind="file", url=write_as(tmp_path / f"p.{ending}", prompts))
    assert [p.strip("\n") for p in read_file(source)] == prompts


def parquet_bytes(column):
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": column}), file)
    return file.getvalue()


def test_a_folder_is_no_file_of_prompts(tmp_path):
    (tmp_path / "p.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"there is no file .*p\.parquet"):
        require_prompt_file(FileSource(kind="file", url=str(tmp_path / "p.parquet")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2 is not JSON"),
        ("p.jsonl", b'{"text": "a"}\n', "line 1 has no text field 'prompt'"),
        ("p.csv", b"id,text\n1,a\n", "no text field 'prompt'"),
        ("p.parquet", b"not parquet", "cannot be read as parquet"),
        ("p.parquet", parquet_bytes([1, 2]), "column 'prompt' holds int64, not text"),
        ("p.parquet", parquet_bytes([["a"], ["b"]]), "holds list<.*>, not text"),
        ("p.docx", b"", "must end in one of"),
    ],
)
def test_broken_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        list(read_file(FileSource(kind="file", url=str(tmp_path / name))))
    assert name in str(error.value)


def test_sources_are_mixed_by_weight_until_dry(tmp_path):
    sources = [
        FileSource(
            kind="file", url=write_as(tmp_path / "a.txt", [f"a{i}" for i in range(300)]), weight=3
        ),
        FileSource(
            kind="file", url=write_as(tmp_path / "b.txt", [f"b{i}" for i in range(300)]), weight=1
        ),
    ]
    drawn = [name for _, name in mixed(sources, 0)]
    assert len(drawn) == 600
    assert np.mean([name == "a.txt" for name in drawn[:300]]) == pytest.approx(0.75, abs=0.08)
