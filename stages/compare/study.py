"""What people compare: prompts times pairs of systems, from the pictures of an evaluation.

A study has no state and no secret. What one rater sees, and on which side, is their `Ballot`: it
follows from the study, the rater's name and the vote file's secret, so it survives every restart,
and nobody can work it out without the secret. The set-up follows the LADD paper (section 4): two
pictures of one prompt; which looks better, which shows the prompt better.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from pipeline.base.shards import read_tar
from pipeline.base.store import Artifact
from schemas.errors import ArtifactError, ConfigError
from schemas.report import Report
from schemas.suggest import did_you_mean

QUESTIONS = {
    "quality": "Which picture looks better?",
    "alignment": "Which shows the prompt better?",
}


class Matchup(NamedTuple):
    """Two systems' pictures of one sample. `one` sorts before `other`: the order means nothing."""

    sample: str
    """Key of the sample in the evaluation."""
    one: str
    other: str


class Question(NamedTuple):
    """What is asked about a matchup; with the rater it identifies a vote."""

    evaluation: str
    """Key of the artifact that the pictures come from."""
    matchup: Matchup
    kind: str
    """One of QUESTIONS."""


@dataclass(frozen=True)
class StudyPrompt:
    """A prompt of the evaluation and the size of its pictures."""

    prompt: str
    width: int
    height: int


@dataclass(frozen=True)
class Study:
    """What is compared."""

    evaluation: str
    """Key of the artifact."""
    titles: dict[str, str]
    """Title of each system by its name."""
    kinds: tuple[str, ...]
    """Kinds of the questions asked about each matchup."""
    samples: dict[str, StudyPrompt]

    @property
    def matchups(self) -> list[Matchup]:
        pairs = [sorted(pair) for pair in itertools.combinations(self.titles, 2)]
        return [Matchup(sample, *pair) for sample in self.samples for pair in pairs]

    def question(self, matchup: Matchup, kind: str) -> Question:
        return Question(self.evaluation, matchup, kind)

    @property
    def questions(self) -> set[Question]:
        return {self.question(matchup, kind) for matchup in self.matchups for kind in self.kinds}


@dataclass(frozen=True)
class Card:
    """A matchup as one rater sees it."""

    token: str
    """Name of the card in this rater's page and its picture addresses; it reveals nothing."""
    matchup: Matchup
    left: str
    right: str


class Ballot:
    """One rater's cards, in order. Any run of cards has each pair of systems about equally often,
    so a rater may stop at any time.
    """

    def __init__(self, study: Study, secret: bytes, rater: str) -> None:
        self.study = study
        self.rater = rater
        self._secret = secret
        places: dict[tuple[str, str], int] = {}
        placed = []
        for matchup in sorted(study.matchups, key=lambda m: self._draw("order", m)):
            place = places.get(matchup[1:], 0)
            places[matchup[1:]] = place + 1
            placed.append((place, self._draw("round", matchup), matchup))
        self.cards = [self._card(matchup) for _, _, matchup in sorted(placed)]
        self.by_token = {card.token: card for card in self.cards}

    def _card(self, matchup: Matchup) -> Card:
        sides = (matchup.one, matchup.other)
        left, right = sides if self._draw("side", matchup)[0] % 2 else sides[::-1]
        return Card(self._draw("token", matchup).hex()[:32], matchup, left, right)

    def _draw(self, purpose: str, matchup: Matchup) -> bytes:
        """Bytes that look random without the secret; the same at every call."""
        message = json.dumps([purpose, self.study.evaluation, self.rater, *matchup])
        return hmac.digest(self._secret, message.encode(), "sha256")


