"""A study of an evaluation made by hand."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from stages.compare.study import (
    open_pictures,
    plan_study,
)
from stages.compare.votes import open_votes
from tests.support.evaluation import make_evaluation
from tests.support.study import BOTH, PROMPTS


@pytest.fixture
def evaluation(tmp_path):
    return make_evaluation(ArtifactStore(str(tmp_path / "store")), PROMPTS)


@pytest.fixture
def study(evaluation):
    return plan_study(evaluation, (), 128, BOTH)


@pytest.fixture
def pictures(study, evaluation):
    with open_pictures(study, evaluation) as pictures:
        yield pictures


@pytest.fixture
def votes(tmp_path):
    with open_votes(tmp_path / "votes.sqlite", create=True) as votes:
        yield votes
