"""Kinds of devices: what each computes and holds, which one this machine has, and which a cluster.

A kind is a short name such as `nvidia-h100` or `cpu`. Imports neither torch nor Ray.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.machine import memory_limit, usable_cpus
from schemas.config import PipelineConfig
from schemas.costs import CostsConfig
from schemas.manifest import Devices, Expected

CPU = "cpu"
_GPU_SHARES = {
    "sampling": 0.25,
    "training": 0.15,
    "compiled": 0.26,
    "pixels": 0.07,
    "text": 0.25,
    "scores": 0.10,
}
"""Of a GPU's peak in bfloat16, what we reach: on an H100 (docs/gpu-results.md), but for `text` and
`scores`, which are guesses.
"""
_CPU_SHARES = {
    "sampling": 0.30,
    "training": 0.22,
    "compiled": 0.22,
    "pixels": 0.60,
    "text": 0.14,
    "scores": 0.50,
}
"""Of a core's peak, what the embedded teacher reaches (docs/scale.md)."""


@dataclass(frozen=True)
class Device:
    """A kind of device."""

    kind: str
    flops: float
    """Operations a second in bfloat16 at the most, without sparsity: of a GPU, or of a core."""
    memory: int | None
    """Bytes of a GPU; None of a core, which shares its machine's."""
    shares: Mapping[str, float]
    """Of the peak, by kind of work: what the estimate assumes."""
    launch: float
    """Seconds that a layer takes at least."""
    start: float
    """Seconds until a worker has started, without its weights."""
    loading: float
    """Bytes of weights a second."""

    @property
    def is_gpu(self) -> bool:
        return self.kind != CPU and not self.kind.startswith("cpu-")


def _gpu(kind: str, teraflops: float, gigabytes: float) -> Device:
    return Device(kind, teraflops * 1e12, int(gigabytes * 2**30), _GPU_SHARES, 3e-4, 25.0, 1e9)


def _unknown(kind: str) -> Device:
    """Return a card of some speed: only its measured rates say how fast it is."""
    return _gpu(kind, 100, 0)


_GPUS = [
    _gpu("nvidia-b200", 2250, 178),
    _gpu("nvidia-gh200", 989, 94),
    _gpu("nvidia-h200", 989, 140),
    _gpu("nvidia-h100-pcie", 756, 79),
    _gpu("nvidia-h100", 989, 79),
    _gpu("nvidia-a100-40gb", 312, 39),
    _gpu("nvidia-a100", 312, 79),
    _gpu("nvidia-l40s", 362, 44),
    _gpu("nvidia-l40", 181, 44),
    _gpu("nvidia-l4", 121, 22),
    _gpu("nvidia-a40", 150, 44),
    _gpu("nvidia-a10g", 70, 22),
    _gpu("nvidia-a10", 125, 22),
    _gpu("nvidia-rtx-4090", 165, 23),
    _gpu("nvidia-rtx-3090", 71, 23),
    _gpu("nvidia-rtx-6000-ada", 364, 47),
]
"""Peaks from NVIDIA's data sheets: bfloat16 without sparsity, sums in float32. Memory is what a
process can use.
"""
GPUS = {device.kind: device for device in _GPUS}


@dataclass(frozen=True)
class Fleet:
    """The devices that an estimate is for."""

    device: Device
    count: int
    """GPUs, or cores."""
    cores: int
    """CPU cores beside them."""
    is_here: bool
    """Whether it is this machine, of which more can be known."""
    known: bool = True
    """Whether the kind's peak is known; else only measured rates count."""

    @property
    def text(self) -> str:
        return f"{self.count} x {self.device.kind}"


def fleet_of(config: PipelineConfig) -> Fleet:
    """Return the devices that `costs` names, else those of this machine."""
    costs, here = config.costs, machine_of(config)
    if costs.device is None and not config.ray.is_joined:
        return here if costs.devices is None else _resized(here, costs.devices)
    device, known = _named(costs, here)
    count = costs.devices or (here.count if device.kind == here.device.kind else 1)
    cores = count if not device.is_gpu else max(here.cores, 8 * count)
    return Fleet(device, count, cores, is_here=False, known=known)


