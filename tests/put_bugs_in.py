"""Puts each of the ten silent bugs into a copy of the project and sees its test fail.

    python tests/put_bugs_in.py

Not collected by pytest: it takes a minute or two. Exits with 1 when a bug goes unnoticed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
UPDATE, SAMPLING = "stages/ladd/update.py", "stages/ladd/sampling.py"
BUGS = [
    ("01", SAMPLING, "list(sigmas[:-1])", "list(sigmas[:-2])"),
    (
        "02",
        "stages/synthesize.py",
        "self.teacher.device, self.config, self.ahead\n",
        "self.teacher.device, self.config.at(guidance_scale=1.0), self.ahead\n",
    ),
    (
        "03",
        UPDATE,
        "velocity = nets.student.velocity(x_t,",
        "velocity = nets.student.velocity(draws.student_noise_BCHW,",
    ),
    (
        "04",
        UPDATE,
        "fake = clean_estimate(x_t, velocity, draws.student_sigma_B)",
        "fake = velocity",
    ),
    ("05", "stages/teachers/sd3.py", "(mean - self._vae.config.shift_factor)", "mean"),
    ("06", UPDATE, "add_noise(fake, draws.renoise", "add_noise(fake.detach(), draws.renoise"),
    (
        "07",
        "stages/teachers/sd3_backbone.py",
        "unflatten(2, (rows, columns))",
        "unflatten(2, (columns, rows))",
    ),
    (
        "08",
        "stages/teachers/sd3_backbone.py",
        "        maps = []\n",
        "        maps = []\n"
        "        for b in net.transformer_blocks:\n"
        "            b.register_forward_hook(lambda m, a, o: maps.append(o[1]))\n",
    ),
    (
        "09",
        "stages/pictures/sample_grids.py",
        "        with self.average.shown_by(self.student):\n",
        "        if True:\n",
    ),
    ("10", "stages/ladd/flow.py", "draw_seed(seed, step, slot)", "draw_seed(seed, step, 0)"),
]


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
