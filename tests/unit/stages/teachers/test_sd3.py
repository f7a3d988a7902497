"""The SD3 family against stock diffusers: geometry, embeddings, latents, schedulers, all text
encoders.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from schemas.bucket import Bucket
from schemas.config import TeacherConfig
from schemas.errors import ConfigError
from stages.ladd.sampling import Euler, Guidance, initial_noise, sample_flow
from stages.teachers import open_teacher


def test_teacher_folder_without_a_transformer(refused, tiny_sd3, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_sd3, broken)
    shutil.rmtree(broken / "transformer")
    code, text = refused(teacher={"model": str(broken)})
    assert code == 2, text
    assert f"{broken} has no folder 'transformer'" in text


def test_bucket_that_does_not_fit_the_teacher(refused):
    code, text = refused(prompts={"buckets": {"32x32": 1, "44x20": 1}})
    assert code == 2, text
    assert (
        "bucket 44x20 does not fit the teacher: both sides must be divisible by 8" in text
        and "use 48x16" in text
    )


@pytest.mark.parametrize("name", ["tiny_sd3", "tiny_sd35_t5"])
def test_sampling_equals_the_stock_pipeline(name, request):
    """Prompt encoding, sigmas, guidance and decoding together: the same picture as diffusers' own
    pipeline.
    """
    folder = request.getfixturevalue(name)
    has_t5 = name.endswith("t5")
    teacher = open_teacher(
        TeacherConfig(model=str(folder), dtype="float32", use_t5=has_t5, max_sequence_length=12)
    )
    assert teacher.has_t5 is has_t5
    bucket = Bucket(48, 32)
    noise, _ = initial_noise([3], teacher.latent_shape(bucket))
    told, untold = teacher.encode_prompts(["a red circle"]), teacher.encode_prompts([""])
    assert told.null_tokens == (0 if has_t5 else 12)
    solver = Euler(teacher.sigmas(3, bucket))
    latents = sample_flow(teacher.backbone(), noise, told, solver, Guidance(untold, 4.0, range(3)))
    absent = {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "a red circle",
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=4.0,
        latents=noise.clone(),
        max_sequence_length=12,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-3)


def test_geometry_and_bucket_checks(tiny_teacher):
    assert (tiny_teacher.unit, tiny_teacher.vae_factor, tiny_teacher.latent_channels) == (8, 4, 4)
    assert tiny_teacher.latent_shape(Bucket(48, 32)) == (4, 8, 12)
    with pytest.raises(ConfigError, match=r"divisible by 8.*use 48x16"):
        tiny_teacher.check_bucket(Bucket(44, 20))
    with pytest.raises(ConfigError, match="larger than the teacher's position table: 128"):
        tiny_teacher.check_bucket(Bucket(256, 16))


def test_tokens_are_the_teachers_own(tiny_teacher):
    assert tiny_teacher.max_tokens == 14
    assert tiny_teacher.count_tokens(["a red circle", "", "zebra"]) == [3, 0, 5]
