"""Students of the SD3 family: their sampling grid, and their folders, which stock diffusers samples
on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from schemas.config import StudentTimeConfig
from schemas.errors import ArtifactError
from stages.ladd.grid import StudentGrid, evenly_spaced, shifted, step_counts, student_sigmas
from stages.teachers.folder_check import ModelFolder, forget_paths
from stages.teachers.sd3_folder import FIELD, INDEX, SCHEDULER, TWINS

_RECORD = "student.json"


def student_grid(time: StudentTimeConfig, shift: float) -> StudentGrid:
    """The grid of `time`, shifted, with the noise levels that stock diffusers returns for it.

    diffusers stretches an even schedule, which it has shifted, to end at `shift_terminal`. So an
    even grid down to tau, shifted by S, is that of a scheduler with `shift_terminal` g = S tau / (1
    + (S - 1) tau) and `shift` g / tau. It is exact up to the scheduler's smallest sigma of .001,
    which diffusers shifts twice: the levels are therefore taken from the scheduler itself.
    """
    if len(time.grid) == 1 or not evenly_spaced(time.grid):
        return StudentGrid(tuple(round(shifted(level, shift), 6) for level in time.grid))
    terminal = shifted(time.grid[-1], shift)
    # A few binary digits: with them the scheduler's first sigma is 1, and never 1.0000002.
    own_shift = round(terminal / time.grid[-1] * 1024) / 1024
    grid = StudentGrid(tuple(time.grid), own_shift, terminal)
    return replace(grid, levels=tuple(_sampled(student_scheduler(grid), grid)))


def student_scheduler(grid: StudentGrid) -> FlowMatchEulerDiscreteScheduler:
    """The stock scheduler that is saved with a student. With `shift_terminal` it divides by zero on
    one step.
    """
    return FlowMatchEulerDiscreteScheduler(
        shift=grid.shift, shift_terminal=grid.terminal, stochastic_sampling=True
    )


def one_step_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The stock scheduler of a single step, from noise level 1."""
    return student_scheduler(StudentGrid((1.0,)))


def write_student(
    folder: Path,
    source: Path,
    transformer: SD3Transformer2DModel,
    grid: StudentGrid,
    *,
    with_t5: bool,
) -> None:
    """Write a student's folder: its transformer and schedulers, and everything else from `source`,
    the folder of its teacher.
    """
    index = ModelFolder(source, FIELD).json(INDEX)
    twins = shutil.ignore_patterns(TWINS)
    for part in sorted(source.iterdir()):
        if part.is_dir() and part.name in index.keys() - {"transformer", "scheduler"}:
            if part.name.endswith("_3") and not with_t5:
                continue
            shutil.copytree(part, folder / part.name, dirs_exist_ok=True, ignore=twins)
    transformer.save_pretrained(folder / "transformer", safe_serialization=True)
    student_scheduler(grid).save_pretrained(folder / "scheduler")
    one_step_scheduler().save_pretrained(folder / "scheduler_one_step")
    record: dict[str, object] = {"grid": list(grid.levels)}
    if _as_argument(grid):
        record["sigmas"] = {str(n): student_sigmas(grid, n) for n in step_counts(grid)}
    (folder / _RECORD).write_text(json.dumps(record) + "\n")
    if not with_t5:
        index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    forget_paths(folder)


def read_grid(folder: Path) -> StudentGrid:
    """The grid of the student that `write_student` wrote. Raises ArtifactError when the folder
    holds no student, or its scheduler does not sample at the levels of its student.json.
    """
    try:
        config = json.loads((folder / SCHEDULER).read_text())
        levels = tuple(map(float, json.loads((folder / _RECORD).read_text())["grid"]))
        if not levels:
            raise ValueError(f"its {_RECORD} holds no grid")
        grid = StudentGrid(levels, float(config["shift"]), config.get("shift_terminal"))
        sampled = _sampled(FlowMatchEulerDiscreteScheduler.from_config(config), grid)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(f"{folder} is not a student's folder: {error}") from error
    same = all(abs(a - b) <= 1e-6 for a, b in zip(sampled, levels, strict=True))
    if not same or not config.get("stochastic_sampling"):
        raise ArtifactError(
            f"{folder}/scheduler is not the one that was saved with the student; distill again"
        )
    return grid


def usage(grid: StudentGrid, steps: Sequence[int], *, with_t5: bool) -> str:
    """Markdown for the model card: how stock diffusers draws with a student in one of `steps`."""
    parts = "folder" if with_t5 else "folder, text_encoder_3=None, tokenizer_3=None"
    most = f"sigmas={student_sigmas(grid, max(steps))}"
    if not _as_argument(grid):
        most = f"num_inference_steps={max(steps)}"
    text = (
        "```python\n"
        "from diffusers import StableDiffusion3Pipeline\n\n"
        f"pipe = StableDiffusion3Pipeline.from_pretrained({parts})\n"
        f"picture = pipe(prompt, {most}, guidance_scale=0).images[0]\n"
        "```"
    )
    if _as_argument(grid):
        for n in sorted(set(steps) - {max(steps)}, reverse=True):
            text += f"\n\nFor {n} step{'s' * (n > 1)}: `sigmas={student_sigmas(grid, n)}`."
    elif 1 in steps:
        text += (
            "\n\nFor a single step, set `pipe.scheduler = FlowMatchEulerDiscreteScheduler"
            '.from_pretrained(folder, subfolder="scheduler_one_step")` first.'
        )
    return text


def _as_argument(grid: StudentGrid) -> bool:
    """Whether the pipeline must be told the levels: no scheduler makes them by itself."""
    return grid.terminal is None and len(grid) > 1


def _sampled(scheduler: FlowMatchEulerDiscreteScheduler, grid: StudentGrid) -> list[float]:
    """The noise levels at which the scheduler samples all steps of a grid, without the final 0."""
    if grid.terminal is None:
        scheduler.set_timesteps(sigmas=list(grid.levels))
    else:
        scheduler.set_timesteps(len(grid))
    levels: list[float] = scheduler.sigmas[:-1].tolist()
    return levels
