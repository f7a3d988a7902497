"""The Grafana dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re

from pipeline.base.metrics import MEASURES, exported
from tests.support.command import ROOT
from tests.support.manifest_checks import built

FOLDER = ROOT / "infra/k8s/components/grafana-dashboard"
OF_RAY = {
    *("ray_node_gpus_utilization", "ray_node_cpu_utilization", "ray_node_mem_used"),
    *("ray_node_mem_total", "ray_cluster_active_nodes", "ray_cluster_pending_nodes"),
}
"""Those of Ray itself (docs.ray.io, System Metrics), which a node has with its agent."""


def queries() -> list[str]:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_query_refers_to_a_metric_that_exists():
    ours = {exported(name) for name in MEASURES}
    asked = {name for query in queries() for name in re.findall(r"\bray_\w+", query)}
    assert asked <= ours | OF_RAY, asked - ours - OF_RAY
    assert ours <= asked, f"no panel shows {ours - asked}"


def test_the_guide_lists_every_measure_with_its_tags():
    rows = re.findall(
        r"^\| (`ray_ladd.*?) \|.*\| (.+?) \|$", (ROOT / "infra/README.md").read_text(), re.M
    )
    listed = {
        name: set(re.findall(r"\w+", tags.partition(":")[0]))
        for names, tags in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == {exported(name): set(measure.tags) for name, measure in MEASURES.items()}


def test_labels_of_queries_are_those_of_their_metrics():
    for query in queries():
        for labels, name in re.findall(r"by \(([\w, ]+)\) \((?:rate\()?(ray_ladd_\w+)", query):
            measure = MEASURES[name.removeprefix("ray_").removesuffix("_total")]
            assert set(labels.split(", ")) <= set(measure.tags), query


def test_panels_do_not_lie_on_each_other():
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_an_overlay_carries_it_as_it_is():
    documents = built(ROOT / "infra/k8s/overlays/gke-spot")
    (found,) = [one for one in documents if one["metadata"]["name"] == "ladd-pipeline-dashboard"]
    assert found["data"]["dashboard.json"] == (FOLDER / "dashboard.json").read_text()
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
