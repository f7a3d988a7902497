"""Gates: the configuration's demands on the measures of an evaluation, for example
`student_4.attributes: ">= 0.85"`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable

from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from schemas.report import GateResult, SystemResult
from schemas.suggest import did_you_mean
from stages.judging.measures import measures_of

_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_DEMAND = re.compile(r"\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)\s*")


def check_gates(config: PipelineConfig, systems: list[str]) -> None:
    """Raise ConfigError for a gate that names an unknown system or measure, or one that is not
    evaluated, or whose demand is not a comparison.
    """
    measures = [score.name for score in config.eval.scores]
    measures += [measure.name for measure in measures_of(config.eval)]
    measures += ["diversity", "seconds_per_picture"]
    for name, demand in config.eval.gates.items():
        system, _, measure = name.partition(".")
        if system.startswith("tuned_") and not config.eval.tuned:
            raise ConfigError(
                f"eval.gates: {name!r} is about the tuned student, which is not evaluated: leave "
                "the gate out, or evaluate with eval.tuned=true"
            )
        if system not in systems:
            raise ConfigError(
                f"eval.gates: {name!r} names no system{did_you_mean(system, systems)}; the systems "
                f"are {', '.join(systems)}"
            )
        if measure not in measures:
            raise ConfigError(
                f"eval.gates: {name!r} names no measure{did_you_mean(measure, measures)}; the "
                f"measures are {', '.join(measures)}"
            )
        if not _DEMAND.fullmatch(demand):
            raise ConfigError(
                f"eval.gates: {name}: {demand!r} is not a comparison like '>= 0.85' or '< 3'"
            )


def gate_result(name: str, demand: str, results: Iterable[SystemResult]) -> GateResult:
    """Evaluate a gate that `check_gates` has accepted; one without a value is missed."""
    system, _, measure = name.partition(".")
    result = next(r for r in results if r.name == system)
    values = {s: interval.mean for s, interval in result.scores.items()} | result.distances
    values |= {
        "diversity": result.diversity,
        "seconds_per_picture": result.seconds_per_picture,
    }
    match = _DEMAND.fullmatch(demand)
    assert match is not None
    value, bound = values.get(measure), float(match[2])
    if value is None:
        return GateResult(name=name, demand=demand, value=None, passed=False, misses_by=None)
    passed = _COMPARE[match[1]](value, bound)
    return GateResult(
        name=name,
        demand=demand,
        value=value,
        passed=passed,
        misses_by=0.0 if passed else abs(value - bound),
    )


def failed_gates(gates: Iterable[GateResult]) -> list[str]:
    """One sentence for each gate that failed."""
    return [
        f"{gate.name} has no figure, its pictures are too few, and {gate.demand} is demanded"
        if gate.value is None
        else f"{gate.name} is {gate.value:.4g}, {gate.misses_by:.4g} away from {gate.demand}"
        for gate in gates
        if not gate.passed
    ]
