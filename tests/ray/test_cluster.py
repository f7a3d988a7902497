"""The chain on a real cluster whose nodes come and go, submitted to its job server, with its store
on S3.
"""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
import yaml

from pipeline.base.metrics import MEASURES, exported
from pipeline.base.store import ArtifactStore
from tests.support.command import COMMAND, call
from tests.support.job_cluster import detached, job_cluster, join, submit, wait_for
from tests.support.scraping import scraping
from tests.support.tiny_sd3 import build_pipeline, make_tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 24
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "pink", "orange")
THINGS = ("circle", "square", "ring", "cross", "boat", "house", "tree", "fish")


@pytest.fixture
def head(bucket, monkeypatch):
    """A head that has the credentials of the store."""
    with job_cluster(monkeypatch) as cluster:
        yield cluster


@pytest.fixture
def scraped(head):
    """The metrics of the cluster's nodes, as they come in."""
    with scraping(head) as found:
        yield found


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


def test_nodes_come_and_go(head, bucket, tmp_path, scraped):
    store = ArtifactStore(bucket)
    # The prompts lie where the command runs and go along; all nodes have the teacher.
    (tmp_path / "prompts.txt").write_text(
        "".join(f"a {colour} {thing}\n" for colour in COLOURS for thing in THINGS)
    )
    config = make_tiny_config(
        build_pipeline(tmp_path / "teacher", t5=False),
        bucket,
        prompts={"sources": [{"kind": "file", "url": "prompts.txt"}]},
        synthesize={"pool": {"gpus_per_worker": 1}},
        distill={
            **{"steps": STEPS, "checkpoint_every": 4, "sample_every": STEPS},
            **{"workers": 2, "shard_over": 2, "use_gpu": False},
        },
    )
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    shared = ("--shared", tmp_path / "teacher")
    job = detached(head, "-c", "pipeline.yaml", "--until", "distill", *shared, cwd=tmp_path)
    wait_for(lambda: finished(store, "prompts"))
    waiting = "no node has room for a worker with a GPU"
    wait_for(lambda: waiting in submit(head, "--logs", job).stdout)
    first = join(head, num_gpus=1)  # the pool has waited for it
    with subprocess.Popen(
        [*COMMAND, "submit", "--address", f"http://{head.webui_url}", "--attach", "latest"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as attached:
        wait_for(lambda: checkpointed(store), attached)
        attached.send_signal(signal.SIGINT)
        output, errors = attached.communicate(timeout=60)
    assert attached.returncode == 130 and f"--attach {job}" in errors, errors
    assert "done  prompts" in output
    head.remove_node(first, allow_graceful=False)
    join(head)
    followed = submit(head, "--attach", job)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert f"student: {bucket}/artifacts/distill/" in followed.stdout
    (row,) = json.loads(submit(head, "--list", "--json").stdout)
    assert (row["id"], row["state"], row["exit code"]) == (job, "succeeded", 0)
    (key,) = finished(store, "distill")
    trace = store.read(f"artifacts/distill/{key}/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in trace.splitlines()]
    assert steps == list(range(1, config.distill.total_steps + 1))
    # Nothing has failed; a stage that has lost its node may have been tried again.
    expected = {exported(name) for name in MEASURES} - {"ray_ladd_failures_total"}
    assert expected - set(scraped) <= {"ray_ladd_retries_total"}
    (updates,) = scraped["ray_ladd_update"].values()
    # What a worker says in its last second is lost with it.
    assert len(updates) > 1 and config.distill.total_steps / 2 < max(updates)
    assert any(len(values) > 1 for values in scraped["ray_ladd_shards_total"].values())
    assert any("samples_per_second" in tags for tags in scraped["ray_ladd_training"])
    # What was made there is found from here: keys and fingerprints are the same.
    plan = call("plan", "-c", "pipeline.yaml", "--until", "distill", "--exit-code", cwd=tmp_path)
    assert plan.returncode == 0, plan.stdout
    verify = call("artifacts", "verify", "-c", "pipeline.yaml", cwd=tmp_path)
    assert verify.stdout.startswith("4 artifacts match their manifests"), verify.stderr
