"""Files of prompts: every format and packing, rows that cost themselves, files that are refused."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import ArtifactError, ConfigError, LaddError
from stages.texts import prompt_files
from stages.texts.prompt_files import FORMATS, LONGEST_PROMPT, PACKED, Fields, rows_of
from tests.support.prompt_files import PACKERS, written
from tests.support.web import web_server

FIELDS = Fields("prompts.sources", "prompts.sources.column")
PROMPTS = ["a, b", 'say "x"', "grün ☃"]


@pytest.fixture
def read(tmp_path):
    """Write a file and read it: the prompts, and the reasons of the rows that are none."""

    def call(name, content, column="prompt"):
        (tmp_path / name).write_bytes(content)
        rows = list(rows_of(str(tmp_path / name), column, FIELDS))
        lost = {row.place: row.reason for row in rows if row.prompt is None}
        return [row.prompt for row in rows if row.prompt is not None], lost

    return call


@pytest.mark.parametrize("packed", ["", *PACKED])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_prompts(read, kind, packed):
    name = f"p.{kind}.{packed}".rstrip(".")
    assert read(name, written(name, PROMPTS)) == (PROMPTS, {})


@pytest.mark.parametrize("kind", FORMATS)
def test_packing_is_seen_by_the_contents(read, kind):
    """A browser unpacks and keeps the name; a server packs and does not change it."""
    assert read(f"p.{kind}.gz", written(f"p.{kind}", PROMPTS))[0] == PROMPTS
    assert read(f"p.{kind}", written(f"p.{kind}.zst", PROMPTS))[0] == PROMPTS


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet", "p.parquet.gz", "p.csv.zst"])
def test_a_signed_web_address_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(written(name, PROMPTS))
    with web_server(tmp_path) as address:
        rows = list(rows_of(f"{address}/{name}?X-Signature=ab%2Bc", "prompt", FIELDS))
    assert [row.prompt for row in rows] == PROMPTS
    assert {row.source for row in rows} == {name}


@pytest.mark.parametrize("kind", ["txt", "parquet"])
@pytest.mark.slow
def test_a_large_file_is_read_from_a_server_that_gives_no_parts(tmp_path, kind):
    prompts = [f"{'a red ring ' * 400}{i}" for i in range(2000)]
    (tmp_path / f"p.{kind}").write_bytes(written(f"p.{kind}", prompts))
    with web_server(tmp_path) as address:
        rows = list(rows_of(f"{address}/p.{kind}", "prompt", FIELDS))
    assert [row.prompt for row in rows] == prompts


def table(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not text: null"),
        (3, "not text: a number"),
        (float("nan"), "not text: NaN"),
        (True, "not text: true or false"),
        (["a"], "not text: a list"),
        ({"a": 1}, "not text: an object"),
        ("", "empty"),
        (" \t", "empty"),
        ("\u200b\ufeff\u2060", "empty"),
        ("\0", "empty"),
        ("NaN", "a missing value written as text: NaN"),
        ("x" * (LONGEST_PROMPT + 1), "too long: 10,001 characters"),
        ("caf\ufffd", "not decoded: U+FFFD stands where a letter was lost"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_a_row_that_is_no_prompt_costs_itself(read, name, value, reason):
    rows = [{"prompt": "a"}, {"prompt": value}, {"prompt": "b"}]
    lines = name == "p.jsonl"
    content = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    place = "line 2" if lines else "row 2"
    assert read(name, content.encode()) == (["a", "b"], {place: reason})


@pytest.mark.parametrize(
    ("name", "content", "prompts", "lost"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{oops\n{"id": 1}\n', ["a"], ["not JSON", "no field"]),
        ("p.jsonl", b'{"prompt": "a"}\n' + b"[" * 100_000, ["a"], ["not JSON"]),
        ("p.jsonl", b'"a"\n\n["b"]\n', ["a"], ["not text: a list"]),
        ("p.txt", b"a\nb\xe9b\n\xff\nc\n", ["a", "c"], ["not UTF-8", "not UTF-8"]),
        ("p.csv", b"id,prompt\n1,a\n2\n3,\n4,b\n", ["a", "b"], ["not text: null", "empty"]),
        ("p.csv", b"prompt,x\na red ring, big,1\na,\n", ["a"], ["more cells than columns: 3"]),
        ("p.csv", b'prompt,x\n"a "b" c",1\nd,2\n', ["d"], ["not csv"]),
        ("p.csv", b'prompt,x\na,1\n"b', ["a"], ["not csv: unexpected end of data"]),
        ("p.tsv", b"prompt\tx\na\tb\tc\nd\te\n", ["d"], ["more cells than columns"]),
        ("p.parquet", table(prompt=["a", None, ""]), ["a"], ["not text: null", "empty"]),
    ],
)
def test_odd_rows_have_a_reason(read, name, content, prompts, lost):
    read_prompts, reasons = read(name, content)
    assert read_prompts == prompts
    assert len(reasons) == len(lost)
    for reason, beginning in zip(reasons.values(), lost, strict=True):
        assert reason.startswith(beginning)


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("p.csv", "prompt;x\na, b;1,5\n", ["a, b"]),
        ("p.csv", " prompt ,x\r\na,1\r\nb,2\r\n", ["a", "b"]),
        ("p.csv", 'prompt,x\r\n"two\r\nlines",1\r\n', ["two lines"]),
        ("p.csv", f'prompt,meta\na,"{"x" * 140_000}"\nb,y\n', ["a", "b"]),
        ("p.csv", "prompt,x\na,1,,\n", ["a"]),
        ("p.txt", "a\rb\r\nc\n\n", ["a", "b", "c"]),
        ("p.json", '["a", "b"]', ["a", "b"]),
        ("p.json", '{"prompts": ["a"], "tags": ["t"]}', ["a"]),
        ("p.json", '{"version": 1, "data": [{"prompt": "a"}]}', ["a"]),
        ("p.json", '{"prompt": {"0": "a", "1": "b"}, "tag": {"0": "x", "1": "y"}}', ["a", "b"]),
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
    ],
)
def test_files_as_they_lie_about(read, name, content, prompts):
    assert read(name, content.encode()) == (prompts, {})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "json", "jsonl"])
def test_a_byte_order_mark_tells_the_encoding(read, kind, encoding):
    content = written(f"p.{kind}", PROMPTS).decode().encode(encoding)
    assert read(f"p.{kind}", content) == (PROMPTS, {})


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("p.json", b"{oops", ConfigError, "is not JSON"),
        ("p.json", b"3", ConfigError, "holds a number instead of a list"),
        ("p.json", b'{"a": [], "b": []}', ConfigError, "holds 2 lists, none .* called 'prompt'"),
        ("p.csv", b"", ConfigError, "has no column 'prompt'; it has none"),
        ("p.csv", b"prompt,prompt\na,b\n", ConfigError, "has 2 columns 'prompt'"),
        ("p.csv", b'prompt\n"a\nb\nc\n', ConfigError, "line 2: a quotation mark is not closed"),
        ("p.parquet", b"not parquet", ConfigError, "cannot be read as parquet"),
        ("p.parquet", table(prompt=[1, 2]), ConfigError, "'prompt' holds int64, not text"),
        ("p.parquet", table(prompt=[["a"]]), ConfigError, "holds list<.*>, not text"),
        ("p.parquet", table(text=["a"]), ConfigError, "has no column 'prompt'; it has text"),
        (
            "p.txt.gz",
            gzip.compress(b"a\n" * 9000, mtime=0)[:40],
            ArtifactError,
            "damaged or cut short",
        ),
        ("p.txt.gz", b"\x1f\x8bnot so", ArtifactError, "damaged or cut short"),
        ("p.txt.zst", b"\x28\xb5\x2f\xfdnot so", ArtifactError, "damaged or cut short"),
        ("p.csv.zst", written("p.csv.zst", PROMPTS)[:-4], ArtifactError, "damaged or cut short"),
        ("p.jsonl.bz2", b"BZh91AY&SYnot so", ArtifactError, "damaged or cut short"),
    ],
)
def test_files_that_cannot_be_read_are_named(read, name, content, kind, message):
    with pytest.raises(LaddError, match=message) as error:
        read(name, content)
    assert type(error.value) is kind
    assert name in str(error.value) and str(error.value).startswith("prompts.sources")


def test_damaged_pages_of_parquet_are_named(read):
    content = bytearray(written("p.parquet", [f"a red circle {i}" for i in range(5000)]))
    content[2000:2400] = bytes(400)
    with pytest.raises(ArtifactError, match=r"p\.parquet is damaged"):
        read("p.parquet", bytes(content))


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", ["p.txt", "p.json", "p.parquet"])
def test_a_file_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(
    read, monkeypatch, packed, name
):
    """Bug: fill the memory, or the temporary folder, with what a few kilobytes promise."""
    monkeypatch.setattr(prompt_files, "LARGEST_UNPACKED", 100_000)
    monkeypatch.setattr(prompt_files, "LARGEST_RATIO", 10)
    with pytest.raises(ConfigError, match="decompresses to more than 10 times its size"):
        read(f"{name}.{packed}", PACKERS[packed](b"a prompt of five words\n" * 100_000))
