"""`ladd-pipeline k8s`: a run on Kubernetes under KubeRay, rendered from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import (
    AsJson,
    ConfigFile,
    Eval,
    Force,
    From,
    Only,
    Preset,
    Settings,
    Until,
    asked_for,
    new_group,
    words_of,
)
from schemas.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from pipeline.kuberay.client import Kubernetes
    from pipeline.kuberay.manifests import Document
    from schemas.config import PipelineConfig

app = new_group("Run on Kubernetes under KubeRay.")
_MOST_IN_CONFIG_MAP = 900_000
"""Bytes: Kubernetes takes 1 MiB, and the configuration is in it too."""
_KINDS = ("RayJob", "RayCluster", "RayCronJob")

Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
Namespace = Annotated[
    str | None, typer.Option(help="Namespace; by default kubernetes.namespace, or the context's.")
]


@app.command()
def render(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    until: Until = None,
    eval_: Eval = False,
    from_: From = None,
    only: Only = None,
    force: Force = None,
    kind: Annotated[
        str,
        typer.Option(
            help="RayJob: one run, whose cluster ends with it; RayCluster: a cluster to submit "
            "runs to; RayCronJob: a run at set times (alpha in KubeRay)."
        ),
    ] = "RayJob",
    schedule: Annotated[
        str, typer.Option(help="Cron schedule of a RayCronJob, such as '0 3 * * 1'.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write a kustomize base into this folder, one file each.")
    ] = None,
) -> None:
    """Print a run's Kubernetes manifests: its cluster, and the policies that lock it down."""
    from pipeline.typed_yaml import to_yaml

    wanted, settings = asked_for(until, eval_, from_, only, force, set_)
    made = _rendered(_load(config, preset, settings), wanted, kind, schedule)
    if out is None:
        print(to_yaml(made), end="")
    else:
        _write(made, out)


