"""What is kept of the answers: each once, and for good."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.errors import ArtifactError, ConfigError
from stages.compare.study import (
    Matchup,
    Question,
)
from stages.compare.votes import OutOfTurn, open_votes
from tests.support.command import ROOT

QUESTION = Question("e", Matchup("s", "student_4", "teacher"), "quality")


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
        pytest.raises(ArtifactError, match=r"no vote file .*none\.sqlite"),
        _reading(tmp_path / "none.sqlite"),
    ):
        pass
    (tmp_path / "text").write_text("not a database, and long enough to be read as one" * 40)
    with (
        pytest.raises(ArtifactError, match="text is not a vote file"),
        _reading(tmp_path / "text"),
    ):
        pass
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with (
        pytest.raises(ArtifactError, match="other is not a vote file"),
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


def test_a_vote_file_that_is_damaged_within_is_named(tmp_path):
    """Bug: let SQLite's error out when the votes are read, after the file was opened."""
    path = tmp_path / "votes.sqlite"
    with open_votes(path, create=True) as votes:
        votes.cast("ana", QUESTION, 0, "tie", "teacher")
        (page,) = votes._connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'event'"
        ).fetchone()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = bytes([7]) * 4096
    path.write_bytes(content)
    with (
        pytest.raises(ArtifactError, match=r"votes\.sqlite is not a vote file, or is damaged"),
        _reading(path) as votes,
    ):
        votes.standing()


def test_a_vote_file_whose_schema_is_no_text_is_named(tmp_path):
    """Bug: let out the UnicodeDecodeError that Python makes of SQLite's own message."""
    path = tmp_path / "votes.sqlite"
    with open_votes(path, create=True) as votes:
        votes._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"CREATE \x80ABLE"))
    with (
        pytest.raises(ArtifactError, match=r"votes\.sqlite is not a vote file, or is damaged"),
        _reading(path),
    ):
        pass


@pytest.mark.parametrize("content", [b"", bytes(4096), b"SQLite format 3\0" + bytes(10)])
def test_an_empty_or_cut_vote_file_is_made_or_named(tmp_path, content):
    path = tmp_path / "votes.sqlite"
    path.write_bytes(content)
    try:
        with open_votes(path, create=True) as votes:
            assert votes.standing() == [] and len(votes.secret) == 32
    except ArtifactError as error:
        assert "votes.sqlite is not a vote file" in str(error)
        assert content


def test_a_vote_file_that_another_program_holds_is_named(tmp_path, monkeypatch):
    path = tmp_path / "votes.sqlite"
    with open_votes(path, create=True) as votes:
        votes._connection.execute("PRAGMA busy_timeout = 10")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match="no other program holds it"):
            votes.cast("ann", QUESTION, 0, "tie", "teacher")
        other.close()
        assert votes.cast("ann", QUESTION, 0, "tie", "teacher")


def _reading(path: Path):
    return open_votes(path, create=False)
