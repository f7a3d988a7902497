"""benchmarks/scale_simulation.py where a pencil knows the answer."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from tests.support.command import ROOT


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("scale_simulation")


def test_a_worker_makes_a_shard_after_another_and_more_share_them(scale):
    costs = scale.Costs(first=5, further=1, shard=0.5, coordinator=0.1)
    alone = scale.simulate(scale.Stage(12, work=2), 1, costs, together=1)
    assert alone.seconds == pytest.approx(5 + 12 * 2.5 + 0.1)
    four = scale.simulate(scale.Stage(12, work=2), 4, costs, together=1)
    assert four.seconds == pytest.approx(5 + 3 * 2.5 + 4 * 0.1)  # the last four come at once
    later = scale.simulate(scale.Stage(12, work=2), 4, costs, together=4)
    assert later.seconds == pytest.approx(5 + 4 * 2.5 + 0.1)  # the first one makes four


@pytest.mark.parametrize("part", ["coordinator", "bucket"])
def test_what_all_share_bounds_them(scale, part):
    slow = {"coordinator": 0.25} if part == "coordinator" else {"coordinator": 0.0}
    costs = scale.Costs(first=0, further=0, shard=0, **slow)
    stage = scale.Stage(400, work=1, **({"bytes": 1, "bandwidth": 4} if part == "bucket" else {}))
    made = scale.simulate(stage, 40, costs, together=1)
    assert made.seconds == pytest.approx(1 + 400 * 0.25, rel=0.01)
    assert getattr(made, part) > 0.95 and made.workers < 0.15


def test_lost_workers_redo_their_shard_and_start_again(scale):
    costs = scale.Costs(first=10, further=0, shard=0, coordinator=0)
    stage = scale.Stage(2000, work=5, lost_every=500)
    made = scale.simulate(stage, 8, costs, together=1, seed=1)
    assert made.redone == pytest.approx(2000 * 5 / 500, rel=0.6)  # 20 on average
    undisturbed = scale.simulate(scale.Stage(2000, work=5), 8, costs, together=1)
    assert undisturbed.seconds < made.seconds < undisturbed.seconds * 1.1


def test_costs_come_from_shards_without_work(scale):
    found = {
        "idle": [
            {"arrived": [8.0, 8.5, 9.0], "shards": 3, "coordinator_cpu": 0.3},
            {"arrived": [9.0, 9.2], "shards": 2},
        ]
    }
    assert scale.costs_of(found) == scale.Costs(7.5, 1.0, 0.5, pytest.approx(0.1))
