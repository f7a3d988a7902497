"""What follows from votes: win rates, strengths, habits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from stages.compare.results import evaluate, remarks, tables
from stages.compare.study import (
    Matchup,
    Question,
    Study,
    StudyPrompt,
)
from stages.compare.votes import Vote
from tests.support.study import big_study

pytestmark = pytest.mark.slow


def vote(sample, winner, pair=("student_4", "teacher"), kind="quality", rater="ana", left=None):
    question = Question("e", Matchup(sample, *sorted(pair)), kind)
    return Vote(rater, question, 0, winner, left or sorted(pair)[0], "")


def pair_study(prompts=100) -> Study:
    samples = {f"{i:04d}": StudyPrompt(f"p{i}", 64, 64) for i in range(prompts)}
    return Study("e", {"teacher": "T", "student_4": "S"}, ("quality",), samples)


def test_win_rate_and_its_interval_against_the_formulas():
    winners = ["teacher"] * 50 + ["tie"] * 20 + ["student_4"] * 30
    (pair,) = evaluate(pair_study(), [vote(f"{i:04d}", w) for i, w in enumerate(winners)]).pairs
    assert (pair.system, pair.against) == ("teacher", "student_4")
    assert (pair.wins, pair.ties, pair.losses, pair.prompts) == (50, 20, 30, 100)
    assert pair.rate.mean == pytest.approx(0.6)
    deviation = np.std([1.0] * 50 + [0.5] * 20 + [0.0] * 30) / math.sqrt(100)
    assert pair.rate.low == pytest.approx(0.6 - 1.96 * deviation, abs=0.015)
    assert pair.rate.high == pytest.approx(0.6 + 1.96 * deviation, abs=0.015)
    p, n, z = 50 / 80, 80, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert pair.decided.mean == p
    assert pair.decided.low == pytest.approx(middle - half, abs=1e-6)
    assert pair.decided.high == pytest.approx(middle + half, abs=1e-6)


def test_more_raters_on_the_same_prompts_do_not_narrow_the_interval():
    winners = ["teacher"] * 60 + ["student_4"] * 40
    alone, three = (
        evaluate(
            pair_study(),
            [vote(f"{i:04d}", w, rater=r) for r in raters for i, w in enumerate(winners)],
        )
        for raters in (["ana"], ["ana", "ben", "cy"])
    )
    assert three.votes == 300 and three.pairs[0].rate == alone.pairs[0].rate
    assert three.pairs[0].decided == alone.pairs[0].decided
    assert three.agreement == 1.0 and alone.agreement is None


def test_bradley_terry_of_two_is_the_log_odds_and_finite_for_a_clean_sweep():
    votes = [vote(f"{i:04d}", "teacher" if i < 75 else "student_4") for i in range(100)]
    teacher, student = evaluate(pair_study(), votes).strengths
    assert teacher.score.mean - student.score.mean == pytest.approx(math.log(75.5 / 25.5), abs=1e-6)
    assert teacher.score.mean + student.score.mean == pytest.approx(0, abs=1e-9)
    assert teacher.score.low < teacher.score.mean < teacher.score.high
    sweep = evaluate(pair_study(), [vote(f"{i:04d}", "teacher") for i in range(100)])
    assert sweep.strengths[0].score.mean * 2 == pytest.approx(math.log(100.5 / 0.5), abs=1e-6)
    assert sweep.pairs[0].rate.low == 1 and sweep.pairs[0].decided.low < 0.97


def test_bradley_terry_of_three_maximises_the_likelihood():
    random = np.random.default_rng(0)
    names = ["teacher", "student_4", "tuned_4"]
    votes, wins = [], np.full((3, 3), 0.5)  # half a win each way keeps every score finite
    for sample in big_study(60).samples:
        for i, k in itertools.combinations(range(3), 2):
            outcome = random.choice(["tie", names[i], names[k]], p=[0.2, 0.5, 0.3])
            votes.append(vote(sample, outcome, (names[i], names[k])))
            wins[i, k] += {"tie": 0.5, names[i]: 1}.get(outcome, 0)
            wins[k, i] += {"tie": 0.5, names[k]: 1}.get(outcome, 0)

    def surprise(scores):
        gaps = scores[:, None] - scores[None, :]
        return float((np.log1p(np.exp(-gaps)) * wins * (1 - np.eye(3))).sum())

    best = minimize(surprise, np.zeros(3), tol=1e-10).x
    found = [s.score for s in evaluate(big_study(60), votes).strengths]
    assert [s.mean for s in found] == pytest.approx(best - best.mean(), abs=1e-4)
    assert all(s.low < s.mean < s.high for s in found)


def test_votes_on_other_things_are_left_out_and_said():
    elsewhere = [
        vote("9999", "teacher"),
        vote("0000", "teacher", kind="alignment"),
        vote("0001", "tuned_4", ("teacher", "tuned_4")),
    ]
    results = evaluate(pair_study(), [vote("0000", "teacher"), *elsewhere])
    assert (results.votes, results.votes_elsewhere) == (1, 3)
    assert "not counted: 3 votes in this file" in " ".join(remarks(results))


def test_a_habit_for_one_side_and_disagreement_show():
    votes = [vote(f"{i:04d}", "student_4", left="student_4") for i in range(30)]
    votes += [vote(f"{i:04d}", "teacher", left="student_4", rater="ben") for i in range(10)]
    results = evaluate(pair_study(), votes)
    assert results.left.mean == 0.75 and results.left.low > 0.5
    assert results.agreement == 0.0


def test_results_of_few_votes_and_of_none_are_printable():
    for votes in ([], [vote("0000", "tie")], [vote("0000", "teacher")]):
        results = evaluate(pair_study(), votes)
        assert all(len(row) == len(columns) for _, columns, rows in tables(results) for row in rows)
        assert type(results).model_validate_json(results.model_dump_json()) == results
        assert remarks(results)
