"""The kustomize base and its overlays: valid, closed, and with room for what is asked of Ray."""

from __future__ import annotations

import copy
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from typer.main import get_command

from pipeline.base import mapping, training
from pipeline.base.mapping import map_shards
from pipeline.base.resources import Node, Request
from pipeline.base.store import ArtifactStore
from pipeline.base.training import TrainingPlan
from pipeline.cli import app
from pipeline.config import load_config
from pipeline.kuberay.pods import CONFIG_FOLDER
from pipeline.planning import Selection, stages_at_most
from tests.support.command import ROOT, call_here
from tests.support.context import make_context
from tests.support.manifest_checks import (
    OVERLAYS,
    built,
    cluster_of,
    findings,
    group_nodes,
    require_valid,
    satisfies,
    templates,
)

INFRA = ROOT / "infra" / "k8s"
ALL = [INFRA / "base", *OVERLAYS]
POOLS = {"synthesize": "synthesize", "encode": "encode", "eval": "eval"}
HEAD = Node({"memory": 32e9, "node:__internal_head__": 1.0})


@pytest.fixture(scope="module", params=ALL, ids=lambda folder: folder.name)
def documents(request) -> list[dict]:
    return built(request.param)


@pytest.fixture(scope="module")
def job(documents) -> dict:
    (found,) = (document for document in documents if document["kind"] == "RayJob")
    return found


@pytest.fixture
def configured(documents, tmp_path):
    """The configuration that the job reads, and the stages that it runs."""
    (files,) = (one for one in documents if "pipeline.yaml" in one.get("data", {}))
    (tmp_path / "pipeline.yaml").write_text(files["data"]["pipeline.yaml"])
    config = load_config(tmp_path / "pipeline.yaml", None, (), {})
    return config, stages_at_most(config, Selection(until="eval"))


def test_every_manifest_is_valid(documents):
    for document in documents:
        require_valid(document)


def test_a_field_that_kuberay_does_not_know_is_an_error(job):
    """The check itself can fail, at any depth."""
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        require_valid(wrong)
    wrong = copy.deepcopy(job)
    wrong["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(Exception, match="imagePolicy"):
        require_valid(wrong)


def test_nothing_is_open(documents):
    assert findings(documents) == []


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("securityContext.runAsNonRoot", False, "head: may run as root"),
        ("securityContext.seccompProfile", {}, "head: has no seccomp profile"),
        ("hostNetwork", True, "head: uses hostNetwork"),
        ("serviceAccountName", "default", "head: uses the default account"),
        ("volumes.0", {"name": "x", "hostPath": {}}, "head: mounts a hostPath"),
        ("containers.0.image", "ladd:latest", "head: has an image without a version (ladd:latest)"),
        ("containers.0.securityContext.readOnlyRootFilesystem", False, "head: can write to its ro"),
        ("containers.0.securityContext.capabilities", {}, "head: keeps capabilities"),
        ("containers.0.securityContext.allowPrivilegeEscalation", True, "head: may gain"),
        ("containers.0.resources.limits", {}, "head: has no memory of its own"),
        ("containers.0.livenessProbe", None, "head: is not asked whether it lives"),
        ("containers.0.env", [{"name": "HF_TOKEN", "value": "x"}], "head: has a secret in HF_TOK"),
        ("containers.0.volumeMounts", [], "head: cannot write to /tmp"),
    ],
)
def test_the_lint_finds_what_it_is_there_for(path, value, found):
    documents = copy.deepcopy(_base())
    place = cluster_of(documents[-1])["headGroupSpec"]["template"]["spec"]
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in above:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    (text,) = findings(documents)
    assert text.startswith(found)


def test_the_lint_finds_an_open_door():
    documents = copy.deepcopy(_base())
    (policy,) = (one for one in documents if one["kind"] == "NetworkPolicy")
    policy["spec"]["ingress"].append({})
    cluster_of(documents[-1])["authOptions"]["mode"] = "disabled"
    found = findings(documents)
    assert "Ray asks for no token" in found
    assert "worker-l4: its NetworkPolicy lets everybody in" in found


def test_the_base_is_what_render_writes(tmp_path):
    """A golden test: `make manifests` writes `infra/k8s/base`, nobody edits it."""
    result = call_here(
        *("k8s", "render", "-c", INFRA / "pipeline.yaml", "--until", "distill", "--eval"),
        *("--out", tmp_path / "base"),
    )
    assert result.returncode == 0, result.stderr
    for file in (INFRA / "base").iterdir():
        assert (tmp_path / "base" / file.name).read_text() == file.read_text(), file.name
    assert len(list((tmp_path / "base").iterdir())) == len(list((INFRA / "base").iterdir()))


