"""The signs of a bad LADD run, read from the metrics of its updates (docs/health.md).

Knows nothing but these metrics. The same trace gives the same signs, so a resumed training rebuilds
its watch from the trace of its checkpoint.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

Net = Literal["student", "heads"]
UNSCALED: Mapping[Net, float] = {"student": 1.0, "heads": 1.0}
SKIPPED = "skipped"
"""Marks the metrics of an update that was not made."""

WINDOW = 50
"""Updates of the student over which a sign is measured."""
BEGINNING = 20
"""Updates of the heads at the beginning of a training, whose gradient norms are the usual ones."""
_DISTANCE, _FLOOR = "held_out_distance", "teacher_distance"
"""Figures of a look at held-out prompts."""
LOWERED = 0.5
"""What `on_collapse: lower_rate` multiplies a learning rate by at each sign."""


class TrainingDiverged(RuntimeError):
    """What is measured is no longer a finite number."""


def not_finite(metrics: Mapping[str, object]) -> list[str]:
    """Names of the metrics that are numbers but not finite."""
    return [
        name
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


@dataclass(frozen=True)
class Sign:
    """A sign of a bad run."""

    name: str
    text: str
    """What is seen, what it means and what to do, in one sentence."""
    lower: tuple[Net, ...] = ()
    """The nets whose learning rate is too high."""
    is_certain: bool = True
    """Whether a training may be ended for it."""


class HealthWatch:
    """Takes each update's metrics and returns the signs that are new.

    Of updates in which the student does not learn (the heads' head start) only the heads' first
    gradient norms count. With `lower_rate` a sign multiplies the learning rates that it names by
    `LOWERED`; the watch then begins a new window, and the same sign may come again.
    """

    def __init__(self, *, lower_rate: bool = False) -> None:
        self.rate_scale = dict(UNSCALED)
        """What is left of each configured learning rate."""
        self._lower_rate = lower_rate
        self._updates: deque[Mapping[str, float]] = deque(maxlen=4 * WINDOW)
        self._said: set[str] = set()
        self._heads_knew = False
        self._first_norms: list[float] = []
        self._distances: list[float] = []

    def observe(self, metrics: Mapping[str, float]) -> list[Sign]:
        if _DISTANCE in metrics:
            return self._new(self._seen_by_a_look(metrics[_DISTANCE], metrics[_FLOOR]))
        if "heads_grad_norm" in metrics and len(self._first_norms) < BEGINNING:
            self._first_norms.append(metrics["heads_grad_norm"])
        if "student_grad_norm" not in metrics:
            return []
        self._updates.append(metrics)
        if len(self._updates) < WINDOW:
            return []
        return self._new(self._signs())

    def _new(self, seen: list[Sign]) -> list[Sign]:
        """Answer the signs that have not been told."""
        return [self._answer(sign) for sign in seen if sign.name not in self._said]

    def _seen_by_a_look(self, distance: float, floor: float) -> list[Sign]:
        """The student has drifted off when two looks in a row find it at three times the least
        distance to the teacher.
        """
        self._distances.append(distance)
        least = max(min(self._distances), floor, 0.0)
        two = self._distances[-2:]
        return [_DRIFT] if len(two) == 2 and min(two) >= 3 * least else []

    def _answer(self, sign: Sign) -> Sign:
        """Remember a sign, or lower the rates that it names."""
        if not (self._lower_rate and sign.lower):
            self._said.add(sign.name)
            return sign
        for net in sign.lower:
            self.rate_scale[net] *= LOWERED
        self._updates.clear()
        left = " and ".join(f"{net} {self.rate_scale[net]:g}" for net in sign.lower)
        return Sign(sign.name, f"{sign.text}; learning rates lowered to this share: {left}")

    def _signs(self) -> list[Sign]:
        """All signs that the latest updates show. Logits above 0 mean real; beyond 1 and -1 the
        hinge has no gradient, so the means of heads that have won lie near these. Losses alone
        cannot tell: they have other terms.
        """
        real, fake, loss = map(self._means, ("real_logit", "fake_logit", "student_loss"))
        gaps = [of_data - of_fakes for of_data, of_fakes in zip(real, fake, strict=True)]
        self._heads_knew |= gaps[-1] > 0.1
        signs = []
        if len(real) > 1 and not self._heads_knew and max(real) < 0.1:
            signs.append(_IGNORANCE)
        if real[-1] > 0.8 and fake[-1] < -0.8:
            signs.append(_COLLAPSE)
        elif self._heads_knew and gaps[-1] < -0.3:
            signs.append(_FOOLED)
        elif gaps[-1] > 0.3 and self._heads_are_thrown_about():
            signs.append(_HASTE)
        elif min(gaps[-2:]) > 0.3 and len(gaps) > 1:
            signs.append(_AHEAD)
        rises = [after - before for before, after in pairwise(loss)]
        if len(self._updates) == self._updates.maxlen and min(rises) > 0.1:
            signs.append(_LOSING)
        return signs

    def _heads_are_thrown_about(self) -> bool:
        """Whether the heads' gradients are far larger than at the beginning: each update of the
        student makes other fakes.
        """
        norms = [row["heads_grad_norm"] for row in list(self._updates)[-WINDOW:]]
        return fmean(norms) > 2.5 * fmean(self._first_norms)

    def _means(self, name: str) -> list[float]:
        """Of each whole window, the latest last."""
        values = [row[name] for row in self._updates]
        ends = range(len(values), WINDOW - 1, -WINDOW)
        return [fmean(values[end - WINDOW : end]) for end in reversed(ends)]


_COLLAPSE = Sign(
    "collapse",
    "the heads see every fake, and their loss has no gradient left: collapse is ahead; lower the "
    "heads' learning rate",
    ("heads",),
)
_IGNORANCE = Sign(
    "ignorance",
    "the heads know nothing: after 100 updates they cannot tell data from fakes, so the student "
    "learns noise; raise the heads' learning rate or their head start",
)
_FOOLED = Sign(
    "fooled",
    "the heads take fakes for real, and the student fools them instead of learning; raise the "
    "heads' learning rate or lower distill.learning_rate",
    ("student",),
)
_HASTE = Sign(
    "haste",
    "the student changes faster than the heads can follow: their gradients are far larger than at "
    "the beginning, and it stays behind; lower distill.learning_rate",
    ("student",),
)
_AHEAD = Sign(
    "ahead",
    "the heads stay ahead: for 100 updates data and fakes are far apart for them; if the pictures "
    "get no better, lower the heads' learning rate or raise distill.learning_rate",
    is_certain=False,
)
_LOSING = Sign(
    "losing",
    "student loss has risen for 200 updates: the student is losing; lower the heads' rate",
    ("heads",),
)
_DRIFT = Sign(
    "drift",
    "in two looks the distance to the teacher's pictures is three times the least that it was: the "
    "student drifts off where the heads do not see it; lower distill.renoise.mean or "
    "distill.learning_rate",
)


def diversity_signs(student: float, teacher: float) -> list[Sign]:
    """Of the mean distances between pictures of one prompt: a sign when the student's is below half
    the teacher's.
    """
    if student >= 0.5 * teacher:
        return []
    share = student / teacher
    return [
        Sign("diversity", f"pictures of one prompt differ {share:.0%} as much as the teacher's")
    ]
