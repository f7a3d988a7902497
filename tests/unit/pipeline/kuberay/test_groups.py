"""Which nodes are made for what the stages ask of Ray, and what is refused."""

from __future__ import annotations

import pytest

from pipeline.config import load_config
from pipeline.kuberay.groups import groups_for, needs_of, node_of, require_room, settled
from schemas.errors import ConfigError
from schemas.kubernetes import WorkerGroup

STAGES = ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval")


def made(*settings: str, stages=STAGES, preset="sd35-medium-8gpu"):
    config = settled(load_config(None, preset, settings, {}))
    needs = needs_of(config, stages)
    groups = groups_for(config, needs)
    require_room(needs, groups)
    return config, needs, {group.name: group for group in groups}


def test_a_kind_of_node_for_each_kind_of_worker():
    _, needs, groups = made(
        "synthesize.pool.placement={accelerator: L4, market: spot, memory_gb: 80}",
        "synthesize.pool.workers=20",
        "encode.pool={gpus_per_worker: 0, cpus_per_worker: 12, workers: 3}",
        "distill.placement.accelerator=H100",
        "kubernetes.accelerators={L4: {gpu: l4}}",
    )
    assert set(groups) == {"gpu", "gpu-h100", "gpu-l4-spot", "cpu"}
    l4, h100, cpu = groups["gpu-l4-spot"], groups["gpu-h100"], groups["cpu"]
    assert (l4.gpus, l4.max_nodes, l4.memory_gb, l4.market) == (1, 20, 80, "spot")
    assert l4.node_selector == {"gpu": "l4"}
    # Eight workers share a copy of the weights: they belong on one machine.
    assert (h100.gpus, h100.cpus, h100.max_nodes) == (8, 64, 1)
    assert (cpu.gpus, cpu.cpus, cpu.max_nodes) == (0, 12, 3)
    for need in needs:
        fits = [group for group in groups.values() if need.request.room_on(node_of(group))]
        assert fits, need


def test_what_is_left_open_is_settled_before_a_node_is_up():
    """Bug: let a stage look for GPUs while the cluster is its head; it would work on CPUs."""
    config, _, _ = made()
    assert config.ray.address == "auto"
    assert config.eval.pool.gpus_per_worker == 1 and config.dpo.use_gpu is True
    assert config.distill.cpus_per_worker == 8
    config, needs, groups = made("kubernetes.use_gpus=false", preset="shapes")
    assert config.synthesize.pool.gpus_per_worker == 0 and config.distill.use_gpu is False
    assert set(groups) == {"cpu"} and all(not need.request.gpus for need in needs)


def test_workers_of_a_training_take_what_a_configured_node_has():
    config, _, _ = made(
        "kubernetes.groups=[{name: big, cpus: 96, memory_gb: 900, gpus: 8}]", stages=("distill",)
    )
    assert config.distill.cpus_per_worker == 12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["kubernetes.groups=[{name: cpu, cpus: 8, memory_gb: 32}]"],
            "synthesize: no group of nodes has room for a worker with a GPU (cpu has 8 CPUs and 32 "
            "GB of memory); change kubernetes.groups or synthesize.pool",
        ),
        (
            ["kubernetes.groups=[{name: gpu, cpus: 8, memory_gb: 64, gpus: 1, max_nodes: 4}]"],
            "distill: the groups of nodes have room for 4 of 8 workers, each with 8 CPUs and a "
            "GPU; raise max_nodes of gpu, or lower the workers of distill",
        ),
        (
            [
                "kubernetes.groups=[{name: gpu, cpus: 96, memory_gb: 64, gpus: 8}]",
                "distill.placement.memory_gb=16",
            ],
            "distill: the groups of nodes have room for 4 of 8 workers",
        ),
    ],
)
def test_what_no_group_satisfies_is_refused_with_the_stage(settings, said):
    with pytest.raises(ConfigError) as refused:
        made(*settings)
    assert str(refused.value).startswith(said)


def test_a_group_has_a_range_and_a_name_of_its_own(refused):
    code, text = refused(
        "plan", kubernetes={"groups": [{"name": "a", "cpus": 1, "memory_gb": 1}] * 2}
    )
    assert code == 2 and "two groups are named a" in text
    with pytest.raises(ValueError, match="min_nodes 3 is above max_nodes 2"):
        WorkerGroup(name="a", cpus=1, memory_gb=1, min_nodes=3, max_nodes=2)