def plan_study(
    evaluation: Artifact, systems: Sequence[str], prompts: int, kinds: Sequence[str]
) -> Study:
    """Plan the study of an evaluation's pictures: all pairs of `systems` (by default the teacher,
    the student at its most steps and the tuned student) on this many of its prompts.

    Raises ConfigError for an unknown system or question, or too few of them, and ArtifactError if
    the systems share no sample.
    """
    known = evaluation.details["systems"]
    chosen = list(systems) or _default_systems(evaluation)
    for name in chosen:
        if name not in known:
            raise ConfigError(
                f"compare: the evaluation has no system {name!r}{did_you_mean(name, known)}"
            )
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise ConfigError(
            "compare: needs two or more different systems, each named once; known: "
            + ", ".join(known)
        )
    for kind in kinds:
        if kind not in QUESTIONS:
            raise ConfigError(f"compare: unknown question {kind!r}{did_you_mean(kind, QUESTIONS)}")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ConfigError(
            f"compare: name each question once; the questions are {', '.join(QUESTIONS)}"
        )
    if prompts < 1:
        raise ConfigError(f"compare: {prompts} prompts are too few; at least 1 is needed")
    tables = [_samples(evaluation, known[name]["shards"]) for name in chosen]
    shared = {key: s for key, s in tables[0].items() if all(t.get(key) == s for t in tables)}
    if not shared:
        raise ArtifactError(
            f"{evaluation.url}: no sample has a picture by each of {', '.join(chosen)}; run "
            "`ladd-pipeline run --force eval`"
        )
    return Study(
        evaluation=evaluation.manifest.key,
        titles={name: known[name]["title"] for name in chosen},
        kinds=tuple(kinds),
        samples={key: shared[key] for key in sorted(shared, key=_shuffled)[:prompts]},
    )


def _shuffled(key: str) -> bytes:
    """Sort key of a sample. The order does not depend on how many samples are used, so a study with
    more prompts keeps its votes.
    """
    return hashlib.sha256(key.encode()).digest()


def _default_systems(evaluation: Artifact) -> list[str]:
    with evaluation.checked(evaluation.entry("report.json")) as path:
        try:
            report = Report.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ArtifactError(
                f"{evaluation.url}/report.json is of another version of ladd-pipeline; name the "
                "systems with --system, or run `ladd-pipeline run --force eval`"
            ) from error
    chosen = []
    for kind in ("teacher", "student", "tuned"):
        systems = [system for system in report.systems if system.kind == kind]
        chosen += [max(systems, key=lambda system: system.steps).name] if systems else []
    return chosen


def _samples(evaluation: Artifact, shards: Sequence[str]) -> dict[str, StudyPrompt]:
    """Samples of a system by key."""
    columns = ["key", "prompt", "width", "height"]
    rows: list[dict[str, Any]] = []
    for shard in shards:
        with evaluation.checked(evaluation.entry(f"{shard}.parquet")) as path:
            rows += pq.read_table(path, columns=columns).to_pylist()
    return {row["key"]: StudyPrompt(row["prompt"], row["width"], row["height"]) for row in rows}


class Pictures:
    """A study's pictures in one unnamed file, which the system removes when the process ends, even
    after kill -9.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        self.shown = lru_cache(maxsize=64)(self._shown)

    def add(self, system: str, sample: str, content: bytes) -> None:
        self._places[system, sample] = (self._file.seek(0, os.SEEK_END), len(content))
        self._file.write(content)
        self._file.flush()

    def original(self, system: str, sample: str) -> bytes:
        """The PNG from the evaluation, unchanged."""
        start, length = self._places[system, sample]
        return os.pread(self._file.fileno(), length, start)

    def _shown(self, system: str, sample: str) -> bytes:
        """The PNG that raters get: only pixels, uncompressed, so that neither metadata nor the file
        length (the same for all pictures of one size) reveals the system.
        """
        with Image.open(io.BytesIO(self.original(system, sample))) as picture:
            pixels_HW3 = np.asarray(picture.convert("RGB"))
        sink = io.BytesIO()
        Image.fromarray(pixels_HW3).save(sink, "PNG", compress_level=0)
        return sink.getvalue()


@contextlib.contextmanager
def open_pictures(study: Study, evaluation: Artifact) -> Iterator[Pictures]:
    """Copy the study's pictures from the evaluation's shards to a temporary file; the shards are
    checked.

    Raises ArtifactError if a picture is missing or a shard is damaged.
    """
    with tempfile.TemporaryFile() as file:
        pictures = Pictures(file)
        for system in study.titles:
            missing = set(study.samples)
            for shard in evaluation.details["systems"][system]["shards"]:
                entry = evaluation.entry(f"{shard}.tar")
                with evaluation.checked(entry) as path:
                    for key, members in read_tar(path, f"{evaluation.url}/{entry.path}"):
                        if key in missing and "png" in members:
                            pictures.add(system, key, members["png"])
                            missing.remove(key)
            if missing:
                raise ArtifactError(
                    f"{evaluation.url} has no picture {min(missing)}.png by {system}; run "
                    "`ladd-pipeline run --force eval` to make it again"
                )
        yield pictures
