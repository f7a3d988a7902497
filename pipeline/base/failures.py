"""What the user is told about samples that failed, and what share of them ends a stage.

A sample that cannot be used costs that sample alone. Its sidecar has the reason; the beginning of a
reason, up to its first colon, is the kind that is counted here. The limits are `failures` in the
configuration.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from schemas.errors import StageFailed
from schemas.records import ShardStats

if TYPE_CHECKING:
    from pipeline.base.stage import StageContext

_LONGEST = 300
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
_KINDS_KEPT = 20
_KINDS_SHOWN = 3
_SHARDS_BEFORE_STOP = 3
"""One bad shard among many must not end a stage that has begun with it."""


def recorded(reason: object) -> str:
    """Return a reason as one line that a sidecar can hold: without lone surrogates, not long, and
    without the addresses in memory of foreign messages, which differ each time.
    """
    text = _ADDRESS.sub("an object", str(reason))
    line = " ".join(text.split()).encode(errors="backslashreplace").decode()
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def kind_of(reason: str) -> str:
    """Return what a reason has in common with others: the text before its first colon."""
    return reason.partition(":")[0].strip()


def failed_kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count the kinds of failure in the rows of a sidecar. A shard keeps them in its statistics'
    details as `failures`.
    """
    kinds = Counter(kind_of(row["reason"]) for row in rows if row["status"] == "failed")
    return dict(kinds.most_common(_KINDS_KEPT))


@dataclass
class Failures:
    """How many samples a stage has seen, how many failed, and why.

    `what` names them in messages; `where` says where each reason stands.
    """

    context: StageContext
    what: str = "samples"
    where: str = "the sidecars"
    total: int = 0
    failed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str | None = None) -> None:
        """Count one sample; `reason` says why it failed, None that it did not."""
        self.total += 1
        if reason is not None:
            self.failed += 1
            self.kinds[kind_of(reason)] += 1

    def add_shard(self, stats: ShardStats) -> None:
        """Count the samples of a finished shard."""
        self.total += sum(stats.counts.values())
        self.failed += stats.counts.get("failed", 0)
        self.kinds.update(stats.details.get("failures", {}))

    def stop(self) -> None:
        """Raise StageFailed if more samples failed than `failures.stop_above` allows."""
        limits = self.context.config.failures
        if self.total >= limits.stop_from and self.failed > limits.stop_above * self.total:
            raise StageFailed(
                f"{self.context.stage}: {self}. That is more than failures.stop_above "
                f"({limits.stop_above:.0%}); {self.where} name each one: fix the data, or raise "
                "that limit"
            )

    def tell(self) -> None:
        """Warn if more samples failed than `failures.warn_above`; raise StageFailed as `stop`."""
        self.stop()
        if self.failed > self.context.config.failures.warn_above * self.total:
            self.context.warn(f"{self}; {self.where} name each one")

    def __str__(self) -> str:
        share = self.failed / max(self.total, 1)
        reasons = commonest(self.kinds)
        text = f"{self.failed:,} of {self.total:,} {self.what} ({share:.1%}) cannot be used"
        return f"{text}: {reasons}" if reasons else text


class ShardFailures(Failures):
    """The failures of a stage that maps over shards."""

    def __init__(self, context: StageContext, shards: int) -> None:
        super().__init__(context, where=f"the sidecars (*.parquet) in {context.folder}/shards")
        self._left = min(shards, _SHARDS_BEFORE_STOP)

    def add_shard(self, stats: ShardStats) -> None:
        """Count a finished shard. Raises StageFailed if the shards so far are bad enough."""
        super().add_shard(stats)
        self._left -= 1
        if self._left <= 0:
            self.stop()


def commonest(kinds: Mapping[str, int]) -> str:
    """Return the commonest kinds of failure with their numbers, or an empty text."""
    shown = Counter(kinds).most_common(_KINDS_SHOWN)
    rest = sum(kinds.values()) - sum(count for _, count in shown)
    texts = [f"{kind} ({count:,})" for kind, count in shown]
    return ", ".join([*texts, f"others ({rest:,})"] if rest else texts)


def all_kinds(shards: Iterable[ShardStats]) -> dict[str, int]:
    """Count the kinds of failure of several shards, the commonest first."""
    kinds: Counter[str] = Counter()
    for stats in shards:
        kinds.update(stats.details.get("failures", {}))
    return dict(kinds.most_common(_KINDS_KEPT))
