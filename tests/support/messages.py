"""What the code says to users, read from its source: errors that it raises, and warnings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ERRORS = {
    *("LaddError", "StageFailed", "ProcessLost", "StageLost", "ConfigError", "ArtifactError"),
    *("ServiceUnavailable", "Locked", "GateFailed", "StateFileError"),
}
HOLE = "{}"


def messages(path: Path, *, all_strings: bool = False, least: int = 4) -> set[str]:
    """Return the messages of a module, with `{}` for what is filled in. With `all_strings`, all
    that it has but for docstrings: a module that returns them for others to raise. A text of
    fewer than `least` words tells too little to be one.
    """
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for function in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))]:
        named = _assigned(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and _says(node.func) and node.args:
                found |= set(_texts(node.args[-1], named))
    if all_strings:
        parts = {
            id(value) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for value in n.values
        }
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in parts | docs:
                found |= set(_texts(node, {}))
    return {text for text in found if " " in text and len(words(text)) >= least}


def template(text: str) -> str:
    """Return a heading with `{}` for each of its placeholders."""
    return re.sub(r"\{[^{}]*\}", HOLE, text)


def words(text: str) -> list[str]:
    """Return the words of a message that do not depend on what is filled in."""
    return re.findall(r"[^\W\d_]{2,}", text.replace(HOLE, " "))


def _says(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ERRORS or name.lstrip("_") == "warn"


def _assigned(function: ast.AST) -> dict[str, list[ast.expr]]:
    """Return what each name of a function may stand for."""
    named: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named.setdefault(node.targets[0].id, []).append(node.value)
    return named


def _texts(node: ast.AST, named: dict[str, list[ast.expr]]) -> Iterator[str]:
    """Yield the texts that an expression may have."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            value.value if isinstance(value, ast.Constant) else HOLE for value in node.values
        )
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body, named), *_texts(node.orelse, named))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in list(_texts(node.left, named)) or [HOLE]:
            for right in list(_texts(node.right, named)) or [HOLE]:
                yield left + right
    elif isinstance(node, ast.Name):
        for value in named.get(node.id, ()):
            if not isinstance(value, ast.Name):
                yield from _texts(value, named)
