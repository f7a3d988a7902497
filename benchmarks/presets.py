"""What the presets of the hub cost, as `plan` estimates it for H100s: the table of docs/presets.md.

    python benchmarks/presets.py

Needs no weights, no GPU and no network.
"""

from __future__ import annotations

from pipeline.base.store import ArtifactStore
from pipeline.config import load_config
from pipeline.estimates import Outlook, outlook
from pipeline.planning import Selection, make_plan
from schemas.config import PipelineConfig
from stages.teachers import model_costs

CARDS = {
    "sd35-medium-512": "1 of 48 GB",
    "sd35-medium": "1 of 80 GB",
    "sd35-medium-8gpu": "8 of 80 GB",
    "sd3-medium": "1 of 80 GB",
    "sd35-large": "8 of 80 GB",
}
STAGES = ("synthesize", "distill", "pairs", "dpo", "eval")


def main() -> None:
    print(f"| preset | GPUs | pictures | {' | '.join(STAGES)} | hours | GB a worker | GB on disk |")
    print("|---|---" + (len(STAGES) + 4) * "|---:" + "|")
    for name, card in CARDS.items():
        config = preset(name)
        ahead = estimated(config)
        stages = {stage: found for stage, found in ahead.stages.items() if found is not None}
        training, text = worker_bytes(config)
        cells = [name, card, f"{stages['synthesize'].samples:,}"]
        cells += [f"{stages[stage].device_hours:.1f}" for stage in STAGES]
        cells += [f"{ahead.seconds / 3600:.0f}", f"{training / 1e9:.0f} + {text / 1e9:.0f}"]
        cells += [f"{sum(found.store_bytes for found in stages.values()) / 1e9:,.0f}"]
        print(f"| {' | '.join(cells)} |")


def preset(name: str) -> PipelineConfig:
    """The preset, for as many H100s as it has GPUs."""
    devices = ["costs.device=nvidia-h100", f"costs.devices={CARDS[name].split()[0]}"]
    return load_config(preset=name, settings=devices, environment={})


def estimated(config: PipelineConfig) -> Outlook:
    """What `plan` estimates in an empty store."""
    return outlook(config, make_plan(config, ArtifactStore("memory://"), Selection()), {})


def worker_bytes(config: PipelineConfig) -> tuple[int, int]:
    """What a worker of `distill` needs on its device, without the text encoders, and those."""
    costs = model_costs(config.teacher)
    assert costs is not None
    return costs.training_bytes(config), costs.text_bytes()


if __name__ == "__main__":
    main()
