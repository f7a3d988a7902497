"""How long `plan` takes over a large local teacher folder, the first time and once it was seen.

The folder is the embedded teacher with a sparse file of zeros beside its parts: it takes no room
on the disk, and is read to the last byte all the same. `plan` over the same folder without that
file is timed too. Times are ratios to `ladd-pipeline --help` of the same minute.

    python benchmarks/plan_large_teacher.py --gigabytes 10
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stages.teachers import EMBEDDED

COMMAND = str(Path(sys.executable).with_name("ladd-pipeline"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{scratch}/cache"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled once
        small, large = Path(scratch, "small"), Path(scratch, "large")
        for folder in (small, large):
            shutil.copytree(EMBEDDED, folder)
        size = int(options.gigabytes * 1e9)
        tensor = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        header = json.dumps(tensor).encode()
        with open(large / "more.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + size)
        time.sleep(3)  # what has just changed is not remembered
        rows = {
            f"plan, {options.gigabytes:g} GB unseen": [planned(large, scratch, environment)],
            "plan, once seen": repeated(options.repeats, large, scratch, environment),
            "plan without the large file": repeated(options.repeats, small, scratch, environment),
        }
        helped = [seconds(["--help"], environment) for _ in range(options.repeats)]
    unit = statistics.median(helped)
    print(f"--help: {unit:.2f} s, the median of {options.repeats}")
    for what, times in rows.items():
        found = statistics.median(times)
        print(f"{what}: {found:.2f} s ({found / unit:.1f} times --help)")


def repeated(repeats: int, *arguments: Any) -> list[float]:
    planned(*arguments)
    return [planned(*arguments) for _ in range(repeats)]


def planned(teacher: Path, scratch: str, environment: dict[str, str]) -> float:
    settings = [f"store={scratch}/store", f"teacher.model={teacher}"]
    flags = [word for setting in settings for word in ("--set", setting)]
    return seconds(["plan", "--preset", "shapes", *flags], environment)


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([COMMAND, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
