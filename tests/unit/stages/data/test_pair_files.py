"""Files of pairs: every row once, and one clear sentence for what is malformed."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import ConfigError
from stages.data.pair_files import parts_of, read_part
from tests.support.pairs import BLUE, RED, write_pick_a_pic


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_parts_hold_every_row_once(ending, size, tmp_path):
    prompts_in = [f"prompt {i}" for i in range(7)]
    path = tmp_path / f"p.{ending}"
    if ending == "parquet":
        write_pick_a_pic(path, [(p, RED, BLUE, 1.0, 0.0) for p in prompts_in], row_group_size=3)
    else:
        (tmp_path / "a.png").write_bytes(RED)
        rows = [{"prompt": p, "winner": "a.png", "loser": "a.png"} for p in prompts_in]
        path.write_text("\n\n".join(map(json.dumps, rows)))
    parts = parts_of(str(path), size)
    found = [source for part in parts for source in read_part(part)]
    assert [source.prompt for source in found] == prompts_in
    assert len({source.key for source in found}) == 7
    assert all(part.rows <= size for part in parts)


def test_a_glob_takes_all_its_files(tmp_path):
    for name in ("b", "a"):
        write_pick_a_pic(tmp_path / f"{name}.parquet", [(f"of {name}", RED, BLUE, 1.0, 0.0)])
    parts = parts_of(str(tmp_path / "*.parquet"), 4)
    found = [source for part in parts for source in read_part(part)]
    assert [source.prompt for source in found] == ["of a", "of b"]
    assert len({source.key for source in found}) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", "holds no pairs"),
        ("p.jsonl", b"\n \n", "holds no pairs"),
        ("p.jsonl", b"oops\n", "first line of .*p.jsonl is not JSON"),
        ("p.jsonl", b'{"prompt": "a", "winner": "x"}\n', "no text field 'loser'"),
        ("p.jsonl", b'["a"]\n', "no text field 'prompt'"),
        ("p.jsonl", "{'prompt': 'gr\u00fcn'}".encode("latin-1"), "is not JSON"),
        ("p.parquet", b"not parquet", "cannot be read as parquet"),
        ("p.csv", b"a,b\n", "must end in .jsonl or .parquet"),
    ],
)
def test_a_malformed_file_is_one_clear_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        parts_of(str(tmp_path / name), 4)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_parquet_file_of_something_else_names_what_it_lacks(tmp_path):
    pq.write_table(pa.table({"caption": ["a"], "url": ["b"]}), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"lacks Pick-a-Pic's columns jpg_0, .*it has caption"):
        parts_of(str(tmp_path / "p.parquet"), 4)
