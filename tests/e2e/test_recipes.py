"""CONTRIBUTING's recipes, followed to the letter in a copy of the tree: a stage, a score, and a
teacher family that is not SD3, each by the lines that the recipe names and no other change.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.command import ROOT, artifact
from tests.support.tiny_family import make_tiny_teacher

pytestmark = pytest.mark.slow

FILE = re.compile(r"^`(\S+\.py)`:\n```python\n(.*?)^```", re.M | re.S)
LINE = re.compile(r"^In `(\S+\.py)`, after the line `([^\n]+)`:\n```python\n(.*?)^```", re.M | re.S)
FAMILY_FILE = "stages/teachers/tiny.py"
FAMILY_LINE = '    "tiny": Family("stages.teachers.tiny:TinyTeacher", "TinyPipeline"),\n'


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the packages with all recipes followed; what was there is committed."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("pipeline", "schemas", "stages"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "before")
    recipes = (ROOT / "CONTRIBUTING.md").read_text()
    for path, content in FILE.findall(recipes):
        (tree / path).write_text(content)
    for path, anchor, line in LINE.findall(recipes):
        insert_after(tree / path, anchor, line)
    shutil.copyfile(ROOT / "tests" / "support" / "tiny_family.py", tree / FAMILY_FILE)
    insert_after(tree / "stages/teachers/__init__.py", "FAMILIES = {", FAMILY_LINE)
    git(tree, "add", "--all")
    return tree


def git(tree: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=tree, check=True, capture_output=True, text=True
    ).stdout


def insert_after(path: Path, anchor: str, line: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    (place,) = [i for i, text in enumerate(lines) if text.strip() == anchor.strip()]
    path.write_text("".join([*lines[: place + 1], line, *lines[place + 1 :]]))


def test_each_recipe_is_one_new_file_and_one_line(tree):
    changes = {}
    for row in git(tree, "diff", "--cached", "--numstat").splitlines():
        added, removed, path = row.split("\t")
        changes[path] = (int(added), int(removed))
    for registry in ("pipeline/dag.py", "stages/scores/__init__.py", "stages/teachers/__init__.py"):
        assert changes.pop(registry) == (1, 0)
    assert set(changes) == {"stages/hello.py", "stages/scores/brightness.py", FAMILY_FILE}
    assert all(removed == 0 for _, removed in changes.values())


def test_the_whole_chain_runs_with_them(tree, tmp_path):
    """Prompts to evaluation on the tiny family, judged by the new score; then the new stage."""
    store, config = tmp_path / "store", tmp_path / "tiny.yaml"
    sections = {
        "preset": "shapes-smoke",
        "store": str(store),
        "teacher": {
            "family": "tiny",
            "model": str(make_tiny_teacher(tmp_path / "teacher")),
            "dtype": "float32",
        },
        "prompts": {"buckets": {"32x32": 1, "48x16": 1}, "count": 60},
        "distill": {"precision": "float32", "steps": 3, "sample_every": 5},
        "pairs": {"prompts": 12},
        "dpo": {
            "precision": "float32",
            "steps": 2,
            "lora": {"rank": 2, "targets": ["enter", "leave"]},
            "scales": [1.0],
        },
        "eval": {"scores": [{"name": "brightness"}, {"name": "layout"}], "prompts": 8},
    }
    config.write_text(yaml.safe_dump(sections))

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "tests.support.without_ray", *arguments, "-c", str(config)]
        paths = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT}"}  # the copy comes first
        done = subprocess.run(
            command, cwd=tree, env=paths, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "one line of text" in call("plan")
    call("run")
    (sidecar, *_) = sorted((artifact(store, "eval") / "shards" / "student_4").glob("3*.parquet"))
    brightness = pq.read_table(sidecar)["brightness"].to_pylist()
    assert all(0 < value < 1 for value in brightness)
    assert "training prompts" in (artifact(store, "hello") / "hello.txt").read_text()
    (row,) = [line for line in call("hello").splitlines() if " hello " in line]
    assert " done " in row
