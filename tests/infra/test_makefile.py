"""What `make` does before it starts anything."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.command import ROOT


@pytest.mark.parametrize("has_git", [True, False])
def test_a_proof_is_run_again_for_other_code(has_git):
    """Bug: name a stamp after its test alone; it says `has passed` of whatever the code is now."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.check_output(git, cwd=ROOT, text=True).strip() if has_git else "none"
    environment = os.environ if has_git else os.environ | {"GIT_DIR": "/nowhere"}
    make = ["make", "--dry-run", "--old-file", ".venv/.installed", "proofs-storage"]
    said = subprocess.check_output(make, cwd=ROOT, text=True, env=environment)
    assert f"stamp=.proofs/storage-{commit}-$(basename" in said
