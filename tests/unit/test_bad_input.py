"""Each row of docs/bad-input.md is a test that looks for the words of its message."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.command import ROOT

ROW = re.compile(r"\| (?P<input>.+?) \| (?P<words>.*?) \| `(?P<file>[\w/]+\.py)::(?P<test>\w+)` \|")
ROWS = [
    match.groupdict()
    for line in (ROOT / "docs/bad-input.md").read_text().splitlines()
    if (match := ROW.fullmatch(line))
]


def test_there_are_at_least_sixty():
    lines = (ROOT / "docs/bad-input.md").read_text().splitlines()
    tables = sum(line == "|---|---|---|" for line in lines)
    assert len(ROWS) == sum(line.startswith("|") for line in lines) - 2 * tables >= 60


@pytest.mark.parametrize("row", ROWS, ids=[row["input"] for row in ROWS])
def test_the_test_of_a_row_looks_for_its_words(row):
    source = (ROOT / "tests" / row["file"]).read_text()
    (test,) = [
        part
        for part in ast.walk(ast.parse(source))
        if isinstance(part, ast.FunctionDef) and part.name == row["test"]
    ]
    strings = [
        part.value
        for part in ast.walk(test)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    words = row["words"].strip("` ")
    # Patterns have backslashes, and may stand above the test.
    assert any(words in re.sub(r"\\(?=\W)", "", text) for text in [*strings, source])
