"""What a run may cost: refused before it starts, stopped at the limit."""

from __future__ import annotations

import pytest

from pipeline.budget import Budget
from pipeline.devices import GPUS, Fleet
from pipeline.estimates import Estimate, Outlook
from schemas.costs import CostsConfig
from schemas.errors import ConfigError, CostReached
from tests.support.command import call_here

PRICED = CostsConfig(prices={"nvidia-h100": 2.0}, currency="EUR")


def expected(devices: float, price: float | None) -> Estimate:
    return Estimate(
        samples=1,
        unit="pictures",
        flops=0,
        device_hours=1,
        seconds=3600,
        devices=devices,
        workers=1,
        store_bytes=0,
        scratch_bytes=0,
        device_bytes=None,
        price=price,
        source="model",
    )


def ahead(**stages: Estimate | None) -> Outlook:
    return Outlook(Fleet(GPUS["nvidia-h100"], 8, 64, is_here=False), stages)


TWO = ahead(synthesize=expected(8, 16.0), distill=expected(4, 8.0))


class Clock:
    """Hours that pass when it is told."""

    hours = 0.0

    def __call__(self) -> float:
        return self.hours * 3600


def test_what_is_expected_to_cost_more_is_refused_with_what_costs_most():
    with pytest.raises(ConfigError, match=r"24.00 EUR, above 20.00 EUR; synthesize alone .* 16.00"):
        Budget(20.0, PRICED, TWO)
    Budget(24.0, PRICED, TWO)


def test_a_limit_needs_a_price_and_an_estimate_of_everything():
    with pytest.raises(ConfigError, match=r"set costs\.prices\.nvidia-h100"):
        Budget(100.0, CostsConfig(), TWO)
    unknown = ahead(synthesize=expected(8, 16.0), pairs=None)
    with pytest.raises(ConfigError, match="the cost of pairs is unknown"):
        Budget(100.0, PRICED, unknown)
    assert not Budget(None, CostsConfig(), unknown).is_priced


def test_devices_are_paid_while_a_stage_holds_them():
    clock = Clock()
    budget = Budget(None, PRICED, TWO, clock)
    clock.hours = 5
    budget.charge(["synthesize"])  # nothing ran until now
    assert budget.spent == 0
    clock.hours = 6
    budget.charge(["synthesize", "distill"])
    assert budget.spent == pytest.approx(8 * 2.0)
    clock.hours = 6.5
    budget.charge([])
    assert budget.spent == pytest.approx(8 * 2.0 + 0.5 * 12 * 2.0)
    clock.hours = 10
    budget.charge([])
    assert budget.spent == pytest.approx(28.0)


def test_at_the_limit_the_run_stops():
    clock = Clock()
    budget = Budget(24.0, PRICED, TWO, clock)
    budget.charge(["synthesize"])
    clock.hours = 1.4
    budget.charge(["synthesize"])
    clock.hours = 1.6
    with pytest.raises(CostReached, match=r"has cost 25.60 EUR, which --max-cost allows") as caught:
        budget.charge(["synthesize"])
    assert caught.value.exit_code == 7


SMOKE = ("run", "--preset", "shapes-smoke", "--until", "encode", "--set", "costs.prices.cpu=3600")


def test_a_run_is_refused_before_it_begins(tmp_path):
    done = call_here(*SMOKE, "--set", f"store={tmp_path}/store", "--max-cost", 0.001)
    assert done.returncode == 2, done.stderr
    assert "--max-cost: the run is expected to cost" in done.stderr
    assert not (tmp_path / "store" / "runs").exists()


@pytest.mark.slow
def test_a_run_stops_at_the_limit_keeps_what_is_finished_and_goes_on(tmp_path, monkeypatch):
    """Each stage seems to take an hour, which the plan did not expect."""
    clock = Clock()
    charge = Budget.charge

    def hour_by_hour(budget: Budget, running) -> None:
        budget._clock = clock
        budget._last = clock() if not budget._running else budget._last
        charge(budget, running)
        clock.hours += 1

    monkeypatch.setattr(Budget, "charge", hour_by_hour)
    store = ("--set", f"store={tmp_path}/store")
    done = call_here(*SMOKE, *store, "--max-cost", 3000)
    assert done.returncode == 7, done.stderr
    assert "which --max-cost allows" in done.stderr and "to resume: " in done.stderr
    made = {path.parts[-3] for path in (tmp_path / "store").glob("artifacts/*/*/manifest.json")}
    assert made == {"prompts", "synthesize"}
    monkeypatch.undo()
    done = call_here(*SMOKE, *store, "--max-cost", 3000)
    assert done.returncode == 0, done.stderr
    assert "synthesize │ done" in done.stdout
