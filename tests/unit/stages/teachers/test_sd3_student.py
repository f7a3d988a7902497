"""Students of the SD3 family in stock diffusers: noise levels, pictures, folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from schemas.bucket import Bucket
from schemas.config import DistillConfig, RenoiseConfig, StudentTimeConfig, TeacherConfig
from schemas.errors import ConfigError
from stages.ladd.flow import draw
from stages.ladd.grid import StudentGrid, shifted, step_counts, student_sigmas
from stages.ladd.sampling import initial_noise, sample_consistency
from stages.pictures.student import open_student
from stages.teachers import open_teacher
from stages.teachers.sd3_student import one_step_scheduler, student_grid, student_scheduler, usage
from stages.training.distill_loop import _on_teachers_scale
from tests.support.pairs import EVEN

UNEVEN = [1.0, 0.9, 0.6, 0.2]
TWO = StudentGrid((1.0, 0.5), terminal=0.5)


def time_of(grid: list[float], shift: float | None = None) -> StudentTimeConfig:
    equal = (1 / len(grid),) * len(grid)
    return StudentTimeConfig(
        grid=grid, shift=shift, probabilities=equal, warmup_probabilities=equal, warmup_steps=0
    )


def as_it_is(backbone) -> None:
    """Leave the weights that the student was made with."""


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.0])
def test_stock_diffusers_samples_at_exactly_the_levels_that_are_trained(
    shift, levels, tiny_teacher, tmp_path
):
    time = time_of([1 - i / levels for i in range(levels)], shift)
    grid = tiny_teacher.student_grid(time)
    student_scheduler(grid).save_pretrained(tmp_path)
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    assert step_counts(grid)[0] == levels
    for steps in step_counts(grid):
        scheduler = one_step_scheduler() if steps == 1 else stock
        scheduler.set_timesteps(steps)
        sampled = torch.tensor([*student_sigmas(grid, steps), 0.0])
        assert torch.equal(scheduler.sigmas, sampled)
    trained = _on_teachers_scale(DistillConfig(student_time=time), tiny_teacher)
    draws = draw(0, 0, range(100), (1, 1, 1), trained.student_time, trained.renoise, student_step=0)
    assert torch.equal(draws.student_sigma_B.unique().flip(0), torch.tensor(grid.levels))
    assert grid.levels[0] == 1.0
    assert grid.levels == pytest.approx([shifted(t, shift) for t in time.grid], abs=3e-3)


def test_empty_shifts_are_the_teachers(tiny_teacher):
    """Bug: take an empty shift for none; then all of it trains, and nothing is sharp at 1024 px."""
    assert tiny_teacher.shift == 3.0
    assert tiny_teacher.student_grid(StudentTimeConfig()).levels == pytest.approx(
        [1, 0.9, 0.75, 0.5], abs=1e-3
    )
    config = _on_teachers_scale(DistillConfig(), tiny_teacher)
    assert config.renoise.shift == 3.0 and config.renoise.mean == 1.0
    stated = DistillConfig(student_time={"shift": 1}, renoise=RenoiseConfig(shift=2))
    config = _on_teachers_scale(stated, tiny_teacher)
    assert config.student_time.grid == [1.0, 0.75, 0.5, 0.25] and config.renoise.shift == 2


def test_a_teacher_that_shifts_by_size_needs_stated_shifts(tiny_sd3, tmp_path):
    folder = Path(shutil.copytree(tiny_sd3, tmp_path / "teacher"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": True}))
    teacher = open_teacher(TeacherConfig(model=str(folder), use_t5=False, dtype="float32"))
    assert teacher.student_grid(StudentTimeConfig(shift=1)) == EVEN
    with pytest.raises(ConfigError, match=r"state distill.student_time.shift, .* and dpo.shift"):
        teacher.student_grid(StudentTimeConfig())


@pytest.mark.parametrize("grid", [[1.0, 0.75, 0.5, 0.25], UNEVEN], ids=["even", "uneven"])
def test_stock_diffusers_draws_what_our_sampler_draws(grid, tiny_teacher, tmp_path):
    """An even grid by its scheduler, any other by the pipeline's `sigmas`."""
    wanted = tiny_teacher.student_grid(time_of(grid))
    tiny_teacher.save_student(tmp_path, as_it_is, wanted)
    net, opened = open_student(tmp_path)
    assert opened.levels == pytest.approx(wanted.levels) and opened.shift == wanted.shift
    record = json.loads((tmp_path / "student.json").read_text())
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    told = tiny_teacher.encode_prompts(["a red circle"])
    shape = tiny_teacher.latent_shape(Bucket(48, 32))
    for steps in step_counts(opened):
        noise, generators = initial_noise([steps], shape)
        way = {"num_inference_steps": steps}
        if grid == UNEVEN:
            way = {"sigmas": record["sigmas"][str(steps)]}
        elif steps == 1:
            pipe.scheduler = one_step_scheduler()
        # The pipeline hands no generator to its scheduler: fresh noise is torch's own.
        torch.random.set_rng_state(generators[0].get_state())
        found = pipe(
            "a red circle", **way, height=32, width=48, guidance_scale=0, latents=noise.clone(),
            max_sequence_length=256, output_type="latent",
        ).images  # fmt: skip
        sigmas = student_sigmas(opened, steps)
        expected = sample_consistency(net, noise, told, sigmas, generators)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_card_says_how_an_uneven_grid_is_sampled():
    text = usage(student_grid(time_of(UNEVEN), 3.0), [2, 4, 1], with_t5=False)
    assert "pipe(prompt, sigmas=[1.0, 0.964286, 0.818182, 0.428571], guidance_scale=0)" in text
    assert "For 2 steps: `sigmas=[1.0, 0.428571]`." in text
    assert "For 1 step: `sigmas=[1.0]`." in text and "scheduler_one_step" not in text
    assert "num_inference_steps=4" in usage(EVEN, [1, 4], with_t5=False)
    assert "scheduler_one_step" in usage(EVEN, [1, 4], with_t5=False)


