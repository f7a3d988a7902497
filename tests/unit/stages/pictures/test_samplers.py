"""The teacher's sampler equals stock diffusers with the same arguments, option by option."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusion3Pipeline
from diffusers.callbacks import SD3CFGCutoffCallback

from schemas.bucket import Bucket
from schemas.config import SynthesizeConfig, TeacherConfig
from schemas.errors import ConfigError
from stages.ladd.sampling import initial_noise
from stages.pictures.samplers import guidance_scale_of, remembering, teacher_sampler
from stages.teachers import open_teacher

STEPS, SCALE = 6, 4.0
MOST = 1e-5
"""The largest difference of latents (deviation about 1) that counts as equal, in float32."""
SKIP = {"layers": [0, 2], "scale": 2.5, "start": 0.1, "stop": 0.7}
STOCK_SKIP = {
    "skip_guidance_layers": SKIP["layers"],
    "skip_layer_guidance_scale": SKIP["scale"],
    "skip_layer_guidance_start": SKIP["start"],
    "skip_layer_guidance_stop": SKIP["stop"],
}
NEGATIVE = {"negative_prompt": "a blue square"}
OPTIONS = {
    "euler": ({}, {}),
    "no guidance": ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
    "dpmpp_2m": ({"sampler": "dpmpp_2m"}, {}),
    "negative prompt": (NEGATIVE, NEGATIVE),
    "skip-layer guidance": ({"skip_layer_guidance": SKIP}, STOCK_SKIP),
    "all at once": (
        {"sampler": "dpmpp_2m", "skip_layer_guidance": SKIP, **NEGATIVE},
        {**STOCK_SKIP, **NEGATIVE},
    ),
}


@pytest.fixture(scope="module", params=["tiny_sd3", "tiny_sd35_t5"])
def models(request):
    """A teacher and the stock pipeline of the same folder: SD3 without T5; SD3.5 with it."""
    folder, has_t5 = request.getfixturevalue(request.param), request.param.endswith("t5")
    config = TeacherConfig(
        model=str(folder), dtype="float32", use_t5=has_t5, max_sequence_length=12
    )
    absent = {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    return open_teacher(config), pipe


def sample(seed):
    return {"prompt": "a red circle", "seed": seed, "width": 48, "height": 32}


def making(**options):
    return SynthesizeConfig(**{"steps": STEPS, "guidance_scale": SCALE, **options})


def ours(teacher, how, seeds=(3,)):
    draw = teacher_sampler(teacher, teacher.backbone(), torch.device("cpu"), how)
    return draw([sample(seed) for seed in seeds])


def stock(models, how, seed=3, **arguments):
    teacher, pipe = models
    if how.sampler == "dpmpp_2m":
        pipe = StableDiffusion3Pipeline(**pipe.components)
        pipe.set_progress_bar_config(disable=True)
        config = pipe.scheduler.config
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            config,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=config.shift,
        )
    wanted = {"guidance_scale": SCALE, **arguments}
    noise, _ = initial_noise([seed], teacher.latent_shape(Bucket(48, 32)))
    return pipe(
        "a red circle",
        height=32,
        width=48,
        num_inference_steps=STEPS,
        latents=noise,
        max_sequence_length=12,
        output_type="latent",
        **wanted,
    ).images


def must_be_equal(name, found, expected):
    difference = (found - expected).abs().max().item()
    print(f"{name}: latents of deviation {expected.std():.2f} differ by at most {difference:.1e}")
    assert difference <= MOST


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_equals_the_stock_pipeline(name, models):
    options, arguments = OPTIONS[name]
    how = making(**options)
    must_be_equal(name, ours(models[0], how), stock(models, how, **arguments))


def test_a_guidance_interval_equals_a_stock_pipeline_that_changes_its_scale(models):
    """Stock has no interval: the scale is 1 + 1e-7, in the callback of step 1 the wanted one, and
    diffusers' own callback turns guidance off after step 4.
    """
    how = making(guidance_start=0.34, guidance_stop=0.84, skip_layer_guidance=SKIP)
    assert list(how.guided_steps) == [2, 3, 4] and how.skip_layer_steps == [2, 3, 4]
    cutoff = SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=4)

    def change(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = SCALE
        return cutoff(pipe, step, timestep, tensors)

    expected = stock(
        models,
        how,
        guidance_scale=1 + 1e-7,
        callback_on_step_end=change,
        callback_on_step_end_tensor_inputs=cutoff.tensor_inputs,
        **{**STOCK_SKIP, "skip_layer_guidance_start": 0.2},
    )
    must_be_equal("guidance interval", ours(models[0], how), expected)


def test_a_range_gives_each_picture_the_scale_of_its_seed(models):
    how, seeds = making(guidance_range=[2.0, 9.0]), (3, 4)
    scales = [guidance_scale_of(sample(seed), how) for seed in seeds]
    assert all(2 <= scale < 9 for scale in scales) and abs(scales[0] - scales[1]) > 0.5
    together = ours(models[0], how, seeds)
    alone = [
        stock(models, how, seed, guidance_scale=scale)
        for seed, scale in zip(seeds, scales, strict=True)
    ]
    must_be_equal("guidance range", together, torch.cat(alone))


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"guidance_scale": 1.0}, 6),
        ({}, 12),
        ({"guidance_start": 0.34, "guidance_stop": 0.84}, 9),
        ({"guidance_stop": 0.5, "skip_layer_guidance": SKIP}, 11),
    ],
)
def test_only_the_passes_that_are_needed_are_computed(options, passes, tiny_teacher, monkeypatch):
    how, rows, backbone = making(**options), [], tiny_teacher.backbone()
    velocity = backbone.velocity

    def counted(x, *arguments, **keywords):
        rows.append(len(x))
        return velocity(x, *arguments, **keywords)

    monkeypatch.setattr(backbone, "velocity", counted)
    teacher_sampler(tiny_teacher, backbone, torch.device("cpu"), how)([sample(3)])
    assert (sum(rows), how.passes) == (passes, passes)


def test_a_block_that_the_teacher_does_not_have_is_refused(tiny_teacher):
    how = making(skip_layer_guidance={"layers": [3]})
    with pytest.raises(ConfigError, match=r"layers: the teacher has no block 3, its blocks are 0"):
        ours(tiny_teacher, how)


def test_prompts_that_come_again_are_not_encoded_again(tiny_teacher):
    encoded, how, backbone = [], making(), tiny_teacher.backbone()

    def encode(prompts):
        encoded.append(list(prompts))
        return tiny_teacher.encode_prompts(prompts)

    encode_once = remembering(encode)
    plain = teacher_sampler(tiny_teacher, backbone, torch.device("cpu"), how)([sample(3)])
    for _ in range(2):
        draw = teacher_sampler(tiny_teacher, backbone, torch.device("cpu"), how, encode_once)
        assert torch.equal(draw([sample(3)]), plain)
    assert encoded == [[""], ["a red circle"]]
