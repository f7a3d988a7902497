"""DPM-Solver++ takes over a teacher's shift, and refuses what is more than a shift."""

from __future__ import annotations

import pytest
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from schemas.errors import ConfigError
from stages.teachers.solvers import multistep_solver


def test_a_dynamic_shift_is_that_of_the_stock_scheduler():
    own = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    stock = DPMSolverMultistepScheduler.from_config(
        own.config, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    stock.set_timesteps(7, mu=0.8)
    solver = multistep_solver(own, 7, 0.8)
    assert solver.levels == [level / 1000 for level in stock.timesteps.tolist()]
    assert solver._scheduler.sigmas.tolist() == stock.sigmas.tolist()


@pytest.mark.parametrize("field", [{"shift_terminal": 0.1}, {"use_karras_sigmas": True}])
def test_noise_levels_that_are_more_than_shifted_are_refused(field):
    own = FlowMatchEulerDiscreteScheduler(shift=3.0, **field)
    with pytest.raises(ConfigError, match=f"{next(iter(field))}; set synthesize.sampler to euler"):
        multistep_solver(own, 4, None)