def test_the_command_is_ours_and_reads_the_mounted_configuration(job):
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "ladd-pipeline"
    command = get_command(app)
    context = command.make_context(program, list(words))
    assert context.params["folder"] == Path(CONFIG_FOLDER)
    name, run, rest = command.resolve_command(context, words[2:])
    options = run.make_context(name, rest).params
    assert name == "run" and options["config"] == Path("pipeline.yaml")
    for part, template in templates(job):
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        places = {mount["mountPath"] for mount in mounts}
        assert (CONFIG_FOLDER in places) == (part != "submitter")


def test_versions_are_those_of_the_image(job):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert cluster_of(job)["rayVersion"] == pins["ray"]
    images = {template["spec"]["containers"][0]["image"] for _, template in templates(job)}
    assert images == {f"registry.example/ladd-pipeline:{project['version']}"}


def asked_of_ray(config, stages, nodes, tmp_path, monkeypatch) -> dict[str, tuple[Request, int]]:
    """What the executor's own pools and trainings ask Ray for, while the cluster has these nodes:
    for each stage, a worker's request and how many workers it cannot do without.
    """
    asked: dict[str, tuple[Request, int]] = {}

    class Stop(Exception):
        pass

    def map_batches(self, _, *, num_cpus, num_gpus, memory, label_selector, **__):
        raise Stop(Request(num_cpus or 0, num_gpus or 0, memory or 0, label_selector or {}))

    monkeypatch.setattr(
        ray.data, "from_items", lambda *_, **__: type("D", (), {"map_batches": map_batches})()
    )
    monkeypatch.setattr("ray.train.torch.TorchTrainer", lambda _, **made: made["scaling_config"])
    monkeypatch.setattr(mapping, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(training, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(training, "arrow_filesystem", lambda context: None)
    for stage in stages:
        context = make_context(stage, config, ArtifactStore(str(tmp_path / "store")))
        if stage in POOLS:
            pool = getattr(config, POOLS[stage]).pool
            with pytest.raises(Stop) as stop:
                map_shards(context, ["a", "b"], lambda: None, pool)
            asked[stage] = (stop.value.args[0], pool.min_workers or 1)
        if stage == "distill":
            plan = TrainingPlan.of(config.distill)
            share = training._own_share(context, plan)
            scaling = training._trainer(context, None, plan, None, share, None)
            bundle = scaling.resources_per_worker
            request = Request(
                bundle.get("CPU", 0),
                bundle.get("GPU", 0),
                bundle.get("memory", 0),
                scaling.label_selector or {},
            )
            asked[stage] = (request, plan.min_workers or plan.workers)
    return asked


@pytest.mark.parametrize("up", ["the head alone", "all nodes"])
def test_a_worker_group_satisfies_what_each_stage_asks_of_ray(
    up, job, configured, tmp_path, monkeypatch
):
    """Bug: render groups from one reading of the configuration, and ask Ray by another."""
    config, stages = configured
    assert config.ray.address == "auto"
    cluster = cluster_of(job)
    groups = group_nodes(cluster)
    nodes = [HEAD]
    if up == "all nodes":
        nodes += [node for node, most in groups.values() for _ in range(most)]
    asked = asked_of_ray(config, stages, nodes, tmp_path, monkeypatch)
    assert set(asked) == {"synthesize", "encode", "distill", "eval"}
    for stage, (request, least) in asked.items():
        fitting = satisfies(cluster, request)
        assert fitting, f"{stage} asks for {request}, which no group has"
        room = sum(request.room_on(groups[name][0]) * groups[name][1] for name in fitting)
        assert room >= least, stage
        assert not request.room_on(HEAD), f"{stage} would run on the head"


def test_a_request_that_no_group_satisfies_is_refused_with_the_stage(tmp_path):
    result = call_here(
        *("k8s", "render", "-c", INFRA / "pipeline.yaml", "--until", "distill"),
        *("--set", "encode.pool.placement.accelerator=A100"),
    )
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: encode: no group of nodes has room for a worker with a GPU and 40 GB of memory, "
        "with accelerator-type A100 (l4 has 11 CPUs, a GPU and 44 GB of memory, with "
        "accelerator-type L4; "
    )


def _base() -> list[dict]:
    names = yaml.safe_load((INFRA / "base" / "kustomization.yaml").read_text())["resources"]
    return [yaml.safe_load((INFRA / "base" / name).read_text()) for name in names]
