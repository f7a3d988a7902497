"""The install steps of the Dockerfile, run in a clean environment on the files that it copies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.command import ROOT


def stage(name: str) -> list[str]:
    """The instructions of one stage of the Dockerfile, after its FROM."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    begin = next(n for n, line in enumerate(lines) if line.endswith(f" AS {name}"))
    end = next(
        (n for n in range(begin + 1, len(lines)) if lines[n].startswith("FROM ")), len(lines)
    )
    return lines[begin + 1 : end]


@pytest.mark.parametrize("target", ["cpu"])
def test_the_install_steps_work_in_a_clean_environment(target, tmp_path):
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    env = {"PATH": f"{venv / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    env |= {name: value for name, value in os.environ.items() if "PIP" in name}
    ran = []
    for line in [*stage("builder"), *stage(f"builder-{target}")]:
        word, _, rest = line.partition(" ")
        if word == "COPY":
            *names, _ = rest.split()
            for name in names:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, source / name)
        if word == "RUN" and "pip install" in rest:
            command = re.sub(r"--mount=\S+", "", rest).replace("${TORCH_CPU_OPTIONS}", "").strip()
            done = subprocess.run(
                ["bash", "-c", command], cwd=source, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            ran.append(command)
    assert len(ran) == 2
    shutil.rmtree(source)  # the last stage has the virtual environment alone
    smoke = next(line for line in stage(target) if line.startswith("RUN "))
    words = re.findall(r'"([^"]+)"', smoke)
    said = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    print(said.stdout)
    plan = subprocess.run(
        ["ladd-pipeline", "plan", "--preset", "shapes-smoke", "--set", f"store={tmp_path}/store"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert plan.returncode == 0 and "distill" in plan.stdout, plan.stderr
