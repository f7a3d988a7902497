"""`sample`, `score` and `teacher train`: sample from a student, score it, and train the embedded
teacher.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from stages.judging.shapes_table import Judged

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
        typer.Option(help="The adapters' scale; without --lora, of this configuration's adapters."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps: 1, 2 or 4 on the default grid.")] = 4,
    bucket: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT; by default the configuration's first bucket.")
    ] = "",
    seed: int = 0,
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
            lora = stack.enter_context(found.local_folder(found.manifest.details["lora"]))
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
    """Score teacher and student of the shapes world on held-out prompts: all attributes right,
    Fréchet distance.
    """
    from pipeline.commands.opening import open_plan

    opened = open_plan(config, preset, set_)
    from stages.judging.shapes_table import score_table

    no_student = contextlib.nullcontext()
    with no_student if teacher_only else opened.student_folder(student) as folder:
        students = {"student": folder} if folder else {}
        judged = score_table(opened.config, students, prompts, print_to_stderr)
    _print_judged(judged)
    if out is not None:
        write_judged(judged, out)


def _print_judged(judged: list[Judged]) -> None:
    """Print one table over all pictures, then attributes and distance by bucket."""
    from pipeline.commands.tables import print_table

    buckets = list(judged[0].attributes_by_bucket)
    print_table(
        ["pictures", "all attributes %", "Fréchet distance", "diversity"],
        [
            [
                row.pictures,
                f"{100 * row.attributes:.1f}",
                "" if row.frechet is None else f"{row.frechet:.3f}",
                f"{row.diversity:.3f}",
            ]
            for row in judged
        ],
    )
    typer.echo()
    print_table(
        ["all attributes %", *buckets],
        [
            [row.pictures, *(f"{100 * row.attributes_by_bucket[b]:.1f}" for b in buckets)]
            for row in judged
        ],
    )
    typer.echo()
    print_table(
        ["Fréchet distance", *buckets],
        [
            [row.pictures, *(f"{row.frechet_by_bucket[b]:.3f}" for b in buckets)]
            for row in judged
            if row.frechet is not None
        ],
    )


def write_judged(judged: list[Judged], out: Path) -> None:
    """Write the table as JSON."""
    from pipeline.commands.tables import write_json

    write_json([asdict(row) for row in judged], out)


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
