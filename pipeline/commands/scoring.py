"""What `score` and `sweep --score` share: students are judged on held-out prompts and shown in a
table. The shapes world has a table of its own, which needs no artifact of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic_core import to_jsonable_python

from pipeline.commands.students import print_to_stderr
from schemas.config import PipelineConfig

if TYPE_CHECKING:
    from pipeline.base.store import ArtifactStore
    from schemas.report import Interval, SystemResult
    from stages.judging.shapes_table import Judged
    from stages.judging.table import Table


def check_scored(config: PipelineConfig, prompts: int) -> None:
    """Raise ConfigError if students cannot be judged on this many prompts, before any work."""
    from stages.judging.shapes_table import held_out, judges_shapes

    if judges_shapes(config):
        held_out(config, prompts)
        return
    from stages.eval import check_judges
    from stages.texts.held_out import check_prompts

    check_prompts(config)
    check_judges(config.eval)


def score_students(
    config: PipelineConfig,
    store: ArtifactStore,
    students: dict[str, Path],
    prompts: int,
    out: Path | None,
    *,
    one_line_each: bool = False,
) -> None:
    """Judge the students, by title, on this many held-out prompts, and print the table; with `out`,
    write it as JSON too. With `one_line_each`, a student's numbers of steps share a line.
    """
    from pipeline.commands.tables import write_json
    from stages.judging.shapes_table import judges_shapes, score_table

    if judges_shapes(config):
        judged = score_table(config, students, prompts, print_to_stderr)
        if one_line_each:
            _print_shapes_lines(judged, list(students))
        else:
            _print_shapes(judged)
        content: Any = [asdict(row) for row in judged]
    else:
        table = _general(config, store, students, prompts)
        _print_table(table, list(students) if one_line_each else [])
        content = to_jsonable_python(table)
    if out is not None:
        write_json(content, out)


def _general(
    config: PipelineConfig, store: ArtifactStore, students: dict[str, Path], prompts: int
) -> Table:
    from pipeline.commands.opening import Opened
    from pipeline.planning import Selection, make_plan
    from stages.judging.table import table_of
    from stages.texts.held_out import judged_samples
    from stages.texts.judgeable import require_judged

    plan = make_plan(config, store, Selection(until="prompts"))
    planned = Opened(config, store, plan).made("prompts")
    wanted = config.eval.model_copy(update={"prompts": prompts})
    samples = judged_samples(config.model_copy(update={"eval": wanted}), planned)
    names = [score.name for score in config.eval.scores]
    require_judged("eval.scores", names, [sample["prompt"] for sample in samples])
    return table_of(config, students, samples, print_to_stderr)


def _print_table(table: Table, titles: Sequence[str]) -> None:
    """Print a line for each system; for each student in `titles` one line without intervals, in
    which its numbers of steps stand side by side.
    """
    from pipeline.commands.tables import print_table
    from stages.report.measures import measure_words

    names = [*table.cards, *table.results[0].distances, "diversity"]
    heads = [table.cards[n].title if n in table.cards else measure_words(n)[0] for n in names]
    joined = {title: [r for r in table.results if _is_of(r, title)] for title in titles}
    alone = [r for r in table.results if not any(r in own for own in joined.values())]
    lines = [(result.title, result.scores | result.intervals) for result in alone]
    if table.floor:
        lines.insert(1, ("floor: teacher, other seeds", table.floor))
    rows = [[title, *(_with_interval(found.get(n)) for n in names)] for title, found in lines]
    for title, own in joined.items():
        steps = " / ".join(str(result.steps) for result in own)
        values = [" / ".join(_plain((r.scores | r.intervals)[name]) for r in own) for name in names]
        rows.append([f"{title}, {steps} steps", *values])
    print_table(["pictures", *heads], rows)
    for name, why in table.too_few.items():
        typer.echo(f"no {measure_words(name)[0]}: {why}")


def _is_of(result: SystemResult, title: str) -> bool:
    return result.kind == "student" and result.title.rpartition(", ")[0] == title


def _with_interval(found: Interval | None) -> str:
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]" if found else ""


def _plain(found: Interval) -> str:
    return f"{found.mean:.3g}"


def _print_shapes(judged: list[Judged]) -> None:
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


def _print_shapes_lines(judged: list[Judged], titles: list[str]) -> None:
    """Print the teacher at its own step count, then a line for each student."""
    from pipeline.commands.tables import print_table
    from stages.judging.shapes_table import student_lines

    _, teacher, *_ = judged
    first = [f"{100 * teacher.attributes:.1f}", "", f"{teacher.diversity:.2f}"]
    rows = [[teacher.pictures, str(teacher.steps), *first]]
    for line in student_lines(judged, titles):
        columns = ((line.attributes, 1), (line.frechet, 3), (line.diversity, 2))
        cells = [
            " / ".join(f"{value:.{digits}f}" for value in by_steps.values())
            for by_steps, digits in columns
        ]
        rows.append([line.student, " / ".join(map(str, line.attributes)), *cells])
    print_table(["pictures", "steps", "all attributes %", "Fréchet distance", "diversity"], rows)
