"""DPM-Solver++ for teachers of the diffusers library, through its own scheduler."""

from __future__ import annotations

import math

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from schemas.errors import ConfigError


class MultistepSolver:
    """A `Solver`: DPM-Solver++(2M) (Lu et al. 2022) as diffusers' DPMSolverMultistepScheduler
    computes it with `use_flow_sigmas`. The noise levels that the model is told are rounded down to
    thousandths, as there.
    """

    def __init__(self, steps: int, shift: float) -> None:
        self._scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
        self._scheduler.set_timesteps(steps)
        self.levels = [level / 1000 for level in self._scheduler.timesteps.tolist()]

    def step(self, index: int, x_BCHW: Tensor, velocity_BCHW: Tensor) -> Tensor:
        timestep = self._scheduler.timesteps[index]
        x: Tensor = self._scheduler.step(velocity_BCHW, timestep, x_BCHW, return_dict=False)[0]
        return x


def multistep_solver(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, mu: float | None
) -> MultistepSolver:
    """The solver with the shift of a teacher's own scheduler; `mu` is its dynamic shift.

    Raises ConfigError for noise levels that are more than shifted, which the solver does not know.
    """
    config = scheduler.config
    for name in _NOT_A_SHIFT:
        if config.get(name):
            raise ConfigError(
                f"synthesize.sampler: dpmpp_2m supports only a shift, but the teacher's scheduler "
                f"has {name}; set synthesize.sampler to euler"
            )
    if mu is None:
        return MultistepSolver(steps, config.shift)
    return MultistepSolver(steps, math.exp(mu) if config.time_shift_type == "exponential" else mu)


_NOT_A_SHIFT = (
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
