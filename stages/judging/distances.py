"""Distances between two systems' pictures of the same prompts, each with an interval over prompts,
and no figure where the pictures are too few. Pure functions of arrays: N pictures, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy import stats

from schemas.report import Interval
from stages.judging.drawn import Drawn
from stages.judging.measures import Kind, Measure
from stages.scores.frechet import frechet_distance
from stages.scores.kernel import cmmd, paired_kid
from stages.scores.manifold import precision, recall

GROUPS = 20
"""Groups of prompts that the jackknife leaves out in turn."""
_STATISTICS: dict[Kind, Callable[[np.ndarray, np.ndarray], float]] = {
    "fid": frechet_distance,
    "patch_fid": frechet_distance,
    "kid": paired_kid,
    "cmmd": cmmd,
    "precision": precision,
    "recall": recall,
}
"""Each takes the features of a system's pictures, then those of the reference."""
_RANGES: dict[Kind, tuple[float, float]] = {
    "fid": (0, np.inf),
    "patch_fid": (0, np.inf),
    "kid": (-np.inf, np.inf),
    "cmmd": (0, np.inf),
    "precision": (0, 1),
    "recall": (0, 1),
}


def distances_of(
    mine: Drawn, reference: Drawn, measures: Iterable[Measure], rows: np.ndarray | None = None
) -> dict[str, Interval]:
    """Measure the distances for which there are pictures enough, by name. `rows`, a mask (N,),
    restricts them to some of the pictures.
    """
    rows = np.ones(len(mine.rows), bool) if rows is None else rows
    found = {}
    for measure in measures:
        ours, owner = _features(mine, measure)
        theirs, _ = _features(reference, measure)
        ours, theirs, owner = ours[rows[owner]], theirs[rows[owner]], owner[rows[owner]]
        if len(ours) >= least_pictures(measure.kind, ours.shape[1]):
            found[measure.name] = distance(measure.kind, ours, theirs, owner)
    return found


def distance(
    kind: Kind, mine_NF: np.ndarray, theirs_NF: np.ndarray, prompt_N: np.ndarray
) -> Interval:
    """One distance with its 95 % interval: a jackknife over groups of prompts, of which
    `prompt_N` are the numbers; rows of one prompt stay together.

    Not a bootstrap: that would draw a prompt twice, and a picture paired with itself raises KID and
    CMMD and lowers the rank that FID needs. The jackknife repeats no picture, and its variance is
    on average not too small (Efron and Stein 1981), also where two sets have one distribution. The
    interval is that of the distance at this number of pictures, whose bias the floor shows.
    """
    statistic = _STATISTICS[kind]
    group_N = np.unique(prompt_N, return_inverse=True)[1] % GROUPS
    left_out = [
        statistic(mine_NF[group_N != group], theirs_NF[group_N != group]) for group in range(GROUPS)
    ]
    deviation = np.sqrt((GROUPS - 1) * np.var(left_out))
    reach = float(stats.t.ppf(0.975, GROUPS - 1) * deviation)
    value = float(statistic(mine_NF, theirs_NF))
    low, high = np.clip((value - reach, value + reach), *_RANGES[kind])
    return Interval(mean=value, low=float(low), high=float(high))


def least_pictures(kind: Kind, width: int) -> int:
    """The fewest pictures (crops for patch_fid) for which a distance is given.

    FID needs more than its features have dimensions, or their covariance has no full rank (README
    of Heusel et al.'s code, github.com/bioinf-jku/TTUR). The others need one in each group of the
    jackknife: without an interval a figure on so few says nothing.
    """
    return max(GROUPS, width + 1) if kind in ("fid", "patch_fid") else GROUPS


def too_few(drawn: Drawn, measures: Iterable[Measure]) -> dict[str, str]:
    """By name, why a distance has no figure: `250 pictures, needs more than 1,024`."""
    reasons = {}
    for measure in measures:
        features, _ = _features(drawn, measure)
        least = least_pictures(measure.kind, features.shape[1])
        if len(features) < least:
            what = "crops" if measure.kind == "patch_fid" else "pictures"
            reasons[measure.name] = f"{len(features):,} {what}, needs at least {least:,}"
    return reasons


def _features(drawn: Drawn, measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """Features, and the number of the picture that each row belongs to."""
    if measure.kind == "patch_fid":
        return drawn.patches, drawn.patch_owners
    features = drawn.features[measure.space]
    return features, np.arange(len(features))
