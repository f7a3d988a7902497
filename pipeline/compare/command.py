"""`ladd-pipeline compare`: collects votes, prints what they say, or writes them as pairs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.compare.study import Study, open_pictures, plan_study
from pipeline.compare.votes import Votes, open_votes
from pipeline.store import Artifact


def compare(
    evaluation: Artifact,
    votes: Path,
    *,
    systems: Sequence[str],
    prompts: int,
    questions: Sequence[str],
    results: bool,
    as_json: bool,
    export: Path | None,
    host: str,
    port: int,
) -> None:
    """Serve the page until a signal, unless `results` or `export` are wanted."""
    study = plan_study(evaluation, systems, prompts, questions)
    if len(study.samples) < prompts:
        _say(f"the evaluation has {len(study.samples)} of the {prompts} prompts; all are taken")
    is_serving = not results and export is None
    with open_votes(votes, create=is_serving) as opened:
        if results:
            _print_results(study, opened, as_json)
        if export is not None:
            _export(study, evaluation, opened, export)
        if is_serving:
            from pipeline.compare.server import serve

            names = ", ".join(study.titles)
            _say(f"{len(study.samples)} prompts, drawn by {names}; votes are kept in {votes}")
            with open_pictures(study, evaluation) as pictures:
                serve(study, pictures, opened, host, port, _say)


def _print_results(study: Study, votes: Votes, as_json: bool) -> None:
    from pipeline.compare.results import evaluate, remarks, tables
    from pipeline.observe import Observer

    found = evaluate(study, votes.standing())
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    for table in tables(found):
        Observer().table(*table)
    print("\n".join(remarks(found)))


def _export(study: Study, evaluation: Artifact, votes: Votes, path: Path) -> None:
    from pipeline.compare.export import export_pairs

    with open_pictures(study, evaluation) as pictures:
        counts = export_pairs(study, pictures, votes.standing(), path)
    _say(f"wrote {path}: {counts['pairs']} pairs; {counts['even']} without a majority left out")
    _say(
        "these prompts were held out: what is tuned on them (`--set pairs.url=... --set "
        "pairs.drop_held_out=false`) must be judged on others (`--set eval.url=...`)"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
