"""Our packages are found before others of the same names, wherever those lie on the path."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ray import cloudpickle

from pipeline.own_packages import finder
from tests.support.command import ROOT

LAUNCHER = str(ROOT / "ladd_pipeline.py")


@pytest.fixture
def theirs(tmp_path):
    """A user's folder, whose modules fail when they are imported."""
    for name in ("schemas.py", "pipeline/__init__.py", "stages/__init__.py", "infra/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('the module of the user')\n")
    return tmp_path


def python(*arguments: str, cwd, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


def test_the_command_starts_in_a_folder_with_such_names(theirs):
    """Bug: name the module `pipeline.cli`, which Python then looks for in the user's folder."""
    for environment in ({}, {"PYTHONPATH": str(theirs)}):
        start = (
            f"import runpy, sys; sys.argv = ['x', '--help']; runpy.run_path({LAUNCHER!r})['main']()"
        )
        result = python("-c", start, cwd=theirs, **environment)
        assert "Usage" in result.stdout, result.stderr


def test_engine_that_is_found_finds_the_rest(theirs):
    """`python -m pipeline.cli` in a folder that has no `pipeline`, but `schemas.py`."""
    (theirs / "pipeline/__init__.py").unlink()
    (theirs / "pipeline").rmdir()
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); import pipeline, schemas.errors, "
        "stages.teachers; print(schemas.__file__)"
    )
    result = python("-c", code, cwd=theirs)
    assert result.stdout.strip() == str(ROOT / "schemas/__init__.py"), result.stderr


@pytest.mark.parametrize("root", [str(ROOT), "/another/machine"])
def test_a_worker_finds_them_before_it_imports_any(root, theirs, tmp_path):
    """As Ray does it: the function comes by value, and then the user's folder goes to the front of
    the path. Where the command's folder is not there, the path has them further behind.
    """
    sent = tmp_path / "sent.bin"
    sent.write_bytes(cloudpickle.dumps(finder(root)))
    code = (
        "import sys\nfrom ray import cloudpickle\n"
        f"cloudpickle.loads(open({str(sent)!r}, 'rb').read())()\n"
        f"sys.path[:0] = [{str(theirs)!r}]; sys.path.append({str(ROOT)!r})\n"
        "import pipeline.stage_task, schemas, stages, infra\n"
    )
    result = python("-c", code, cwd="/")
    assert result.stderr.strip() == "the module of the user", result.stderr  # infra is not ours


def test_other_names_are_left_to_others():
    before = list(sys.meta_path)
    try:
        finder("/none")()
        assert len(sys.meta_path) == len(before) + 1
        finder("/none")()
        assert len(sys.meta_path) == len(before) + 1
        first = sys.meta_path[0]
        assert first.find_spec("json") is None and first.find_spec("schemas", ["/x"]) is None
        found = first.find_spec("schemas")
        assert found is not None and found.origin == str(ROOT / "schemas/__init__.py")
    finally:
        sys.meta_path[:] = before
