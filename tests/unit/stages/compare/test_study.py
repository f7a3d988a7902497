"""Which questions a study asks, and in what order a rater meets them."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import ArtifactError, ConfigError
from stages.compare.study import (
    Ballot,
    Study,
    StudyPrompt,
    open_pictures,
    plan_study,
)
from tests.support.study import BOTH, PROMPTS, big_study


def test_by_default_teacher_best_student_and_tuned_student_meet_in_all_pairs(study):
    assert list(study.titles) == ["teacher", "student_4", "tuned_4"]
    assert len(study.matchups) == 3 * len(PROMPTS)
    assert len(study.questions) == 2 * 3 * len(PROMPTS)


def test_more_prompts_keep_those_of_fewer(evaluation):
    few, many = (plan_study(evaluation, (), n, BOTH) for n in (4, 8))
    assert len(few.samples) == 4 and list(many.samples)[:4] == list(few.samples)
    assert few.questions < many.questions


def test_order_of_systems_makes_no_other_questions(evaluation):
    one = plan_study(evaluation, ["teacher", "tuned_4"], 5, ["quality"])
    other = plan_study(evaluation, ["tuned_4", "teacher"], 5, ["quality"])
    assert one.questions == other.questions


@pytest.mark.parametrize(
    ("systems", "prompts", "kinds", "message"),
    [
        (["teacher", "studnt_4"], 5, BOTH, "did you mean student_4"),
        (["teacher"], 5, BOTH, "two or more different systems"),
        (["teacher", "teacher"], 5, BOTH, "two or more different systems"),
        ([], 0, BOTH, "0 prompts are too few"),
        ([], 5, ["qualty"], "did you mean quality"),
        ([], 5, [], "each question once"),
    ],
)
def test_a_study_that_cannot_be_is_refused(evaluation, systems, prompts, kinds, message):
    with pytest.raises(ConfigError, match=message):
        plan_study(evaluation, systems, prompts, kinds)


def test_a_damaged_or_missing_picture_is_named(evaluation, study, tmp_path):
    path = Path(evaluation.store.path(evaluation.name("shards/tuned_4/48x80-000000.tar")))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with (
        pytest.raises(ArtifactError, match=r"tuned_4/48x80-000000\.tar is damaged"),
        open_pictures(study, evaluation),
    ):
        pass
    more = Study(
        study.evaluation, study.titles, BOTH, {**study.samples, "x": StudyPrompt("p", 1, 1)}
    )
    path.write_bytes(content)
    with (
        pytest.raises(ArtifactError, match=r"no picture x\.png by teacher"),
        open_pictures(more, evaluation),
    ):
        pass


def test_a_ballot_is_the_same_after_every_restart_and_differs_between_raters():
    first, again, other = (Ballot(big_study(), b"secret", r) for r in ("ana", "ana", "ben"))
    assert first.cards == again.cards
    assert [c.matchup for c in first.cards] != [c.matchup for c in other.cards]
    assert not {c.token for c in first.cards} & {c.token for c in other.cards}


def test_sides_are_even_for_every_pair_and_unlike_between_raters():
    cards = {r: Ballot(big_study(), b"secret", r).cards for r in ("ana", "ben")}
    for pair in itertools.combinations(("student_4", "teacher", "tuned_4"), 2):
        left = [c.left == pair[0] for c in cards["ana"] if c.matchup[1:] == pair]
        assert len(left) == 128 and 42 < sum(left) < 86  # 4 deviations around 64
    sides = {r: {c.matchup: c.left for c in found} for r, found in cards.items()}
    same = sum(sides["ana"][m] == sides["ben"][m] for m in sides["ana"])
    assert 153 < same < 231  # 4 deviations around 192


def test_every_stretch_of_a_ballot_holds_each_pair_equally():
    cards = Ballot(big_study(), b"secret", "ana").cards
    for at in range(0, len(cards), 3):
        assert len({c.matchup[1:] for c in cards[at : at + 3]}) == 3


def test_without_the_secret_tokens_and_sides_are_others():
    one, other = (Ballot(big_study(), secret, "ana") for secret in (b"1", b"2"))
    assert not {c.token for c in one.cards} & {c.token for c in other.cards}
    sides = [{c.matchup: c.left for c in b.cards} for b in (one, other)]
    assert 153 < sum(sides[0][m] == sides[1][m] for m in sides[0]) < 231


def test_pictures_are_shown_as_pixels_alone_all_files_of_a_size_equally_long(study, pictures):
    lengths = {}
    for sample, facts in study.samples.items():
        for system in study.titles:
            original, shown = pictures.original(system, sample), pictures.shown(system, sample)
            a, b = (np.asarray(Image.open(io.BytesIO(c)).convert("RGB")) for c in (original, shown))
            assert (a == b).all()
            assert b"tEXt" in original and b"tEXt" not in shown
            lengths.setdefault((facts.width, facts.height), set()).add(len(shown))
    assert len(lengths) == 2 and all(len(found) == 1 for found in lengths.values())
