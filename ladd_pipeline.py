"""`ladd-pipeline`, and `python -m ladd_pipeline`: start the command with our own packages, whatever
folders of the same names are on Python's path.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run a command and exit with its code."""
    if sys.platform == "win32":
        sentence = "ladd-pipeline runs on Linux and macOS; on Windows, run it in WSL"
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    here = str(Path(__file__).resolve().parent)
    sys.path.insert(0, here)
    import pipeline  # noqa: F401  (from now on, our other packages are found without the path)

    sys.path.remove(here)
    from pipeline.cli import main

    main()


if __name__ == "__main__":
    main()
