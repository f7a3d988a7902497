"""Export of votes as preference pairs, as `pairs.url` reads them: a jsonl with prompt, winner and
loser, and the pictures in a folder next to it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from schemas.errors import ArtifactError, ConfigError
from stages.compare.study import Pictures, Study
from stages.compare.votes import Vote


def export_pairs(study: Study, pictures: Pictures, votes: list[Vote], path: Path) -> dict[str, int]:
    """Write one pair per matchup, won by the majority of all raters' answers to all questions.

    Pictures go to `<path without extension>-pictures/`, named relative to the file. The file is
    written atomically. Returns counts: pairs, even (dropped: no majority). Raises ArtifactError if
    there is nothing to write, ConfigError if the file cannot be written.
    """
    answers: dict[tuple[str, str, str], list[Vote]] = defaultdict(list)
    questions = study.questions
    for vote in votes:
        if vote.question in questions:
            answers[vote.question.matchup].append(vote)
    rows: list[dict[str, Any]] = []
    files: dict[str, tuple[str, str]] = {}
    for (sample, one, other), given in sorted(answers.items()):
        for_one = sum(vote.winner == one for vote in given)
        for_other = sum(vote.winner == other for vote in given)
        if for_one == for_other:
            continue
        winner, loser = (one, other) if for_one > for_other else (other, one)
        names = {system: f"{path.stem}-pictures/{sample}.{system}.png" for system in (one, other)}
        files |= {name: (system, sample) for system, name in names.items()}
        rows.append(
            {
                "prompt": study.samples[sample].prompt,
                "winner": names[winner],
                "loser": names[loser],
                "winner_system": winner,
                "loser_system": loser,
                "votes_for": max(for_one, for_other),
                "votes_against": min(for_one, for_other),
                "ties": len(given) - for_one - for_other,
                "raters": len({vote.rater for vote in given}),
                "evaluation": study.evaluation,
                "sample": sample,
            }
        )
    if not rows:
        raise ArtifactError(
            "there are no pairs to write: "
            + ("no pair of pictures has a majority" if answers else "no vote belongs to this study")
        )
    try:
        _write(path, rows, {name: pictures.original(*which) for name, which in files.items()})
    except OSError as error:
        raise ConfigError(f"--export {path} cannot be written: {error.strerror}") from error
    return {"pairs": len(rows), "even": len(answers) - len(rows)}


def _write(path: Path, rows: list[dict[str, Any]], pictures: dict[str, bytes]) -> None:
    (path.parent / f"{path.stem}-pictures").mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        (path.parent / name).write_bytes(content)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    os.replace(partial, path)
