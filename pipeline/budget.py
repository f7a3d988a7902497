"""What a run may cost: refused before it starts, and stopped at the limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from pipeline.devices import price_of
from pipeline.estimates import Outlook
from schemas.costs import CostsConfig
from schemas.errors import ConfigError, CostReached


class Budget:
    """Counts what the stages of a run cost while they run: the devices that each holds, as the plan
    expects, times their price. A stage whose work is not counted costs what one device costs.

    Raises ConfigError for a run that is expected to cost more than `limit`, or whose cost nobody
    knows. None limits nothing.
    """

    def __init__(
        self,
        limit: float | None,
        costs: CostsConfig,
        ahead: Outlook,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        price = price_of(costs, ahead.fleet.device.kind)
        self.limit, self.currency, self.spent = limit, costs.currency, 0.0
        self.is_priced = price is not None
        self._clock, self._last = clock, clock()
        self._running: tuple[str, ...] = ()
        self._by_stage = {
            name: (price or 0.0) * (1.0 if found is None else found.devices)
            for name, found in ahead.stages.items()
        }
        if limit is not None:
            self._require_within(limit, ahead, price)

    def charge(self, running: Iterable[str]) -> None:
        """Count the time since the last call for the stages that ran until now; from here on these
        run. Raises CostReached at the limit.
        """
        now = self._clock()
        hours = (now - self._last) / 3600
        self.spent += hours * sum(self._by_stage.get(name, 0.0) for name in self._running)
        self._last, self._running = now, tuple(running)
        if self.limit is not None and self.spent >= self.limit:
            raise CostReached(
                f"the run has cost {self._amount(self.spent)}, which --max-cost allows; what is "
                "finished is kept, and the same command with a new --max-cost resumes"
            )

    def _require_within(self, limit: float, ahead: Outlook, price: float | None) -> None:
        kind = ahead.fleet.device.kind
        if price is None:
            raise ConfigError(
                f"--max-cost: costs.prices has no price for {kind}, so the cost of the run is "
                f"unknown; set costs.prices.{kind}"
            )
        if ahead.price is None:
            raise ConfigError(
                f"--max-cost: the cost of {', '.join(ahead.unknown)} is unknown; `ladd-pipeline "
                "plan` says why"
            )
        if ahead.price > limit:
            most = max(ahead.stages, key=lambda name: _price(ahead, name))
            raise ConfigError(
                f"--max-cost: the run is expected to cost {self._amount(ahead.price)}, above "
                f"{self._amount(limit)}; {most} alone costs {self._amount(_price(ahead, most))}; "
                "`ladd-pipeline plan` has all stages"
            )

    def _amount(self, price: float) -> str:
        return f"{price:,.2f} {self.currency}"


def _price(ahead: Outlook, stage: str) -> float:
    found = ahead.stages[stage]
    return 0.0 if found is None or found.price is None else found.price
