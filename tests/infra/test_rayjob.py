"""The manifest for KubeRay: what it says to our command, and that it says the same as the image."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from pipeline.base.store import ArtifactStore
from pipeline.cli import app
from pipeline.config import load_config
from pipeline.planning import Selection, make_plan

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "infra" / "rayjob.yaml"


@pytest.fixture(scope="module")
def documents() -> dict[str, dict]:
    return {made["kind"]: made for made in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def cluster(documents) -> dict:
    return documents["RayJob"]["spec"]["rayClusterSpec"]


def pods(cluster: dict) -> list[dict]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_its_command_and_its_configuration_are_ours(documents, cluster, tmp_path):
    program, *words = shlex.split(documents["RayJob"]["spec"]["entrypoint"])
    assert program == "ladd-pipeline"
    command = get_command(app)
    name, run, rest = command.resolve_command(command.make_context(program, list(words)), words)
    options = run.make_context(name, rest).params
    (head,) = (pod for pod in pods(cluster) if pod["containers"][0]["name"] == "ray-head")
    mount = head["containers"][0]["volumeMounts"][0]["mountPath"]
    file = Path(options["config"])
    assert str(file.parent) == mount
    (tmp_path / file.name).write_text(documents["ConfigMap"]["data"][file.name])
    config = load_config(tmp_path / file.name, options["preset"], (), {})
    assert config.ray.address == "auto" and config.distill.use_gpu
    plan = make_plan(config, ArtifactStore(f"memory://{tmp_path.name}"), Selection(until="distill"))
    assert [stage.name for stage in plan if stage.action == "run"] == [
        *("prompts", "synthesize", "encode", "distill"),
    ]


def test_the_cluster_has_room_for_the_workers_that_are_asked_for(documents, cluster):
    distill = yaml.safe_load(documents["ConfigMap"]["data"]["pipeline.yaml"])["distill"]
    (group,) = cluster["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert group["maxReplicas"] * gpus >= distill["workers"] > distill["min_workers"]


def test_versions_are_those_of_the_image(cluster):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    assert cluster["rayVersion"] == pins["ray"]
    images = {pod["containers"][0]["image"] for pod in pods(cluster)}
    assert images == {f"ladd-pipeline:{project['version']}"}


def test_every_pod_has_the_account_and_the_secrets_and_none_is_in_the_file(documents, cluster):
    account = documents["ServiceAccount"]["metadata"]["name"]
    for pod in pods(cluster):
        assert pod["serviceAccountName"] == account
        assert pod["containers"][0]["envFrom"][0]["secretRef"]["name"] == "ladd-pipeline"
    assert "Secret" not in documents