def test_a_student_saved_before_grids_were_shifted_opens(tiny_teacher, tmp_path):
    """What these two files held then."""
    tiny_teacher.save_student(tmp_path, as_it_is, StudentGrid((1.0,)))
    (tmp_path / "student.json").write_text('{"grid": [1.0, 0.75, 0.5, 0.25]}\n')
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0, stochastic_sampling=True, shift_terminal=0.25
    )
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert open_student(tmp_path)[1] == EVEN


def test_a_student_made_from_a_student_keeps_its_grid(tiny_teacher, tmp_path):
    """As `dpo` saves the tuned student."""
    grid = tiny_teacher.student_grid(StudentTimeConfig())
    tiny_teacher.save_student(tmp_path / "student", as_it_is, grid)
    teacher = open_teacher(
        TeacherConfig(model=str(tmp_path / "student"), use_t5=False, dtype="float32")
    )
    teacher.save_student(tmp_path / "tuned", as_it_is)
    for name in ("student.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / "tuned" / name).read_text() == (tmp_path / "student" / name).read_text()


def test_student_folder_is_complete_and_loads(tiny_teacher, tmp_path):
    with torch.no_grad():
        tiny_teacher.save_student(
            tmp_path / "m", lambda b: [p.zero_() for p in b.parameters()], TWO
        )
    pipe = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "m", text_encoder_3=None, tokenizer_3=None
    )
    assert all(p.abs().sum() == 0 for p in pipe.transformer.parameters())
    assert json.loads((tmp_path / "m" / "student.json").read_text()) == {"grid": [1.0, 0.5]}
    pipe.scheduler.set_timesteps(2)
    assert pipe.scheduler.sigmas.tolist() == pytest.approx([1, 0.5, 0])


def test_a_student_takes_along_only_what_the_pipeline_names(tiny_sd3, tmp_path):
    """SD3.5's folders hold the same weights up to four times."""
    model, student = tmp_path / "model", tmp_path / "student"
    shutil.copytree(tiny_sd3, model)
    weights = model / "text_encoder" / "model.safetensors"
    shutil.copy(weights, weights.with_name("model.fp16.safetensors"))
    shutil.copytree(model / "text_encoder", model / "text_encoders")
    teacher = open_teacher(TeacherConfig(family="sd3", model=str(model), use_t5=False))
    net = teacher.backbone()
    teacher.save_student(student, lambda new: new.load_state_dict(net.state_dict()), TWO)
    assert not (student / "text_encoders").exists()
    assert [path.name for path in (student / "text_encoder").glob("*.safetensors")] == [
        weights.name
    ]
