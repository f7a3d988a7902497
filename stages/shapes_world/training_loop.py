"""The resumable training loop of all networks of the embedded teacher: saves at intervals and
resumes exactly.

Every random draw of a step comes from `step_rng(seed, step)`, so a resumed training equals an
uninterrupted one.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from stages.shapes_world.state_file import StateFileError, load_state, save_state


class Stateful(Protocol):
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state_dict: dict) -> object: ...


def step_rng(seed: int, step: int) -> tuple[random.Random, torch.Generator]:
    """Return the random generators of one training step, for Python and for torch."""
    rng = random.Random(f"{seed}/{step}")
    return rng, torch.Generator().manual_seed(rng.getrandbits(62))


def run_training(
    name: str,
    folder: Path,
    parts: dict[str, Stateful],
    steps: int,
    update: Callable[[int], dict[str, float]],
    *,
    log_every: int = 50,
    save_every_s: float = 120.0,
    report: Callable[[str], None] = print,
) -> None:
    """Call `update(step)` for each step from where `folder/name.safetensors` left off up to
    `steps`.

    `parts` are saved and restored together with the step. Metrics, averaged over `log_every` steps,
    go to `folder/name.jsonl` and, as one line, to `report`.
    """
    path = folder / f"{name}.safetensors"
    first, elapsed = 0, 0.0
    if path.exists():
        state = load_state(path)
        try:
            first, elapsed = state["step"], state["seconds"]
            for key, part in parts.items():
                part.load_state_dict(state["parts"][key])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StateFileError(
                f"training state {path} is of another training ({error}); delete it to start again"
            ) from error
        _keep_log_until(folder / f"{name}.jsonl", first)
    folder.mkdir(parents=True, exist_ok=True)
    start = saved = time.monotonic()
    sums: dict[str, float] = {}

    def save(step: int) -> None:
        seconds = elapsed + time.monotonic() - start
        states = {key: part.state_dict() for key, part in parts.items()}
        save_state(path, {"step": step, "seconds": seconds, "parts": states})

    for step in range(first, steps):
        for key, value in update(step).items():
            sums[key] = sums.get(key, 0.0) + value
        done = step + 1
        if done % log_every == 0 or done == steps:
            count = (done - 1) % log_every + 1
            seconds = elapsed + time.monotonic() - start
            row = {"step": done, "seconds": round(seconds, 1)} | {
                k: round(v / count, 5) for k, v in sums.items()
            }
            sums = {}
            with open(folder / f"{name}.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            left = (time.monotonic() - start) / (done - first) * (steps - done)
            report(f"{name} {done}/{steps}  {_spell(row)}  {left / 60:.1f} min left")
        # Save only at a logged step, so that the averages in a resumed log equal those of an
        # uninterrupted training.
        if done == steps or (done % log_every == 0 and time.monotonic() - saved > save_every_s):
            save(done)
            saved = time.monotonic()


def _spell(row: dict[str, float]) -> str:
    return "  ".join(
        f"{key} {value:.4g}" for key, value in row.items() if key not in ("step", "seconds")
    )


def _keep_log_until(path: Path, step: int) -> None:
    """Drop the log's lines after a step, and what a kill left half-written."""
    if path.exists():
        lines = path.read_text(errors="replace").splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
