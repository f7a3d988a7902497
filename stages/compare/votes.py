"""The votes: one SQLite file in which each answer and each undo is an event that never changes.

An answer is on disk (write-ahead log, synchronous=FULL) before it is acknowledged, and counts once
no matter how often it is sent: event number `turn` of a rater's question can be stored only once.
Even turns are answers; odd turns undo the answer before them.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.errors import ArtifactError, ConfigError, LaddError
from stages.compare.study import Matchup, Question

TIE = "tie"
_VERSION = 1
_APPLICATION = 0x4C414444  # "LADD": marks the file as ours
_SCHEMA = """
CREATE TABLE IF NOT EXISTS secret (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    value BLOB NOT NULL                     -- sides and orders are derived from it
);
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,                       -- UTC, ISO 8601
    rater TEXT NOT NULL,
    evaluation TEXT NOT NULL,               -- artifact key
    sample TEXT NOT NULL,
    one TEXT NOT NULL,                      -- system
    other TEXT NOT NULL,                    -- system
    question TEXT NOT NULL,                 -- quality or alignment
    turn INTEGER NOT NULL CHECK (turn >= 0),
    winner TEXT,                            -- a system or "tie"; NULL is an undo
    on_left TEXT NOT NULL,                  -- system that the rater saw on the left
    CHECK ((winner IS NULL) = (turn % 2 = 1)),
    UNIQUE (rater, evaluation, sample, one, other, question, turn)
);
"""
_COLUMNS = "rater, evaluation, sample, one, other, question"


class OutOfTurn(LaddError):
    """An event that does not follow the last one of its question."""


@dataclass(frozen=True)
class Vote:
    """An answer that was not undone."""

    rater: str
    question: Question
    turn: int
    winner: str
    """A system, or "tie"."""
    on_left: str
    at: str

    @property
    def loser(self) -> str | None:
        """None for a tie."""
        if self.winner == TIE:
            return None
        _, one, other = self.question.matchup
        return other if self.winner == one else one


class Votes:
    """An open vote file; safe to share between threads, and between processes on one machine."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._lock = threading.Lock()
        self.secret: bytes = connection.execute("SELECT value FROM secret").fetchone()[0]

    def cast(self, rater: str, question: Question, turn: int, winner: str, on_left: str) -> bool:
        """Store an answer. Returns False and changes nothing if this turn is already stored. Raises
        OutOfTurn if it is not the question's next turn.
        """
        assert winner in (question.matchup.one, question.matchup.other, TIE)
        return self._append(rater, question, turn, winner, on_left)

    def take_back(self, rater: str, question: Question, turn: int, on_left: str) -> bool:
        """Undo the answer of the previous turn; otherwise like `cast`."""
        return self._append(rater, question, turn, None, on_left)

    def _append(
        self, rater: str, question: Question, turn: int, winner: str | None, on_left: str
    ) -> bool:
        whose = (rater, question.evaluation, *question.matchup, question.kind)
        with self._transaction() as connection:
            (turns,) = connection.execute(
                f"SELECT count(*) FROM event WHERE ({_COLUMNS}) = (?, ?, ?, ?, ?, ?)", whose
            ).fetchone()
            if turn > turns or (turn % 2 == 1) != (winner is None):
                raise OutOfTurn("this is not the next turn of this question; load the page again")
            if turn < turns:
                return False
            connection.execute(
                f"INSERT INTO event ({_COLUMNS}, turn, winner, on_left, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*whose, turn, winner, on_left, datetime.now(UTC).isoformat()),
            )
        return True

    def standing(self, rater: str | None = None) -> list[Vote]:
        """Answers that were not undone, oldest first: all raters' or one rater's."""
        rows = self._read(
            f"SELECT {_COLUMNS}, turn, winner, on_left, at, max(turn) FROM event "
            f"WHERE ? IS NULL OR rater = ? GROUP BY {_COLUMNS} HAVING winner IS NOT NULL "
            "ORDER BY id",  # max() makes SQLite use the last turn's row for the other columns
            (rater, rater),
        )
        return [
            Vote(
                rater=row[0],
                question=Question(row[1], Matchup(*row[2:5]), row[5]),
                turn=row[6],
                winner=row[7],
                on_left=row[8],
                at=row[9],
            )
            for row in rows
        ]

    def turns(self, rater: str) -> dict[Question, int]:
        """Number of events of each of a rater's questions."""
        rows = self._read(
            f"SELECT {_COLUMNS}, count(*) FROM event WHERE rater = ? GROUP BY {_COLUMNS}", (rater,)
        )
        return {Question(row[1], Matchup(*row[2:5]), row[5]): row[6] for row in rows}

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock, _explained(self._path):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file exclusively, also between processes; changes are on disk at the end."""
        with self._lock, _explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


@contextlib.contextmanager
def open_votes(path: Path, *, create: bool) -> Iterator[Votes]:
    """Open the vote file, or create it with a new secret if `create`.

    Raises ArtifactError if it is missing and not `create`, is not a vote file, or is newer than
    this program; ConfigError if it cannot be written.
    """
    if not create and not path.exists():
        raise ArtifactError(
            f"there is no vote file {path}; `ladd-pipeline compare --votes {path}` collects votes"
        )
    try:
        connection = sqlite3.connect(
            path, timeout=30, isolation_level=None, check_same_thread=False
        )
    except sqlite3.OperationalError as error:
        raise ConfigError(
            f"--votes {path} cannot be opened ({error}); name a file in a folder that you may "
            "write to"
        ) from error
    with contextlib.closing(connection):
        with _explained(path):
            _prepare(connection, path)
            votes = Votes(connection, path)
        yield votes


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one sentence that names the file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ConfigError(
            f"--votes {path} cannot be read or written ({error}); check the disk and the file's "
            "permissions, and that no other program holds it"
        ) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} is not a vote file, or is damaged ({error}); restore it from a backup, or "
            "name another with --votes"
        ) from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and application != _APPLICATION:
        raise ArtifactError(f"{path} is not a vote file; name another with --votes")
    if version > _VERSION:
        raise ArtifactError(
            f"{path} has version {version}, this ladd-pipeline reads up to {_VERSION}: upgrade "
            "ladd-pipeline"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(
        f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION}; "
        f"PRAGMA user_version = {_VERSION}; COMMIT;"
    )
    connection.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (secrets.token_bytes(32),))
