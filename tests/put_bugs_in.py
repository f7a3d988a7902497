"""Puts each of the ten silent bugs into a copy of the project and sees its test fail.

    python -m tests.put_bugs_in

Not collected by pytest: it takes a minute or two. Exits with 1 when a bug goes unnoticed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.command import ROOT
from tests.support.silent_bugs import BUGS


def main() -> int:
    unnoticed = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "project"
        ignored = shutil.ignore_patterns(".venv", ".git", "*-store*", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for number, name, right, wrong in BUGS:
            path = copy / name
            original = path.read_text()
            assert right in original, f"bug {number}: {name} no longer holds {right!r}"
            path.write_text(original.replace(right, wrong, 1))
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "tests/unit/stages/test_silent_bugs.py",
                "-k",
                f"test_{number}",
            ]
            result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
            path.write_text(original)
            noticed = result.returncode == 1 and "FAILED" in result.stdout
            print(f"bug {number}: {'its test fails' if noticed else 'GOES UNNOTICED'}", flush=True)
            if not noticed:
                unnoticed.append(number)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
