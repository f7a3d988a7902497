"""`ladd-pipeline compare`: collects votes on a blind A/B page, prints their results, or writes them
as preference pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import AsJson, ConfigFile, Preset, Settings, new_group
from pipeline.commands.students import print_to_stderr

if TYPE_CHECKING:
    from pipeline.base.store import Artifact
    from stages.compare.study import Study
    from stages.compare.votes import Votes

app = new_group()


@app.command()
def compare(
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="A system of the evaluation, such as student_4; may be repeated. By default the "
            "teacher, the student at its highest step count and the tuned student, in all pairs."
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to judge; the LADD paper uses 128.")] = 128,
    questions: Annotated[
        str, typer.Option(help="quality, alignment, or both.")
    ] = "quality,alignment",
    votes: Annotated[Path, typer.Option(help="The file that stores the votes.")] = Path(
        "votes.sqlite"
    ),
    results: Annotated[bool, typer.Option("--results", help="Print the votes' results.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Write the votes as preference pairs (jsonl), for pairs.url."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8765,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Let people judge the evaluation's pictures on a blind A/B page."""
    from pipeline.commands.opening import open_plan
    from pipeline.commands.stopping import unwind_on_sigterm
    from stages.compare.study import plan_study
    from stages.compare.votes import open_votes

    evaluation = open_plan(config, preset, set_).made("eval")
    unwind_on_sigterm()
    kinds = [name.strip() for name in questions.split(",") if name.strip()]
    study = plan_study(evaluation, system or (), prompts, kinds)
    if len(study.samples) < prompts:
        print_to_stderr(
            f"the evaluation has only {len(study.samples)} of the {prompts} prompts; all are used"
        )
    is_serving = not results and export is None
    with open_votes(votes, create=is_serving) as opened:
        if results:
            _print_results(study, opened, as_json)
        if export is not None:
            _export(study, evaluation, opened, export)
        if is_serving:
            _serve(study, evaluation, opened, votes, host, port)


def _serve(
    study: Study, evaluation: Artifact, opened: Votes, votes: Path, host: str, port: int
) -> None:
    """Serve the page until a signal arrives."""
    from stages.compare.server import serve
    from stages.compare.study import open_pictures

    names = ", ".join(study.titles)
    print_to_stderr(f"{len(study.samples)} prompts, sampled by {names}; votes are saved in {votes}")
    with open_pictures(study, evaluation) as pictures:
        serve(study, pictures, opened, host, port, print_to_stderr)


def _print_results(study: Study, votes: Votes, as_json: bool) -> None:
    from pipeline.commands.tables import print_table
    from stages.compare.results import evaluate, remarks, tables

    found = evaluate(study, votes.standing())
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    for title, columns, rows in tables(found):
        print_table(columns, rows, title)
    print("\n".join(remarks(found)))


def _export(study: Study, evaluation: Artifact, votes: Votes, path: Path) -> None:
    from stages.compare.export import export_pairs
    from stages.compare.study import open_pictures

    with open_pictures(study, evaluation) as pictures:
        counts = export_pairs(study, pictures, votes.standing(), path)
    print_to_stderr(
        f"wrote {path}: {counts['pairs']} pairs; left out {counts['even']} without a majority"
    )
    print_to_stderr(
        "these prompts were held out: a model tuned on them (`--set pairs.url=... --set "
        "pairs.drop_held_out=false`) must be evaluated on others (`--set eval.url=...`)"
    )