@app.command()
def submit(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    until: Until = None,
    eval_: Eval = False,
    from_: From = None,
    only: Only = None,
    force: Force = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Apply a run's manifests; follow it with `k8s status` and `k8s logs`."""
    wanted, settings = asked_for(until, eval_, from_, only, force, set_)
    resolved = _load(config, preset, settings)
    made = _rendered(resolved, wanted, "RayJob", "")
    cluster = _cluster(resolved, context, namespace)
    for document in made:
        document["metadata"]["namespace"] = cluster.namespace
    for applied in cluster.apply(made):
        print(f"applied  {applied}")


@app.command()
def status(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    context: Context = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Show the state of the job and of its pods."""
    import json

    from pipeline.commands.tables import print_table
    from pipeline.kuberay.pods import labels

    resolved = _load(config, preset, set_)
    kubernetes, cluster = resolved.kubernetes, _cluster(resolved, context, namespace)
    job = _job(cluster, kubernetes.name)
    state = job.get("status", {})
    pods = [_row(pod) for pod in cluster.pods(labels(kubernetes))]
    if as_json:
        print(json.dumps({"job": state, "pods": pods}, indent=2))
        return
    print(f"RayJob {cluster.namespace}/{kubernetes.name}: {_job_text(state)}")
    if state.get("message"):
        print(state["message"])
    if pods:
        print_table([*pods[0]], [[str(value) for value in row.values()] for row in pods])


@app.command()
def logs(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    context: Context = None,
    namespace: Namespace = None,
    follow: Annotated[
        bool, typer.Option(help="Follow the log until the job ends; Ctrl-C does not stop the job.")
    ] = True,
) -> None:
    """Print the log of the run."""
    from pipeline.kuberay.pods import SUBMITTER, labels

    resolved = _load(config, preset, set_)
    kubernetes, cluster = resolved.kubernetes, _cluster(resolved, context, namespace)
    _job(cluster, kubernetes.name)
    pods = cluster.pods(labels(kubernetes, "submitter"))
    if not pods:
        raise ArtifactError(
            f"k8s: RayJob {cluster.namespace}/{kubernetes.name} has submitted nothing yet; "
            "`ladd-pipeline k8s status` shows what it waits for"
        )
    for line in cluster.log(pods[-1].metadata.name, SUBMITTER, follow=follow):
        print(line, flush=True)


def _load(file: Path | None, preset: str | None, settings: list[str] | None) -> PipelineConfig:
    """Return the configuration as it is written: models are pinned where the run starts."""
    from pipeline.config import load_config

    return load_config(file, preset, settings or ())


def _rendered(config: PipelineConfig, wanted: Any, kind: str, schedule: str) -> list[Document]:
    from pipeline.kuberay.manifests import manifests
    from pipeline.planning import stages_at_most
    from pipeline.travelling import pack, require_public

    if kind not in _KINDS:
        raise ConfigError(f"--kind {kind!r} is none of {', '.join(_KINDS)}")
    if (kind == "RayCronJob") != bool(schedule):
        raise ConfigError("--schedule says when a RayCronJob runs: give both, or neither")
    require_public(config, "a ConfigMap", "the pods' service account")
    stages = stages_at_most(config, wanted)
    words = [*words_of(wanted), "--log-format", "json"]
    luggage = pack(config, stages, _MOST_IN_CONFIG_MAP)
    return manifests(config, stages, words, luggage, kind=kind, schedule=schedule)  # type: ignore[arg-type]


def _write(made: list[Document], folder: Path) -> None:
    from pipeline.typed_yaml import to_yaml

    names = [f"{document['kind'].lower()}.yaml" for document in made]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": names,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, document in zip(names, made, strict=True):
            (folder / name).write_text(to_yaml([document]))
        (folder / "kustomization.yaml").write_text(to_yaml([kustomization]))
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be written: {error.strerror}") from error
    print(f"wrote {len(made)} manifests; `kubectl apply -k {folder}` applies them")


def _cluster(config: PipelineConfig, context: str | None, namespace: str | None) -> Kubernetes:
    from pipeline.kuberay.client import Kubernetes

    return Kubernetes(context, namespace or config.kubernetes.namespace)


def _job(cluster: Kubernetes, name: str) -> Document:
    job = cluster.job(name)
    if job is None:
        raise ArtifactError(
            f"k8s: there is no RayJob {cluster.namespace}/{name}; `ladd-pipeline k8s submit` makes "
            "it"
        )
    return job


def _job_text(state: dict[str, Any]) -> str:
    """Say what a job does, such as `Running, job RUNNING, 1 of 3 workers ready, since 12:00`."""
    parts = [state.get("jobDeploymentStatus") or "not looked at by KubeRay yet"]
    if state.get("jobStatus"):
        parts.append(f"job {state['jobStatus']}")
    cluster = state.get("rayClusterStatus", {})
    if cluster.get("desiredWorkerReplicas"):
        ready, wanted = cluster.get("readyWorkerReplicas", 0), cluster["desiredWorkerReplicas"]
        parts.append(f"{ready} of {wanted} workers ready")
    if state.get("startTime"):
        parts.append(f"since {state['startTime']}")
    if state.get("failed"):
        parts.append(f"{state['failed']} attempts failed")
    return ", ".join(parts)


def _row(pod: Any) -> dict[str, Any]:
    labels = pod.metadata.labels or {}
    containers = pod.status.container_statuses or []
    waiting = [one.state.waiting.reason for one in containers if one.state and one.state.waiting]
    unmet = [one.message for one in pod.status.conditions or [] if one.status == "False"]
    return {
        "pod": pod.metadata.name,
        "group": labels.get("ray.io/group") or labels.get("app.kubernetes.io/component", ""),
        "state": pod.status.phase,
        "restarts": sum(one.restart_count for one in containers),
        "why": "; ".join(filter(None, [*waiting, *unmet]))
        if pod.status.phase not in ("Succeeded", "Running")
        else "",
    }
