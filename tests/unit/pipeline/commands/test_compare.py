"""`compare` prints results and exports pairs."""

from __future__ import annotations

import json

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.commands import stopping
from pipeline.commands.compare import compare
from schemas.errors import ArtifactError
from stages.compare.study import plan_study
from stages.compare.votes import open_votes
from tests.support.evaluation import make_evaluation
from tests.support.study import BOTH, PROMPTS


def test_the_command_prints_results_and_exports(tmp_path, capsys, monkeypatch):
    evaluation = make_evaluation(ArtifactStore(str(tmp_path / "store")), PROMPTS)
    study = plan_study(evaluation, (), 128, BOTH)
    path = tmp_path / "votes.sqlite"
    matchup = next(m for m in study.matchups if m[1:] == ("student_4", "teacher"))
    with open_votes(path, create=True) as votes:
        votes.cast("Ana", study.question(matchup, "quality"), 0, "student_4", "teacher")
    monkeypatch.setattr(stopping.signal, "signal", lambda *_: None)
    where = {"preset": "shapes", "set_": [f"store={evaluation.store.url}"], "prompts": 20}
    compare(**where, votes=path, results=True)
    said = capsys.readouterr()
    assert "vs student_4" in said.out and "1 vote on 11 prompts\nAna: 1 vote\n" in said.out
    assert "the evaluation has only 11 of the 20 prompts" in said.err
    compare(**where, votes=path, results=True, as_json=True)
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["system"], pair["losses"], pair["rate"]["mean"]) == ("teacher", 1, 0.0)
    target = tmp_path / "pairs.jsonl"
    compare(**where, votes=path, export=target)
    assert json.loads(target.read_text())["winner_system"] == "student_4"
    assert "must be evaluated on others" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="there is no vote file"):
        compare(**where, votes=tmp_path / "no", results=True)
