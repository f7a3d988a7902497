"""Blind comparison: what raters see, what is kept of their answers, and what follows from them."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scipy.optimize import minimize

from pipeline.base.store import ArtifactStore
from pipeline.commands.compare import compare
from schemas.errors import ArtifactError, ConfigError
from stages.compare.export import export_pairs
from stages.compare.results import evaluate, remarks, tables
from stages.compare.server import create_app, serve
from stages.compare.study import (
    Ballot,
    Matchup,
    Question,
    Study,
    StudyPrompt,
    open_pictures,
    plan_study,
)
from stages.compare.votes import OutOfTurn, Vote, open_votes
from tests.evaluation import COLOURS, make_evaluation, system_of

ROOT = Path(__file__).parents[2]
PROMPTS = [f"prompt number {i}" for i in range(10)] + ["<script>document.title = 'gone'</script>"]
BOTH = ("quality", "alignment")


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


QUESTION = Question("e", Matchup("s", "student_4", "teacher"), "quality")


# The study


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


# What one rater sees


def big_study(prompts=128) -> Study:
    samples = {f"{i:04d}": StudyPrompt(f"p{i}", 64, 64) for i in range(prompts)}
    return Study("e", {"teacher": "T", "student_4": "S", "tuned_4": "U"}, BOTH, samples)


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


# The votes


def test_a_vote_sent_again_counts_once_and_the_first_answer_stands(votes):
    assert votes.cast("ana", QUESTION, 0, "teacher", "teacher")
    assert not votes.cast("ana", QUESTION, 0, "student_4", "teacher")
    assert [v.winner for v in votes.standing()] == ["teacher"]


def test_undo_is_an_event_and_the_answer_after_it_counts(votes):
    votes.cast("ana", QUESTION, 0, "teacher", "teacher")
    votes.take_back("ana", QUESTION, 1, "teacher")
    assert votes.standing() == []
    assert not votes.cast("ana", QUESTION, 0, "teacher", "teacher")  # a late retry
    assert votes.standing() == []
    votes.cast("ana", QUESTION, 2, "tie", "teacher")
    assert [(v.winner, v.loser, v.turn) for v in votes.standing()] == [("tie", None, 2)]
    assert votes.turns("ana") == {QUESTION: 3}


def test_raters_do_not_share_questions_and_the_oldest_answer_comes_first(votes):
    other = QUESTION._replace(kind="alignment")
    votes.cast("ben", other, 0, "teacher", "teacher")
    votes.cast("ana", QUESTION, 0, "student_4", "teacher")
    votes.cast("ben", QUESTION, 0, "tie", "student_4")
    votes.take_back("ben", other, 1, "teacher")
    votes.cast("ben", other, 2, "teacher", "teacher")
    assert [(v.rater, v.question.kind) for v in votes.standing()] == [
        ("ana", "quality"),
        ("ben", "quality"),
        ("ben", "alignment"),
    ]
    assert [v.rater for v in votes.standing("ana")] == ["ana"]


@pytest.mark.parametrize(("turn", "winner"), [(1, "teacher"), (2, "teacher")])
def test_an_event_out_of_turn_is_refused(votes, turn, winner):
    with pytest.raises(OutOfTurn):
        votes.cast("ana", QUESTION, turn, winner, "teacher")
    with pytest.raises(OutOfTurn):
        votes.take_back("ana", QUESTION, 0, "teacher")
    assert votes.standing() == []


def test_many_threads_and_two_connections_store_each_turn_once(votes, tmp_path):
    stored = []

    def cast(through, winner):
        stored.append(through.cast("ana", QUESTION, 0, winner, "teacher"))

    with open_votes(tmp_path / "votes.sqlite", create=True) as second:
        assert second.secret == votes.secret
        threads = [
            threading.Thread(target=cast, args=((votes, second)[i % 2], ("teacher", "tie")[i % 2]))
            for i in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(stored) == [False] * 11 + [True] and len(votes.standing()) == 1


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from stages.compare.study import Matchup, Question\n"
        "from stages.compare.votes import open_votes\n"
        "with open_votes(Path(sys.argv[1]), create=True) as votes:\n"
        "    for i in range(10**6):\n"
        "        question = Question('e', Matchup(str(i), 'a', 'b'), 'quality')\n"
        "        assert votes.cast('ana', question, 0, 'a', 'a')\n"
        "        print(i, flush=True)\n"
    )
    path = tmp_path / "votes.sqlite"
    for _ in range(3):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        acknowledged = [writer.stdout.readline().strip() for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.stdout.read().split()
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        with open_votes(path, create=False) as votes:
            found = [v.question.matchup.sample for v in votes.standing()]
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) - len(acknowledged) in (0, 1)  # one may be stored and not yet said
        for rest in path.parent.glob("votes.sqlite*"):
            rest.unlink()


def test_each_commit_waits_for_the_disk(votes, tmp_path):
    (mode,) = votes._connection.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = votes._connection.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)


def test_files_that_hold_no_votes_are_named(tmp_path):
    with (
        pytest.raises(ArtifactError, match=r"no file of votes .*none\.sqlite"),
        _reading(tmp_path / "none.sqlite"),
    ):
        pass
    (tmp_path / "text").write_text("not a database, and long enough to be read as one" * 40)
    with (
        pytest.raises(ArtifactError, match="text is not a file of votes"),
        _reading(tmp_path / "text"),
    ):
        pass
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with (
        pytest.raises(ArtifactError, match="other is not a file of votes"),
        _reading(tmp_path / "other"),
    ):
        pass
    with open_votes(tmp_path / "newer", create=True) as votes:
        votes._connection.execute("PRAGMA user_version = 9")
    with pytest.raises(ArtifactError, match="upgrade ladd-pipeline"), _reading(tmp_path / "newer"):
        pass
    with (
        pytest.raises(ConfigError, match="cannot be opened"),
        open_votes(tmp_path / "no" / "folder", create=True),
    ):
        pass


def _reading(path: Path):
    return open_votes(path, create=False)


# What follows from the votes


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


# The export


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
    with pytest.raises(ArtifactError, match="every pair of pictures is even"):
        export_pairs(study, pictures, votes[4:], path)
    with pytest.raises(ArtifactError, match="no vote is about this study"):
        export_pairs(study, pictures, [], path)


def test_the_command_prints_results_and_exports(evaluation, study, tmp_path, capsys):
    path = tmp_path / "votes.sqlite"
    matchup = next(m for m in study.matchups if m[1:] == ("student_4", "teacher"))
    with open_votes(path, create=True) as votes:
        votes.cast("Ana", study.question(matchup, "quality"), 0, "student_4", "teacher")
    options = {"systems": (), "prompts": 20, "questions": BOTH, "host": "127.0.0.1", "port": 0}
    compare(evaluation, path, **options, results=True, as_json=False, export=None)
    said = capsys.readouterr()
    assert "vs student_4" in said.out and "1 vote on 11 prompts\nAna: 1 vote\n" in said.out
    assert "the evaluation has 11 of the 20 prompts" in said.err
    compare(evaluation, path, **options, results=True, as_json=True, export=None)
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["system"], pair["losses"], pair["rate"]["mean"]) == ("teacher", 1, 0.0)
    target = tmp_path / "pairs.jsonl"
    compare(evaluation, path, **options, results=False, as_json=False, export=target)
    assert json.loads(target.read_text())["winner_system"] == "student_4"
    assert "must be judged on others" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="there is no file of votes"):
        compare(evaluation, tmp_path / "no", **options, results=True, as_json=False, export=None)


# The server


@pytest.fixture
def client(study, pictures, votes):
    app = create_app(study, pictures, votes)
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        yield client


def sign_in(client, name="Ana"):
    assert client.post("/rater", json={"name": name}).status_code == 200
    return client.get("/state").json()


def answer(client, state, choice="left"):
    current = state["current"]
    body = {k: current[k] for k in ("token", "question", "turn")} | {"answer": choice}
    return client.post("/votes", json=body)


def seen(client, address):
    response = client.get(address)
    image = Image.open(io.BytesIO(response.content))
    return system_of(image.getpixel((0, 0))), response


def test_a_vote_names_the_system_whose_picture_was_seen(client, votes):
    state = sign_in(client)
    expected, on_left = [], []
    for choice in ("left", "right", "tie") * 6:
        systems = [seen(client, address)[0] for address in state["current"]["pictures"]]
        expected.append({"left": systems[0], "right": systems[1], "tie": "tie"}[choice])
        on_left.append(systems[0])
        state = answer(client, state, choice).json()
    assert [v.winner for v in votes.standing("Ana")] == expected
    assert state["done"] == 18 and len({v.question for v in votes.standing()}) == 18
    assert [v.on_left for v in votes.standing("Ana")] == on_left


def test_both_questions_are_asked_of_a_pair_before_the_next(client):
    state = sign_in(client)
    first = state["current"]
    state = answer(client, state).json()
    assert (first["question"], state["current"]["question"]) == BOTH
    assert state["current"]["token"] == first["token"]
    assert state["next"] != first["pictures"]
    state = answer(client, state).json()
    assert state["current"]["token"] != first["token"]


def test_nothing_that_a_rater_receives_tells_system_or_sample(client, study):
    page = client.get("/").text
    state = sign_in(client)
    assert client.get("/").text == page  # the same for everybody, before and after
    received = [client.get("/state").text]
    for _ in range(8):
        headers = []
        for address in state["current"]["pictures"]:
            _, response = seen(client, address)
            headers.append({k: v for k, v in response.headers.items() if k != "date"})
        assert headers[0] == headers[1]
        received.append(str(headers[0]))
        response = answer(client, state)
        received.append(response.text + str(response.headers))
        state = response.json()
    for text in received:
        for secret in [*COLOURS, "student", "teacher", "tuned", study.evaluation, *study.samples]:
            assert secret not in text


def test_state_is_the_same_for_both_orders_of_the_sides(client, study):
    """The fields of a card hold nothing that varies with the side: tokens are random to readers."""
    state = sign_in(client)
    current = state["current"]
    left, right = current["pictures"]
    assert left.replace("left", "right") == right
    assert set(current) == {
        *("token", "question", "turn", "text", "place", "of"),
        *("prompt", "width", "height", "pictures"),
    }


def test_undo_asks_the_same_question_again_on_the_same_sides(client, votes):
    state = sign_in(client)
    asked = [state["current"]]
    for _ in range(3):
        state = answer(client, state).json()
        asked.append(state["current"])
    for back in (2, 1, 0):
        state = client.post("/undo", json=state["undo"]).json()
        again = dict(asked[back], turn=state["current"]["turn"])
        assert state["current"] == again and state["done"] == back
    assert state["undo"] is None and votes.standing() == []
    state = answer(client, state, "right").json()
    assert state["done"] == 1 and len(votes.standing()) == 1


def test_resent_requests_change_nothing(client, votes):
    state = sign_in(client)
    after = [answer(client, state).json() for _ in range(3)]
    assert after[0] == after[1] == after[2] and after[0]["done"] == 1
    undone = [client.post("/undo", json=after[0]["undo"]).json() for _ in range(3)]
    assert undone[0] == undone[1] == undone[2] and undone[0]["done"] == 0
    assert len(votes.standing()) == 0


def test_after_the_last_answer_there_is_nothing_left_but_undo(client, study):
    state = sign_in(client)
    assert state["total"] == 2 * 3 * len(PROMPTS)
    for _ in range(state["total"]):
        state = answer(client, state, "tie").json()
    assert state["current"] is None and state["next"] is None
    assert state["done"] == state["total"] and state["undo"]


def test_wrong_requests_are_refused(client):
    assert client.get("/state").status_code == 401
    assert client.get("/pictures/x/left.png").status_code == 401
    for name in ("", "  ", "x" * 41, "a\x00b"):
        assert client.post("/rater", json={"name": name}).status_code == 422
    state = sign_in(client)
    current = {k: state["current"][k] for k in ("token", "question", "turn")}
    for change, status in [
        ({"token": "x"}, 404),
        ({"question": "taste"}, 404),
        ({"turn": 1}, 409),
        ({"turn": 2}, 409),
        ({"turn": -1}, 422),
        ({"answer": "both"}, 422),
    ]:
        body = {**current, "answer": "left", **change}
        assert client.post("/votes", json=body).status_code == status, change
    assert client.post("/undo", json=current).status_code == 409
    assert client.get(state["current"]["pictures"][0].replace("left", "top")).status_code == 422
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    token = state["current"]["pictures"][0]
    sign_in(client, "Ben")
    assert client.get(token).status_code == 404
    assert client.get("/state").json()["done"] == 0


def test_a_rater_is_known_by_link_and_form_also_beyond_latin(client):
    response = client.get("/?rater=Zoë%20Ω", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert client.get("/state").json()["rater"] == "Zoë Ω"
    client.delete("/rater")
    assert client.get("/state").status_code == 401


def test_the_page_allows_nothing_inline_but_its_own_and_nothing_from_elsewhere(client):
    response = client.get("/")
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'" and "unsafe" not in str(policy)
    scripts = re.findall(r"<script[^>]*>", response.text)
    assert len(scripts) == policy["script-src"].count("'sha256-") > 0
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", response.text)
    assert " style=" not in response.text and " onclick=" not in response.text
    assert response.headers["x-frame-options"] == "DENY"


def test_a_taken_port_is_named(study, pictures, votes):
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="choose others with --host and --port"),
    ):
        serve(study, pictures, votes, "127.0.0.1", taken.getsockname()[1], print)


def test_the_module_is_light_until_it_is_used():
    code = "import sys, stages.compare; print({'fastapi', 'scipy', 'torch'} & {*sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"
