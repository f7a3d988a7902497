"""Nodes and heads that are lost in the middle of a submitted run."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from pipeline.base.store import ArtifactStore
from tests.support.command import COMMAND, call
from tests.support.job_cluster import detached, job_cluster, join, kill_head, submit, wait_for

INTERVAL = 4
RUN = (
    *("--preset", "shapes-smoke", "--until", "distill", "--eval"),
    *("--set", "prompts.count=200", "--set", "synthesize.pool={workers: 2, gpus_per_worker: 0}"),
    *("--set", "encode.pool={workers: 1, gpus_per_worker: 0}"),
    *("--set", "eval.pool={workers: 1, gpus_per_worker: 0}", "--set", "distill.steps=40"),
    *("--set", f"distill.checkpoint_every={INTERVAL}", "--set", "distill.use_gpu=false"),
    *("--set", "distill.cpus_per_worker=1", "--set", "distill.workers=2"),
)


def markers(store: ArtifactStore) -> dict[str, str]:
    """The shards of pictures that are done, with what their store says of each."""
    root = f"{store.root}/artifacts/synthesize"
    found = store.filesystem.find(root, detail=True) if store.filesystem.exists(root) else {}
    return {name: row["ETag"] for name, row in found.items() if name.endswith(".tar")}


def checkpoints(store: ArtifactStore) -> list[int]:
    """Updates of which there is a checkpoint."""
    found = (re.search(r"/checkpoint_(\d+)/", name) for name in store.list("training/distill"))
    return sorted({int(match[1]) for match in found if match})


def fresh(store: ArtifactStore) -> ArtifactStore:
    store.filesystem.invalidate_cache()
    return store


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_run_survives_nodes_killed_while_it_synthesizes_and_while_it_trains(
    nodes, bucket, monkeypatch, tmp_path
):
    store = ArtifactStore(bucket)
    settings = (*RUN, "--set", f"store={bucket}")
    with job_cluster(monkeypatch, nodes) as cluster:
        job = detached(cluster, *settings)
        wait_for(lambda: markers(fresh(store)))
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        join(cluster)
        attached = subprocess.Popen(
            [*COMMAND, "submit", "--address", f"http://{cluster.webui_url}", "--attach", job],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: checkpoints(fresh(store)), attached)
        attached.send_signal(signal.SIGINT)
        assert "left running" in attached.communicate(timeout=60)[1]
        for node in list(cluster.worker_nodes)[:1]:
            cluster.remove_node(node, allow_graceful=False)
        join(cluster)
        followed = submit(cluster, "--attach", "latest")
        assert followed.returncode == 0, followed.stdout[-5000:]
        print(followed.stdout)
    verify = call(
        "artifacts", "verify", "--deep", "--preset", "shapes-smoke", "--set", f"store={bucket}"
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr
    steps = trace(store)
    assert steps == list(range(1, len(steps) + 1))


def trace(store: ArtifactStore) -> list[int]:
    (name,) = (
        name for name in fresh(store).list("artifacts/distill") if name.endswith("metrics.jsonl")
    )
    lines = store.read(f"artifacts/distill/{name}").splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_lost_head_costs_at_most_one_shard_or_one_interval(bucket, monkeypatch, tmp_path):
    store = ArtifactStore(bucket)
    settings = (*RUN, "--set", f"store={bucket}")
    with job_cluster(monkeypatch, 2) as cluster:
        detached(cluster, *settings)
        wait_for(lambda: len(markers(fresh(store))) >= 4)
        kill_head(cluster)
    before = markers(fresh(store))
    with job_cluster(monkeypatch, 2) as cluster:
        job = detached(cluster, *settings)
        wait_for(lambda: len(checkpoints(fresh(store))) >= 2)
        said = submit(cluster, "--logs", job).stdout
        kill_head(cluster)
    after = markers(fresh(store))
    # Two workers held a shard each; what had its marker was not made again.
    assert sum(after[name] != tag for name, tag in before.items()) <= 2
    reached = max(checkpoints(store))
    trained = [line for line in said.splitlines() if line.startswith("distill  ")][-1]
    with job_cluster(monkeypatch, 2) as cluster:
        followed = submit(cluster, *settings)
        assert followed.returncode == 0, followed.stdout[-5000:]
    begun = next(x for x in followed.stdout.splitlines() if x.startswith("distill  "))
    print(trained, "| checkpoint", reached, "| after the loss:", begun)
    first = int(begun.split()[1].split("/")[0])
    assert first >= reached - INTERVAL
    steps = trace(store)
    assert steps == list(range(1, len(steps) + 1))