def machine_of(config: PipelineConfig) -> Fleet:
    """Return what a Ray of this machine would have."""
    cores = config.ray.num_cpus or usable_cpus()
    names = gpu_names()
    if not names:
        return Fleet(_core(), cores, cores, is_here=True)
    kind = kind_of(names[0])
    return Fleet(GPUS.get(kind) or _unknown(kind), len(names), cores, True, kind in GPUS)


def _resized(fleet: Fleet, count: int) -> Fleet:
    return Fleet(fleet.device, count, max(fleet.cores, count), fleet.is_here, fleet.known)


def _named(costs: CostsConfig, here: Fleet) -> tuple[Device, bool]:
    kind = costs.device
    if kind is None:  # a cluster, of which nothing is said: perhaps of machines like this one
        return here.device, here.known and here.device.is_gpu
    if kind == CPU:
        return _core(), True
    found = GPUS.get(kind) or GPUS.get(f"nvidia-{kind}")
    return (found, True) if found else (_unknown(kind), False)


def kind_of(name: str) -> str:
    """Return the kind of a GPU by the name that its driver or Ray gives it: `NVIDIA H100 80GB HBM3`
    and `H100` are nvidia-h100.
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    full = words if words.startswith(("nvidia-", "amd-", "intel-")) else f"nvidia-{words}"
    for kind in sorted(GPUS, key=len, reverse=True):
        parts = kind.split("-")
        if parts == [part for part in full.split("-") if part in parts][: len(parts)]:
            return kind
    return full


def price_of(costs: CostsConfig, kind: str) -> float | None:
    """Return the price of a device for an hour: the kind's own, or that of the longest kind whose
    name begins it, so that `nvidia` prices all.
    """
    names = [name for name in costs.prices if kind == name or kind.startswith(f"{name}-")]
    return costs.prices[max(names, key=len)] if names else None


def kinds_in(resources: Iterable[str]) -> list[str]:
    """Return the kinds of GPU that a Ray cluster has, from the names of its resources."""
    prefix = "accelerator_type:"
    return sorted({kind_of(name.removeprefix(prefix)) for name in resources if prefix in name})


def cluster_devices(expected: Expected | None) -> Devices:
    """Return what the joined Ray cluster has now: its GPUs, or its cores if it has none."""
    import ray

    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    if gpus:
        return Devices(kind="+".join(kinds_in(resources)) or "gpu", count=gpus, expected=expected)
    return Devices(kind=cpu_kind(), count=resources.get("CPU", 1.0), expected=expected)


def cpu_kind() -> str:
    """Return the kind of this machine's cores, such as cpu-amd-epyc."""
    name = _of_cpu("model name") or "unknown"
    words = re.sub(r"\((r|tm)\)|@.*| cpu| processor|\d+-core", "", name.lower())
    return "cpu-" + re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def gpu_names(root: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Return the names of the GPUs that this process may use, as the driver has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    names = []
    for file in sorted(root.glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", file.read_text(), re.MULTILINE)
        names += [found[1].strip()] if found else []
    names = names or _asked()
    return names if visible is None else names[: len(visible.split(","))]


def _asked() -> list[str]:
    """Ask nvidia-smi, where the driver shows no files, as in some containers."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


def _core() -> Device:
    """Return a core of this machine: two multiply-adds of its widest vectors a cycle."""
    megahertz = float(_of_cpu("cpu MHz") or 2500)
    flags = (_of_cpu("flags") or "").split()
    lanes = 16.0 if "avx512f" in flags else 8.0 if "avx2" in flags else 4.0
    if "avx512_bf16" in flags:
        lanes *= 2
    if _of_cpu("siblings") != _of_cpu("cpu cores"):
        lanes /= 2  # two of the cores that we count are one
    return Device(cpu_kind(), megahertz * 1e6 * 4 * lanes, None, _CPU_SHARES, 2e-4, 8.0, 3e8)


def _of_cpu(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(field)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def machine_memory() -> int:
    """Return the bytes of memory that this machine, or the process's cgroup, has."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(whole, memory_limit() or whole)
