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
    module = ast.parse((ROOT / "tests" / row["file"]).read_text())
    (test,) = [
        part
        for part in ast.walk(module)
        if isinstance(part, ast.FunctionDef) and part.name == row["test"]
    ]
    read = {part.id for part in ast.walk(test) if isinstance(part, ast.Name)}
    above = [  # constants that the test reads, and functions that it calls
        part
        for part in module.body
        if (isinstance(part, ast.FunctionDef) and part.name in read)
        or (isinstance(part, ast.Assign) and any(ast.unparse(t) in read for t in part.targets))
    ]
    if row["words"] == "no message":  # it is not bad, and nothing comes of it
        return
    words = row["words"].strip("` ")
    assert words and any(words in text for part in (test, *above) for text in strings(part))


def strings(node: ast.AST) -> list[str]:
    """The texts of a piece of code, patterns without their backslashes."""
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return [re.sub(r"\\(?=\W)", "", text) for text in texts if isinstance(text, str)]
