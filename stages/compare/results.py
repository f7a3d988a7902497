"""What the votes say: win rates of each pair of systems, and one Bradley–Terry scale for all.

Prompts are the independent units: several votes on one prompt, by several raters, are resampled
together. A tie counts half for each side.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import choix
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from schemas.base import Frozen
from schemas.report import Interval
from stages.compare.study import Study
from stages.compare.votes import Vote

_RESAMPLES = 2000
_SEED = 0
_PRIOR = 0.5
"""Added to both sides of each pair before the Bradley-Terry fit, so that a system that has won
everything keeps a finite score."""

Floats = NDArray[np.float64]


class PairResult(Frozen):
    """Result of one question about two systems."""

    question: str
    system: str
    against: str
    votes: int
    wins: int
    ties: int
    losses: int
    rate: Interval
    """Share of votes for `system`, ties half; 95 % bootstrap interval over prompts."""
    prompts: int
    """Number of prompts that were judged."""
    prompts_won: int
    """Number of prompts that `system` won by the majority of their votes."""
    prompts_lost: int
    decided: Interval | None
    """Share of the prompts won among those won or lost, with Wilson's 95 % interval; None if all
    are even.
    """


class Strength(Frozen):
    """A system on the Bradley–Terry scale of one question."""

    question: str
    system: str
    score: Interval
    """Natural logarithm, mean 0 over the systems: a system that scores 1 above another is preferred
    in 73 % of comparisons. 95 % bootstrap interval over prompts.
    """


class Results(Frozen):
    """What `compare --results --json` prints."""

    evaluation: str
    """Key of the artifact."""
    prompts: int
    """Number of prompts in the study."""
    raters: dict[str, int]
    """Number of votes of each rater."""
    votes: int
    votes_elsewhere: int
    """Votes in the same file on other pictures, systems or questions; not counted here."""
    titles: dict[str, str]
    pairs: list[PairResult]
    strengths: list[Strength]
    """Scores for each question that was answered for two or more prompts."""
    left: Interval | None
    """Share of the left picture among decided votes, with Wilson's 95 % interval: about one half
    unless raters favour a side. None if no vote is decided.
    """
    agreement: float | None
    """Share of equal answers where two raters answered the same question; None if none did."""


def evaluate(study: Study, votes: Iterable[Vote]) -> Results:
    """Compute the results from the votes that belong to the study."""
    questions = study.questions
    every = list(votes)
    counted = [vote for vote in every if vote.question in questions]
    pairs, strengths = [], []
    for kind in study.kinds:
        points_PKK = _points(study, [vote for vote in counted if vote.question.kind == kind])
        if not points_PKK.any():
            continue
        for (i, system), (k, against) in itertools.combinations(enumerate(study.titles), 2):
            about = [
                vote
                for vote in counted
                if vote.question.kind == kind and {*vote.question.matchup[1:]} == {system, against}
            ]
            if about:
                points_P2 = np.stack([points_PKK[:, i, k], points_PKK[:, k, i]], axis=1)
                pairs.append(_pair(kind, system, against, about, points_P2))
        if len(points_PKK) > 1:  # one prompt says nothing about others
            strengths += [
                Strength(question=kind, system=system, score=score)
                for system, score in zip(study.titles, _bradley_terry(points_PKK), strict=True)
            ]
    decided = [vote for vote in counted if vote.loser is not None]
    return Results(
        evaluation=study.evaluation,
        prompts=len(study.samples),
        raters=dict(sorted(Counter(vote.rater for vote in counted).items())),
        votes=len(counted),
        votes_elsewhere=len(every) - len(counted),
        titles=study.titles,
        pairs=pairs,
        strengths=strengths,
        left=_wilson(sum(vote.winner == vote.on_left for vote in decided), len(decided)),
        agreement=_agreement(counted),
    )


def _points(study: Study, votes: list[Vote]) -> Floats:
    """Points (P, K, K): [p, k, j] is what system k got against j on judged prompt p, ties half."""
    places = {name: k for k, name in enumerate(study.titles)}
    judged = {sample: p for p, sample in enumerate(sorted({v.question.matchup[0] for v in votes}))}
    points_PKK = np.zeros((len(judged), len(places), len(places)))
    for vote in votes:
        sample, one, other = vote.question.matchup
        share = {one: 1.0, other: 0.0}.get(vote.winner, 0.5)
        points_PKK[judged[sample], places[one], places[other]] += share
        points_PKK[judged[sample], places[other], places[one]] += 1 - share
    return points_PKK


def _pair(kind: str, system: str, against: str, votes: list[Vote], points_P2: Floats) -> PairResult:
    points_P2 = points_P2[points_P2.sum(axis=1) > 0]
    wins = sum(vote.winner == system for vote in votes)
    losses = sum(vote.winner == against for vote in votes)
    won = int((points_P2[:, 0] > points_P2[:, 1]).sum())
    lost = int((points_P2[:, 0] < points_P2[:, 1]).sum())
    return PairResult(
        question=kind,
        system=system,
        against=against,
        votes=len(votes),
        wins=wins,
        ties=len(votes) - wins - losses,
        losses=losses,
        rate=_win_rate(points_P2),
        prompts=len(points_P2),
        prompts_won=won,
        prompts_lost=lost,
        decided=_wilson(won, won + lost),
    )


def _win_rate(points_P2: Floats) -> Interval:
    mean = float(points_P2[:, 0].sum() / points_P2.sum())
    if len(points_P2) < 2:  # one prompt says nothing about others
        return Interval(mean=mean, low=0.0, high=1.0)

    def rate(ours: Floats, theirs: Floats, axis: int) -> Any:
        return ours.sum(axis) / (ours.sum(axis) + theirs.sum(axis))

    low, high = _resampled((points_P2[:, 0], points_P2[:, 1]), rate)
    return Interval(mean=mean, low=float(low), high=float(high))


def _bradley_terry(points_PKK: Floats) -> list[Interval]:
    """Maximum-likelihood scores (Bradley and Terry 1952; Hunter 2004), by I-LSR (Maystre and
    Grossglauser 2015).
    """
    systems = points_PKK.shape[1]
    prior_KK = _PRIOR * (1 - np.eye(systems))

    def fit(points_KK: Floats) -> Floats:
        scores_K: Floats = choix.ilsr_pairwise_dense(points_KK + prior_KK, max_iter=10_000)
        return scores_K

    def refit(prompts: Any, axis: int) -> Any:
        drawn_BP = np.atleast_2d(prompts)
        return np.stack([fit(points_PKK[drawn_P].sum(axis=0)) for drawn_P in drawn_BP], axis=-1)

    scores_K = fit(points_PKK.sum(axis=0))
    low_K, high_K = _resampled((np.arange(len(points_PKK)),), refit)
    return [
        Interval(mean=float(s), low=float(low), high=float(high))
        for s, low, high in zip(scores_K, low_K, high_K, strict=True)
    ]


def _resampled(data: tuple[Any, ...], statistic: Any) -> tuple[Any, Any]:
    """The 95 % percentile bootstrap interval of a statistic over prompts."""
    bounds = stats.bootstrap(
        data,
        statistic,
        n_resamples=_RESAMPLES,
        vectorized=True,
        paired=True,
        method="percentile",
        rng=_SEED,
    ).confidence_interval
    return bounds.low, bounds.high


def _wilson(count: int, of: int) -> Interval | None:
    if of == 0:
        return None
    bounds = stats.binomtest(count, of).proportion_ci(0.95, method="wilson")
    return Interval(mean=count / of, low=float(bounds.low), high=float(bounds.high))


def _agreement(votes: list[Vote]) -> float | None:
    answers = defaultdict(list)
    for vote in votes:
        answers[vote.question].append(vote.winner)
    equal = [a == b for given in answers.values() for a, b in itertools.combinations(given, 2)]
    return sum(equal) / len(equal) if equal else None


def tables(results: Results) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of each question's two tables, for a terminal."""
    both = []
    for kind in dict.fromkeys(pair.question for pair in results.pairs):
        pairs = [
            [
                f"{pair.system}\nvs {pair.against}",
                f"{pair.wins}/{pair.ties}/{pair.losses}",
                _percent(pair.rate),
                f"{pair.prompts_won}/{pair.prompts_lost}",
                _percent(pair.decided) if pair.decided else "all even",
            ]
            for pair in results.pairs
            if pair.question == kind
        ]
        columns = ["", "votes\nwon/tied/lost", "win rate", "prompts\nwon/lost", "share won"]
        title = f"{kind}: win rates, ties count half, 95 % intervals over prompts"
        both.append((title, columns, pairs))
        strengths = [
            [s.system, f"{s.score.mean:+.2f}", f"{s.score.low:+.2f} to {s.score.high:+.2f}"]
            for s in sorted(results.strengths, key=lambda s: -s.score.mean)
            if s.question == kind
        ]
        columns = ["", "score", "95 %"]
        both.append((f"{kind}: Bradley-Terry scores", columns, strengths))
    return [table for table in both if table[2]]


def remarks(results: Results) -> list[str]:
    """Sentences on how far the votes can be trusted."""
    lines = [f"{_many(results.votes, 'vote')} on {_many(results.prompts, 'prompt')}"]
    lines += [f"{name}: {_many(count, 'vote')}" for name, count in results.raters.items()]
    if results.left is not None:
        left = _percent(results.left).replace("\n", " (")
        lines.append(f"the left picture won {left}) of decided votes")
    if results.agreement is not None:
        lines.append(f"two raters gave the same answer {results.agreement:.0%} of the time")
    if results.votes_elsewhere:
        lines.append(
            f"not counted: {_many(results.votes_elsewhere, 'vote')} in this file about other "
            "pictures, systems or questions"
        )
    return lines


def _percent(interval: Interval) -> str:
    return f"{interval.mean:.1%}\n{100 * interval.low:.1f} to {interval.high:.1%}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
