"""The entrypoint of a rendered RayJob, run as its pods would run it: on a read-only root file
system, under a user id that nobody knows, with the environment of the manifest and Ray's token,
through `ray job submit` as KubeRay's submitter calls it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.command import ROOT, call
from tests.support.manifest_checks import cluster_of
from tests.support.s3_servers import free_ports

OUTER = """
set -e
mount --make-rprivate /
mount --bind {out} /mnt
mount --bind {config} /etc/ladd
mount -o remount,bind,ro /etc/ladd
mount -o remount,bind,ro /
mount -t tmpfs none /tmp
mount -t tmpfs none /home
mkdir -m 777 /home/ladd
chmod 1777 /tmp
exec unshare --user --map-user=54321 --map-group=54321 env -i {env} bash -c {inner}
"""
INNER = """
cd /home/ladd
for place in / /etc/ladd/ /work/; do
  if touch $place/x 2>/dev/null; then echo "$place can be written"; exit 8; fi
done
id > /mnt/id
ray start --head {head} --node-ip-address=127.0.0.1 --port={gcs} --dashboard-port={board} \
  --dashboard-agent-listen-port={agent} > /mnt/head.log 2>&1 || {{ cat /mnt/head.log; exit 9; }}
ray start --address=127.0.0.1:{gcs} {worker} --node-ip-address=127.0.0.1 \
  --dashboard-agent-listen-port={agent2} > /mnt/worker.log 2>&1 || \
  {{ cat /mnt/worker.log; exit 9; }}
code=0
ray job submit --address http://127.0.0.1:{board} --submission-id rendered -- {entrypoint} \
  > /mnt/job.log 2>&1 || code=$?
python - > /mnt/health.log 2>&1 <<'P' || true
import urllib.request
for port in ({agent}, {agent2}):
    print(urllib.request.urlopen("http://127.0.0.1:%d/api/healthz" % port).status)
try:
    print(urllib.request.urlopen("http://127.0.0.1:{board}/api/jobs/").status)
except Exception as error:
    print("without a token:", error)
P
exit $code
"""


@pytest.fixture
def etc_ladd():
    """The place of the mount; it is left as it was."""
    place = Path("/etc/ladd")
    made = not place.exists()
    place.mkdir(exist_ok=True)
    yield place
    if made:
        place.rmdir()


def test_the_rendered_entrypoint_runs_as_the_pods_would_run_it(
    bucket, endpoint, etc_ladd, tmp_path
):
    settings = {
        "store": bucket,
        "kubernetes.use_gpus": "false",
        "kubernetes.cpus_per_node": "2",
        "kubernetes.memory_gb_per_cpu": "2",
        "kubernetes.head.memory_gb": "4",
        "synthesize.pool.workers": "1",
        "prompts.count": "24",
        "distill.steps": "2",
        "kubernetes.env": f"{{AWS_ENDPOINT_URL: '{endpoint}', OMP_NUM_THREADS: '1'}}",
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    rendered = call("k8s", "render", "--preset", "shapes-smoke", *words, "--until", "distill")
    assert rendered.returncode == 0, rendered.stderr
    documents = list(yaml.safe_load_all(rendered.stdout))
    job, (files,) = documents[-1], [one for one in documents if one["kind"] == "ConfigMap"]
    folder, out = tmp_path / "config", tmp_path / "out"
    folder.mkdir(), out.mkdir()
    (folder / "pipeline.yaml").write_text(files["data"]["pipeline.yaml"])
    cluster = cluster_of(job)
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    container = head["template"]["spec"]["containers"][0]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    env |= {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    env |= {"AWS_DEFAULT_REGION": "us-east-1"}  # the Secret
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-cluster-" * 2}  # KubeRay
    env |= {"RAY_worker_niceness": "0"}  # in a pod Ray is alone
    env |= {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}  # the image
    gcs, board, agent, agent2 = free_ports(4)
    cpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    inner = INNER.format(
        head=options(head["rayStartParams"]),
        worker=options({"num-cpus": cpus} | group["rayStartParams"]),
        **{"gcs": gcs, "board": board, "agent": agent, "agent2": agent2},
        entrypoint=job["spec"]["entrypoint"],
    )
    outer = OUTER.format(
        config=folder,
        out=out,
        env=shlex.join(f"{name}={value}" for name, value in env.items()),
        inner=shlex.quote(inner),
    )
    ended = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", outer],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    logs = {path.name: path.read_text() for path in out.iterdir()}
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}{logs}"
    assert "uid=54321" in logs["id"]
    assert logs["health.log"].splitlines()[:2] == ["200", "200"]
    assert "without a token: HTTP Error 401" in logs["health.log"]
    print(logs["job.log"][-3000:])
    assert f"student: {bucket}/artifacts/distill/" in logs["job.log"]


def options(parameters: dict[str, str]) -> str:
    return " ".join(f"--{name}={value}" for name, value in parameters.items())
