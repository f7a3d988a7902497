"""Files of pairs: every row once, and one clear sentence for what is malformed."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import ConfigError
from stages.data.pair_files import parts_of, read_part, require_pair_files
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


def read(path):
    return [source for part in parts_of(str(path), 3) for source in read_part(part)]


def table_of(rows: int = 7, **columns) -> pa.Table:
    """Pick-a-Pic's columns, some of them replaced."""
    plain = {
        "caption": pa.array(["a red circle"] * rows),
        "jpg_0": pa.array([RED] * rows, pa.binary()),
        "jpg_1": pa.array([BLUE] * rows, pa.binary()),
        "label_0": pa.array([1.0] * rows),
        "label_1": pa.array([0.0] * rows),
    }
    return pa.table(plain | columns)


WRAPPED = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    "columns",
    [
        {"caption": pa.array(["a red circle"] * 7).dictionary_encode()},
        {"caption": pa.array(["a red circle"] * 7, pa.large_string())},
        {"caption": pa.array(["a red circle"] * 7, pa.string_view())},
        {"jpg_0": pa.array([RED] * 7, pa.large_binary())},
        {"jpg_0": pa.array([RED] * 7, pa.binary_view())},
        {"jpg_0": pa.array([RED] * 7, pa.binary()).dictionary_encode()},
        {"jpg_0": pa.array([RED] * 7, pa.binary(len(RED)))},
        {"jpg_0": pa.array([{"bytes": RED, "path": None}] * 7, WRAPPED)},
        {"label_0": pa.array([1] * 7, pa.int8()), "label_1": pa.array([False] * 7)},
        {"label_0": pa.array([1.0] * 7, pa.float32())},
    ],
)
def test_every_type_of_column_that_holds_the_same_is_read_the_same(columns, tmp_path):
    pq.write_table(table_of(**columns), tmp_path / "p.parquet", row_group_size=2)
    found = read(tmp_path / "p.parquet")
    assert [(s.prompt, s.winner, s.loser, s.problem) for s in found] == [
        ("a red circle", RED, BLUE, None)
    ] * 7


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"caption": pa.array([None, "a", "b"])}, "no caption"),
        ({"caption": pa.array([1, 2, 3])}, "no caption"),
        ({"caption": pa.array([["a"], ["b"], None])}, "no caption"),
        ({"caption": pa.nulls(3)}, "no caption"),
        (
            {"caption": pa.Array.from_buffers(
                pa.string(), 3, pa.array([b"\xff\xfe", b"ab", b"cd"]).buffers())},
            "its text is not UTF-8",
        ),
        ({"jpg_1": pa.array([None, BLUE, BLUE], pa.binary())}, "no jpg_1"),
        ({"jpg_1": pa.array([b"", BLUE, BLUE])}, "no jpg_1"),
        ({"jpg_1": pa.array(["text", "text", "text"])}, "no jpg_1"),
        ({"jpg_1": pa.array([None, None, None], WRAPPED)}, "no jpg_1"),
        (
            {"jpg_1": pa.array([{"bytes": None, "path": "x/1.jpg"}] * 3, WRAPPED)},
            "no jpg_1: only the path 'x/1.jpg', not its bytes",
        ),
        ({"label_0": pa.array([None, 1.0, 1.0])}, "no label_0"),
        ({"label_0": pa.array([float("nan"), 1.0, 1.0])}, "no label_0"),
        ({"label_0": pa.array(["1", "1", "1"])}, "no label_0"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why(columns, problem, tmp_path):
    pq.write_table(table_of(3, **columns), tmp_path / "p.parquet")
    found = read(tmp_path / "p.parquet")
    assert len(found) == 3 and found[0].problem is not None
    assert found[0].problem.startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[" * 99_999, "its line is not JSON"),
        (b'{"prompt": "\xff"}', "its line is not JSON"),
        (b"null", "its line has no text field 'prompt'"),
        (b'{"prompt": null, "winner": "a.png", "loser": "a.png"}', "its line has no text field"),
        (rb'{"prompt": "half \ud83d", "winner": "a.png", "loser": "a.png"}', "its line has no te"),
        (b'{"prompt": "a", "winner": 3, "loser": "a.png"}', "its line has no text field 'winner'"),
        (b'{"prompt": "a", "winner": "none.png", "loser": "a.png"}', "its winner cannot be read"),
        (b'{"prompt": "a", "winner": ".", "loser": "a.png"}', "its winner cannot be read"),
        (rb'{"prompt": "a", "winner": "a.png", "loser": "\u0000"}', "its loser cannot be read"),
        (b'{"prompt": "a", "winner": "a.png", "loser": "x://y"}', "its loser cannot be read"),
        (b'{"prompt": "a", "winner": "a.png", "loser": "s3://no-such/a"}', "its loser cannot be"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_line_costs_that_line(line, problem, first, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "a.png").write_bytes(RED)
    sound = b'{"prompt": "a", "winner": "a.png", "loser": "a.png"}'
    lines = [line, sound] if first else [sound, line]
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(lines))
    bad, good = read(tmp_path / "p.jsonl")[:: 1 if first else -1]
    assert good.problem is None and good.winner == RED
    assert bad.problem is not None and bad.problem.startswith(problem)
    assert "\n" not in bad.problem


def test_a_byte_order_mark_before_the_first_line_changes_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(RED)
    line = '{"prompt": "a", "winner": "a.png", "loser": "a.png"}'
    (tmp_path / "p.jsonl").write_text(line, encoding="utf-8-sig")
    assert [source.problem for source in read(tmp_path / "p.jsonl")] == [None]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are changed, zeroed, cut off, or put in twice."""
    spoilt = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randrange(len(spoilt)), rng.choice((1, 2, 8, 40, 400))
        what = rng.randrange(4)
        if what == 0:
            spoilt[place : place + length] = rng.randbytes(len(spoilt[place : place + length]))
        elif what == 1:
            spoilt[place : place + length] = bytes(len(spoilt[place : place + length]))
        elif what == 2:
            del spoilt[place : place + length]
        else:
            spoilt[place:place] = spoilt[place : place + length]
        if not spoilt:
            return b""
    return bytes(spoilt)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_parquet_file_is_refused_by_name_or_costs_rows(compression, tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(table_of(12), path, compression=compression, row_group_size=5)
    content, outcomes = path.read_bytes(), set()
    for seed in range(120):
        path.write_bytes(damaged(content, random.Random(seed)))
        try:
            outcomes |= {source.problem is None for source in read(path)}
        except ConfigError as error:
            outcomes.add("refused")
            assert "p.parquet" in str(error) and "\n" not in str(error)
    assert "refused" in outcomes


def test_zeroed_pages_behind_a_whole_footer(tmp_path):
    path = tmp_path / "pairs.parquet"
    pq.write_table(table_of(54), path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"pairs.parquet is damaged, or cannot be read"):
        read(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = table_of(3)
    twice = table.append_column("caption", table["caption"])
    pq.write_table(twice, tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match="the column caption twice"):
        read(tmp_path / "p.parquet")


def test_a_file_without_rows_is_refused(tmp_path):
    pq.write_table(table_of(7).slice(0, 0), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"p\.parquet holds no pairs"):
        read(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/p.parquet", "s3://bucket/p.parquet cannot be opened"),
        ("nonsense://p.parquet", "nonsense://p.parquet cannot be opened"),
        ("none.parquet", "there is no file none.parquet"),
    ],
)
def test_an_address_that_cannot_be_opened_is_one_sentence(url, said, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(ConfigError, match=said) as error:
        require_pair_files(url)
    assert "\n" not in str(error.value)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "p.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"p.parquet is a folder; name the files in it"):
        require_pair_files(str(tmp_path / "p.parquet"))


def test_columns_of_something_else_are_found_before_work(tmp_path):
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match="lacks Pick-a-Pic's columns"):
        require_pair_files(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize(
    ("named", "judge"),
    [
        ('"ann"', "ann"),
        ("7", "7"),
        ('""', "p.jsonl"),
        ("null", "p.jsonl"),
        (r'"\ud83d"', "p.jsonl"),
    ],
)
def test_who_judged_is_kept_if_it_can_be_stored(named, judge, tmp_path):
    (tmp_path / "a.png").write_bytes(RED)
    line = f'{{"prompt": "a", "winner": "a.png", "loser": "a.png", "judge": {named}}}'
    (tmp_path / "p.jsonl").write_text(line)
    assert [(s.judge, s.problem) for s in read(tmp_path / "p.jsonl")] == [(judge, None)]
