"""Kinds of devices: by the names of drivers and of Ray, with their prices."""

from __future__ import annotations

import pytest

from pipeline import devices
from pipeline.devices import fleet_of, gpu_names, kind_of, kinds_in, price_of
from schemas.costs import CostsConfig


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100"),
        ("NVIDIA H100 PCIe", "nvidia-h100-pcie"),
        ("H100", "nvidia-h100"),
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100"),
        ("NVIDIA A100-PCIE-40GB", "nvidia-a100-40gb"),
        ("A100-40G", "nvidia-a100"),
        ("NVIDIA L40S", "nvidia-l40s"),
        ("NVIDIA L4", "nvidia-l4"),
        ("NVIDIA GeForce RTX 4090", "nvidia-rtx-4090"),
        ("Tesla T4", "nvidia-tesla-t4"),
        ("AMD Instinct MI300X", "amd-instinct-mi300x"),
    ],
)
def test_a_card_is_known_by_the_names_of_its_driver_and_of_ray(name, kind):
    assert kind_of(name) == kind


def test_a_cluster_says_which_cards_it_has():
    resources = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0, "accelerator_type:H100": 1.0}
    assert kinds_in(resources) == ["nvidia-h100", "nvidia-l4"]
    assert kinds_in({"CPU": 8.0}) == []


def test_the_driver_names_the_cards_that_this_process_may_use(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for number in range(2):
        card = tmp_path / f"0000:0{number}:00.0" / "information"
        card.parent.mkdir()
        card.write_text("Model: \t\t NVIDIA L4\nIRQ:   \t 24\n")
    assert gpu_names(tmp_path) == ["NVIDIA L4"] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_names(tmp_path) == ["NVIDIA L4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_names(tmp_path) == []


def test_the_nearest_name_gives_the_price():
    costs = CostsConfig(prices={"nvidia": 1.0, "nvidia-h100": 2.5, "cpu": 0.04})
    assert price_of(costs, "nvidia-h100") == price_of(costs, "nvidia-h100-pcie") == 2.5
    assert price_of(costs, "nvidia-l4") == 1.0
    assert price_of(costs, "cpu-amd-epyc") == 0.04
    assert price_of(costs, "amd-instinct-mi300x") is None


def with_costs(config, **costs):
    return config.model_copy(update={"costs": CostsConfig(**costs)})


def test_a_plan_is_for_this_machine_or_for_what_is_named(config, monkeypatch):
    monkeypatch.setattr(devices, "gpu_names", lambda: [])
    monkeypatch.setattr(devices, "usable_cpus", lambda: 3)
    here = fleet_of(config)
    assert (here.count, here.device.is_gpu, here.known) == (3, False, True)
    named = fleet_of(with_costs(config, device="nvidia-h100", devices=8))
    assert (named.count, named.device.kind, named.device.is_gpu) == (8, "nvidia-h100", True)
    assert fleet_of(with_costs(config, device="h100")).device.kind == "nvidia-h100"
    assert fleet_of(with_costs(config, device="cpu", devices=16)).cores == 16
    assert not fleet_of(with_costs(config, device="tpu-v5")).known
    monkeypatch.setattr(devices, "gpu_names", lambda: ["NVIDIA L4"] * 4)
    assert fleet_of(config).text == "4 x nvidia-l4"


def test_of_a_cluster_that_is_not_named_nothing_is_known(config, monkeypatch):
    monkeypatch.setattr(devices, "gpu_names", lambda: [])
    joined = config.model_copy(update={"ray": config.ray.model_copy(update={"address": "auto"})})
    assert not fleet_of(joined).known
    assert fleet_of(with_costs(joined, device="nvidia-h100", devices=8)).known
