"""How long `plan` takes over a large local teacher folder, the first time and once it was seen.

The folder holds one sparse file of zeros, so that it takes no room on the disk; it is read to the
last byte all the same. Times are ratios to `ladd-pipeline --help` of the same minute.

    python benchmarks/plan_large_teacher.py --gigabytes 10
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("ladd-pipeline"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        teacher = Path(scratch) / "teacher"
        teacher.mkdir()
        (teacher / "model_index.json").write_text("{}")
        with open(teacher / "weights.safetensors", "wb") as file:
            file.truncate(int(options.gigabytes * 1e9))
        time.sleep(3)  # what has just changed is not remembered
        plan = [
            *("plan", "--preset", "shapes", "--set", f"store={scratch}/store"),
            *("--set", "teacher.family=sd3", "--set", f"teacher.model={teacher}"),
        ]
        environment = {**os.environ, "XDG_CACHE_HOME": f"{scratch}/cache"}
        first = seconds(plan, environment)
        again = [seconds(plan, environment) for _ in range(options.repeats)]
        helped = [seconds(["--help"], environment) for _ in range(options.repeats)]
    unit = statistics.median(helped)
    print(f"--help: {unit:.2f} s, the median of {options.repeats}")
    print(f"plan, {options.gigabytes:g} GB unseen: {first:.2f} s ({first / unit:.1f} times --help)")
    later = statistics.median(again)
    print(f"plan, once seen: {later:.2f} s ({later / unit:.1f} times --help)")


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([COMMAND, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
