"""What is rendered beside the base in `infra/k8s`: other kinds, local files, markets."""

from __future__ import annotations

import base64

import pytest
import yaml

from pipeline.config import config_yaml, load_config, validate
from pipeline.kuberay.groups import settled
from pipeline.kuberay.manifests import manifests
from pipeline.travelling import Luggage, pack
from pipeline.typed_yaml import to_yaml
from tests.support.manifest_checks import cluster_of, findings, require_valid


def rendered(*settings: str, stages=("prompts",), luggage=None, **how) -> list[dict]:
    config = load_config(None, "shapes-smoke", ["store=s3://bucket/prefix", *settings], {})
    made = manifests(config, stages, ["--until", "prompts"], luggage or Luggage("", {}), **how)
    return list(yaml.safe_load_all(to_yaml(made)))


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({}, "RayJob"),
        ({"kind": "RayCluster"}, "RayCluster"),
        ({"kind": "RayCronJob", "schedule": "0 3 * * 1"}, "RayCronJob"),
    ],
)
def test_every_kind_is_valid_and_closed(how, kind):
    made = rendered(
        "kubernetes.namespace=ladd",
        "synthesize.pool.placement.market=spot",
        "encode.pool.placement.market=on-demand",
        "kubernetes.service_account_annotations={eks.amazonaws.com/role-arn: x}",
        "kubernetes.env={AWS_ENDPOINT_URL: https://s3.example}",
        stages=("prompts", "synthesize", "encode"),
        **how,
    )
    for document in made:
        require_valid(document)
        assert document["metadata"]["namespace"] == "ladd"
    assert made[-1]["kind"] == kind and not findings(made)
    assert any(document["kind"] == "ConfigMap" for document in made) == (kind != "RayCluster")
    groups = {group["groupName"]: group for group in cluster_of(made[-1])["workerGroupSpecs"]}
    assert groups["gpu-spot"]["labels"] == {"ray.io/market-type": "spot"}
    terms = {name: node_terms(group) for name, group in groups.items()}
    assert len(terms["gpu-spot"]) == 4 and len(terms["gpu-on-demand"]) == 1
    tolerated = groups["gpu-spot"]["template"]["spec"]["tolerations"]
    assert "cloud.google.com/gke-spot" in {taint["key"] for taint in tolerated}


def node_terms(group: dict) -> list:
    """One of several labels makes a node a spot node; it is none if it has none of them."""
    affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
    return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]


def test_local_files_come_where_the_configuration_names_them(tmp_path, monkeypatch):
    """A ConfigMap has no folders; its volume has.

    Bug: read texts with newlines translated; the fingerprints of files from Windows differ there.
    """
    (tmp_path / "work").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/ä b.txt").write_bytes(b"a cat\r\na dog\r\n")
    (tmp_path / "work/p.parquet").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path / "work")
    sources = "prompts.sources=[{kind: file, url: ['../lists/ä b.txt', p.parquet]}]"
    config = load_config(None, "shapes-smoke", ["store=s3://b/p", sources], {})
    luggage = pack(config, ["prompts"], 1000)
    made = rendered(sources, luggage=luggage)
    files = next(document for document in made if document["kind"] == "ConfigMap")
    require_valid(files)
    (volume,) = (
        volume["configMap"]
        for volume in cluster_of(made[-1])["headGroupSpec"]["template"]["spec"]["volumes"]
        if volume["name"] == "config"
    )
    contents = {**files["data"], **{k: base64.b64decode(v) for k, v in files["binaryData"].items()}}
    found = {item["path"]: contents[item["key"]] for item in volume["items"]}
    assert found.pop("work/pipeline.yaml")
    assert found == {"lists/ä b.txt": "a cat\r\na dog\r\n", "work/p.parquet": b"\xff\xfe\x00"}
    assert made[-1]["spec"]["entrypoint"].startswith("ladd-pipeline -C /etc/ladd/work run --config")


@pytest.mark.parametrize("preset", ["shapes", "shapes-smoke", "sd35-medium-512", "sd35-large"])
def test_a_configuration_reads_as_it_was_written(preset):
    config = settled(load_config(None, preset, ["store=s3://b/p"], {}))
    assert validate(yaml.safe_load(config_yaml(config))) == config
