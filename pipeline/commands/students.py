"""`sample`, `score` and `teacher train`: sample from a student, score it, and train the embedded
teacher.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import (
    ConfigFile,
    Out,
    Preset,
    Settings,
    StudentFolder,
    new_group,
)
from schemas.errors import ArtifactError, ConfigError

app = new_group()
teacher_app = new_group("Train the embedded teacher.")


@app.command()
def sample(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to sample.")] = None,
    file: Annotated[
        str | None, typer.Option(help="Sample the prompts of this txt, jsonl, csv or parquet file.")
    ] = None,
    student: StudentFolder = None,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Without --student, use the preference-tuned student.")
    ] = False,
    lora: Annotated[
        Path | None, typer.Option(help="A folder with adapters to apply to the student.")
    ] = None,
    lora_scale: Annotated[
        float | None,
        typer.Option(help="Scale of the adapters in --lora, or else of this configuration's own."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps: 1, 2 or 4 on the default grid.")] = 4,
    bucket: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT; by default the configuration's first bucket.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Base seed.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("samples"),
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Sample pictures with a student."""
    from pipeline.commands.opening import open_plan

    opened = open_plan(config, preset, set_)
    wanted = [*(prompts or ()), *_prompts_of(file)]
    if not wanted:
        raise ConfigError("sample needs a prompt, or a file of them: --file prompts.txt")
    if lora is not None and not lora.is_dir():
        raise ArtifactError(f"--lora {lora} is not a folder")
    if tuned and lora is None and lora_scale is not None:
        raise ConfigError(
            "the --tuned student has its adapters merged at the chosen scale; leave --tuned out to "
            "apply them to the student at --lora-scale"
        )
    from stages.pictures.sample import draw_prompts

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(opened.student_folder(student, tuned=tuned))
        if lora is None and lora_scale is not None:
            found = opened.made("dpo")
            lora = stack.enter_context(found.local_folder(found.details["lora"]))
        for path in draw_prompts(
            folder,
            wanted,
            steps,
            bucket or next(iter(opened.config.prompts.buckets)),
            seed,
            out,
            lora=lora,
            lora_scale=1.0 if lora_scale is None else lora_scale,
            title="tuned" if tuned and student is None else "",
        ):
            print(path)


def _prompts_of(file: str | None) -> list[str]:
    if file is None:
        return []
    from schemas.config import FileSource
    from stages.texts.prompt_files import Fields
    from stages.texts.sources import read_file, require_prompts

    source, named = FileSource(kind="file", url=file), Fields("--file", "--file")
    require_prompts(source, named)
    return list(read_file(source, named))


@app.command()
def score(
    student: StudentFolder = None,
    prompts: Annotated[int, typer.Option(min=1, help="Number of held-out prompts.")] = 1000,
    out: Out = None,
    teacher_only: Annotated[bool, typer.Option(help="Leave the student out.")] = False,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Score teacher and student on held-out prompts, with the scores and features of `eval`."""
    from pipeline.commands.opening import open_plan
    from pipeline.commands.scoring import check_scored, score_students

    opened = open_plan(config, preset, set_)
    check_scored(opened.config, prompts)
    no_student = contextlib.nullcontext()
    with no_student if teacher_only else opened.student_folder(student) as folder:
        students = {"student": folder} if folder else {}
        score_students(opened.config, opened.store, students, prompts, out)


def print_to_stderr(text: str) -> None:
    """Print progress, which is not part of a command's output."""
    print(text, file=sys.stderr, flush=True)


@teacher_app.command("train")
def train_teacher(
    name: Annotated[str, typer.Argument(help="shapes")],
    work: Annotated[
        Path, typer.Option(help="Folder for progress; rerun with the same folder to resume.")
    ] = Path("teacher-build"),
    out: Annotated[Path, typer.Option(help="Folder for the finished pipeline.")] = Path(
        "teacher-shapes"
    ),
    share: Annotated[
        float, typer.Option(help="Share of the full number of steps; below 1 for a trial.")
    ] = 1.0,
) -> None:
    """Train the embedded teacher from scratch: tokenizer, text towers, autoencoder, judge,
    transformer.
    """
    if name != "shapes":
        raise ConfigError(f"there is no recipe for teacher {name!r}; known: shapes")
    from stages.shapes_world.train import train_all

    train_all(work, out, share)
