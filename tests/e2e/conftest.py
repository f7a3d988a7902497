"""A finished run that several files of tests look at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.command import call


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory) -> Path:
    """The store of a whole run of `shapes-smoke`, named by a relative path; made once for all test
    processes, so copy it before you change it.

    Ray Train moves its workers to a folder of their own: a relative store must reach them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    finished = folder / "finished"
    with FileLock(f"{folder}.lock"):
        if not finished.exists():
            folder.mkdir()
            result = call("run", "--preset", "shapes-smoke", "--set", "store=store", cwd=folder)
            assert result.returncode == 0, result.stderr
            assert "report.html" in result.stdout
            finished.touch()
    return folder / "store"
