"""The ten silent bugs of LADD.md: in which file, what is right, and what is wrong."""

from __future__ import annotations

UPDATE, SAMPLING = "stages/ladd/update.py", "stages/ladd/sampling.py"
BUGS = [
    ("01", SAMPLING, "list(sigmas[:-1])", "list(sigmas[:-2])"),
    (
        "02",
        "stages/synthesize.py",
        "self.teacher.device, self.config, self.ahead\n",
        "self.teacher.device, self.config.at(guidance_scale=1.0), self.ahead\n",
    ),
    (
        "03",
        UPDATE,
        "velocity = nets.student.velocity(x_t,",
        "velocity = nets.student.velocity(draws.student_noise_BCHW,",
    ),
    (
        "04",
        UPDATE,
        "fake = clean_estimate(x_t, velocity, draws.student_sigma_B)",
        "fake = velocity",
    ),
    ("05", "stages/teachers/sd3.py", "(mean - self._vae.config.shift_factor)", "mean"),
    ("06", UPDATE, "add_noise(fake, draws.renoise", "add_noise(fake.detach(), draws.renoise"),
    (
        "07",
        "stages/teachers/sd3_backbone.py",
        "unflatten(2, (rows, columns))",
        "unflatten(2, (columns, rows))",
    ),
    (
        "08",
        "stages/teachers/sd3_backbone.py",
        "        maps = []\n",
        "        maps = []\n"
        "        for b in net.transformer_blocks:\n"
        "            b.register_forward_hook(lambda m, a, o: maps.append(o[1]))\n",
    ),
    (
        "09",
        "stages/pictures/sample_grids.py",
        "        with self.average.shown_by(self.student):\n",
        "        if True:\n",
    ),
    ("10", "stages/ladd/flow.py", "draw_seed(seed, step, slot)", "draw_seed(seed, step, 0)"),
]
