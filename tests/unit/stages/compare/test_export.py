"""Votes become preference pairs by majority."""

from __future__ import annotations

import json

import pytest

from schemas.errors import ArtifactError
from stages.compare.export import export_pairs
from stages.compare.study import (
    Matchup,
    Question,
)
from stages.compare.votes import Vote


def test_export_writes_majority_pairs_with_their_pictures(study, pictures, tmp_path):
    hostile = next(s for s, facts in study.samples.items() if "<script>" in facts.prompt)
    other = next(s for s in study.samples if s != hostile)
    key = study.evaluation

    def about(sample, winner, rater, kind="quality"):
        question = Question(key, Matchup(sample, "student_4", "teacher"), kind)
        return Vote(rater, question, 0, winner, "teacher", "")

    votes = [
        about(hostile, "teacher", "ana"),
        about(hostile, "teacher", "ben"),
        about(hostile, "student_4", "cy"),
        about(hostile, "tie", "cy", "alignment"),
        about(other, "teacher", "ana"),
        about(other, "student_4", "ben"),
    ]
    path = tmp_path / "out" / "pairs.jsonl"
    assert export_pairs(study, pictures, votes, path) == {"pairs": 1, "even": 1}
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert row["prompt"] == study.samples[hostile].prompt
    assert (row["votes_for"], row["votes_against"], row["ties"], row["raters"]) == (2, 1, 1, 3)
    for field, system in (("winner", "teacher"), ("loser", "student_4")):
        content = (path.parent / row[field]).read_bytes()
        assert content == pictures.original(system, hostile)
    with pytest.raises(ArtifactError, match="no pair of pictures has a majority"):
        export_pairs(study, pictures, votes[4:], path)
    with pytest.raises(ArtifactError, match="no vote belongs to this study"):
        export_pairs(study, pictures, [], path)
