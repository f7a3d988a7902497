"""`k8s submit`, `status` and `logs` against an API server, and what `render` refuses."""

from __future__ import annotations

import pytest
import yaml

from tests.support.command import call_here
from tests.support.kubernetes_api import FakeKubernetes, serve

pytestmark = pytest.mark.slow

JOBS = "/apis/ray.io/v1/namespaces/ladd/rayjobs/ladd-pipeline"
CONFIG = ("--preset", "shapes-smoke", "--set", "store=s3://bucket/prefix")
SIGNED = "https://bucket.example/a.tar?X-Amz-Signature=5ec4e7&X-Amz-Expires=60"
LABELS = {
    "app.kubernetes.io/part-of": "ladd-pipeline",
    "app.kubernetes.io/instance": "ladd-pipeline",
}


@pytest.fixture
def kubernetes(tmp_path, monkeypatch):
    fake = FakeKubernetes()
    server = serve(fake)
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path / "kubeconfig")))
    yield fake
    server.shutdown()


def pod(name: str, component: str, created: str, **status) -> dict:
    labels = LABELS | {"app.kubernetes.io/component": component}
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": created},
        "status": {"phase": "Running"} | status,
    }


def error(result) -> str:
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return line


def test_a_run_is_applied_with_its_job_last(kubernetes):
    result = call_here("k8s", "submit", *CONFIG, "--until", "synthesize")
    assert result.returncode == 0, result.stderr
    assert [path.split("/")[-2] for path in kubernetes.applied] == [
        *("serviceaccounts", "networkpolicies", "poddisruptionbudgets", "configmaps", "rayjobs"),
    ]
    assert result.stdout.splitlines()[-1] == "applied  RayJob ladd/ladd-pipeline"
    job = kubernetes.objects[JOBS]
    assert "run --config pipeline.yaml --until synthesize" in job["spec"]["entrypoint"]
    files = kubernetes.objects["/api/v1/namespaces/ladd/configmaps/ladd-pipeline"]
    assert yaml.safe_load(files["data"]["pipeline.yaml"])["store"] == "s3://bucket/prefix"


def test_a_job_that_runs_is_not_replaced_and_one_that_ended_is(kubernetes):
    for state in ("Running", "Suspended"):  # Kueue suspends a job until its turn comes
        kubernetes.objects[JOBS] = {"status": {"jobDeploymentStatus": state}}
        result = call_here("k8s", "submit", *CONFIG)
        assert result.returncode == 5
        assert f"RayJob ladd/ladd-pipeline is {state}; wait for it, delete it" in error(result)
    assert not kubernetes.applied  # its configuration is mounted in the job that runs
    kubernetes.objects[JOBS] = {"status": {"jobDeploymentStatus": "Failed"}}
    assert call_here("k8s", "submit", *CONFIG).returncode == 0
    assert kubernetes.deleted == [JOBS] and kubernetes.applied[-1] == JOBS


def test_status_says_what_the_job_and_its_pods_wait_for(kubernetes):
    assert call_here("k8s", "status", *CONFIG).returncode == 4
    kubernetes.objects[JOBS] = {
        "status": {
            "jobDeploymentStatus": "Running",
            "jobStatus": "RUNNING",
            "rayClusterStatus": {"desiredWorkerReplicas": 3, "readyWorkerReplicas": 1},
        }
    }
    unmet = {"type": "PodScheduled", "status": "False", "message": "0/4 nodes have nvidia.com/gpu"}
    kubernetes.pods = [
        pod("worker-b", "worker", "2026-01-02T00:00:00Z", phase="Pending", conditions=[unmet]),
        pod("head-a", "head", "2026-01-01T00:00:00Z"),
    ]
    result = call_here("k8s", "status", *CONFIG)
    assert result.returncode == 0, result.stderr
    first, *table = result.stdout.splitlines()
    assert first == ("RayJob ladd/ladd-pipeline: Running, job RUNNING, 1 of 3 workers ready")
    text = "\n".join(table)
    assert text.index("head-a") < text.index("worker-b") and "nvidia.com" in text


def test_logs_are_those_of_the_last_attempt(kubernetes):
    kubernetes.objects[JOBS] = {"status": {}}
    result = call_here("k8s", "logs", *CONFIG)
    assert result.returncode == 4 and "has submitted nothing yet" in error(result)
    kubernetes.pods = [
        pod("second", "submitter", "2026-01-02T00:00:00Z"),
        pod("first", "submitter", "2026-01-01T00:00:00Z"),
    ]
    kubernetes.logs = {"second": "prompts 1/2\nprompts 2/2\nlast without an end"}
    result = call_here("k8s", "logs", *CONFIG)
    assert result.stdout.splitlines() == ["prompts 1/2", "prompts 2/2", "last without an end"]


def test_a_wrong_context_is_named_inside_a_pod_too(kubernetes, monkeypatch):
    """Bug: go on with the pod's own cluster, which is not the one that was asked for."""
    from kubernetes import config

    monkeypatch.setattr(config, "load_incluster_config", lambda client_configuration: None)
    result = call_here("k8s", "status", *CONFIG, "--context", "elsewhere")
    assert result.returncode == 2 and "k8s: --context elsewhere cannot be opened" in error(result)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(403, 2, "not allowed (you may not do this)"), (422, 2, "was refused"), (503, 4, "503")],
)
def test_what_kubernetes_refuses_is_one_sentence(kubernetes, status, code, said):
    kubernetes.refuse = status
    result = call_here("k8s", "submit", *CONFIG)
    assert result.returncode == code
    assert "k8s: ServiceAccount ladd-pipeline" in error(result)


def test_a_cluster_without_kuberay_is_named(kubernetes):
    del kubernetes.groups["ray.io"]
    result = call_here("k8s", "submit", *CONFIG)
    assert result.returncode == 2
    assert "the cluster knows no RayJob; install KubeRay's operator" in error(result)


def test_a_cluster_that_does_not_answer_or_is_not_configured(kubernetes, tmp_path, monkeypatch):
    kubernetes.address = "http://127.0.0.1:9"
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.kubeconfig(tmp_path / "closed")))
    result = call_here("k8s", "status", *CONFIG)
    assert result.returncode == 4 and "Kubernetes does not answer" in error(result)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    result = call_here("k8s", "status", *CONFIG)
    assert result.returncode == 2 and "no cluster is configured" in error(result)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "store=./here"), "store: "),
        (("--kind", "Job"), "--kind 'Job' is none of RayJob, RayCluster, RayCronJob"),
        (("--kind", "RayCronJob"), "--schedule says when a RayCronJob runs"),
        (("--until", "distil"), "unknown stage 'distil'"),
        (("--set", "kubernetes.env={HF_TOKEN: x}"), "HF_TOKEN looks like a secret"),
        (("--set", "kubernetes.name=Ladd"), "kubernetes.name"),
        (
            ("--set", f'encode.external=["{SIGNED}"]'),
            "encode.external.0: an address with a password",
        ),
    ],
)
def test_what_render_refuses(words, said):
    result = call_here("k8s", "render", *CONFIG, *words)
    assert result.returncode == 2 and not result.stdout
    assert said in error(result)
    assert "5ec4e7" not in error(result)
