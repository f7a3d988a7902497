"""The chain on a real cluster whose nodes come and go, with its store on S3."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

import pytest
import yaml

from pipeline.base.store import ArtifactStore
from tests.support.command import COMMAND, ROOT, call
from tests.support.tiny_sd3 import make_tiny_config

pytestmark = pytest.mark.slow
STEPS = 24
PATIENCE = 900
"""Seconds: on two slow cores with another test beside it, a run takes minutes."""
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "pink", "orange")
THINGS = ("circle", "square", "ring", "cross", "boat", "house", "tree", "fish")


@pytest.fixture
def head(bucket, monkeypatch):
    """A cluster that is a head without CPUs, as KubeRay makes them; it starts in another folder
    than the command, and has the credentials of the store.
    """
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(ROOT)
    options = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    yield cluster
    cluster.shutdown()


def wait_for(process: subprocess.Popen, ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def finished(store: ArtifactStore, stage: str) -> list[str]:
    """Keys of the stage's committed artifacts."""
    names = store.list(f"artifacts/{stage}")
    return [name.split("/")[0] for name in names if name.endswith("/manifest.json")]


def checkpointed(store: ArtifactStore) -> bool:
    return any("/checkpoint_" in name for name in store.list("training/distill"))


def test_a_run_of_its_own_does_not_join_what_runs_on_the_machine(head, tiny_sd3, tmp_path):
    """Bug: call `ray.init` without an address; on this cluster it would wait for ever for a CPU."""
    config = make_tiny_config(tiny_sd3, tmp_path / "store").model_dump(mode="json")
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    result = call("run", "-c", tmp_path / "pipeline.yaml", "--until", "prompts")
    assert result.returncode == 0, result.stderr


def test_nodes_come_and_go(head, bucket, tiny_sd3, tmp_path):
    store = ArtifactStore(bucket)
    # The file of prompts lies where the command runs, and is named from there.
    (tmp_path / "prompts.txt").write_text(
        "".join(f"a {colour} {thing}\n" for colour in COLOURS for thing in THINGS)
    )
    config = make_tiny_config(
        tiny_sd3,
        bucket,
        prompts={"sources": [{"kind": "file", "url": "prompts.txt"}]},
        distill={"steps": STEPS, "workers": 2, "shard_over": 2, "sample_every": STEPS},
        ray={"address": head.address},
    )
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with subprocess.Popen(
        [*COMMAND, "run", "-c", "pipeline.yaml", "--until", "distill"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(process, lambda: finished(store, "prompts"))
            first = head.add_node(num_cpus=2)  # the pool has waited for it
            wait_for(process, lambda: checkpointed(store))
            head.remove_node(first, allow_graceful=False)
            head.add_node(num_cpus=2)
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert f"student: {bucket}/artifacts/distill/" in output
    assert "the cluster has no GPU" in errors
    (key,) = finished(store, "distill")
    trace = store.read(f"artifacts/distill/{key}/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in trace.splitlines()]
    assert steps == list(range(1, config.distill.total_steps + 1))
    verify = call("artifacts", "verify", "-c", tmp_path / "pipeline.yaml")
    assert verify.stdout.startswith("4 artifacts match their manifests"), verify.stderr
