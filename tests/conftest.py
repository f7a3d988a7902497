"""Fixtures: a complete tiny SD3 pipeline with random weights, and ready-made configurations."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray gives way to all else on the machine; beside another test process its workers would starve.
os.environ.setdefault("RAY_worker_niceness", "0")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from schemas.config import PipelineConfig, TeacherConfig

if "PYTEST_XDIST_WORKER" not in os.environ:
    torch.set_num_threads(2)


def tiny_transformer(
    *, dual: tuple[int, ...] = (), qk_norm: str | None = "rms_norm", layers: int = 3
):
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=16,
        qk_norm=qk_norm,
        dual_attention_layers=dual,
    )


def build_pipeline(
    folder: Path, *, t5: bool, dual: tuple[int, ...] = (), qk_norm: str | None = "rms_norm"
) -> Path:
    """The classes of SD3 at tiny width: two CLIP towers, T5 on demand, VAE of factor 4."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        PreTrainedTokenizerFast,
        T5Config,
        T5EncoderModel,
    )

    from stages.shapes_world.train_text import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()

    def tower(width: int) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                projection_dim=width,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    third = third_tokenizer = None
    if t5:
        words = Tokenizer(
            models.WordLevel(
                {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4}, unk_token="<unk>"
            )
        )
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        third_tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
        third = T5EncoderModel(
            T5Config(vocab_size=8, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
    StableDiffusion3Pipeline(
        transformer=tiny_transformer(dual=dual, qk_norm=qk_norm),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.06,
            scaling_factor=1.5,
        ),
        text_encoder=tower(8),
        tokenizer=tokenizer,
        text_encoder_2=tower(16),
        tokenizer_2=tokenizer,
        text_encoder_3=third,
        tokenizer_3=third_tokenizer,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory) -> Path:
    """An SD3 folder without T5."""
    return build_pipeline(tmp_path_factory.mktemp("tiny-sd3"), t5=False)


@pytest.fixture(scope="session")
def tiny_sd35_t5(tmp_path_factory) -> Path:
    """An SD3.5 folder (dual attention, QK norm) with all three text encoders."""
    return build_pipeline(tmp_path_factory.mktemp("tiny-sd35"), t5=True, dual=(0, 1))


@pytest.fixture
def tiny_teacher(tiny_sd3):
    from stages.teachers import open_teacher

    return open_teacher(TeacherConfig(model=str(tiny_sd3), dtype="float32", use_t5=False))


@pytest.fixture
def tiny_config(tiny_sd3, tmp_path) -> PipelineConfig:
    """The whole graph on the tiny teacher, with a store in a temporary folder."""
    return make_tiny_config(tiny_sd3, tmp_path / "store")


def make_tiny_config(model: Path, store: Path, **sections) -> PipelineConfig:
    content = {
        "name": "tiny",
        "store": str(store),
        "teacher": {"family": "sd3", "model": str(model), "dtype": "float32", "use_t5": False},
        "prompts": {
            "sources": [{"kind": "grammar"}],
            "count": 40,
            "held_out_fraction": 0.2,
            "near_duplicates": None,
            "buckets": {"32x32": 1, "48x16": 1},
            "samples_per_shard": 4,
        },
        "synthesize": {"steps": 2, "guidance_scale": 3.0, "micro_batch": 4, "flat_below": 0.0},
        "distill": {
            "steps": 4,
            "global_batch": 4,
            "precision": "float32",
            "ema_decay": 0.9,
            "checkpoint_every": 2,
            "sample_every": 2,
            "sample_prompts": 2,
            "log_every": 1,
            "student_time": {"warmup_steps": 1},
            "discriminator": {"channels": 8, "head_start_steps": 1},
        },
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values} if isinstance(values, dict) else values
    return PipelineConfig.model_validate(content)


@pytest.fixture(scope="module")
def endpoint():
    """A real S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """The URL of an empty store there; the credentials are in the environment."""
    import s3fs

    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(endpoint_url=endpoint).mkdir(name)
    yield f"s3://{name}/prefix"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def tiny_backbones():
    """Student and frozen teacher with different weights, float32, 3 blocks of width 16."""
    from stages.teachers.sd3_backbone import SD3Backbone

    teacher = SD3Backbone(tiny_transformer()).requires_grad_(False)
    student = SD3Backbone(tiny_transformer())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student, teacher


@pytest.fixture
def tiny_batch():
    """Latents of a bucket that is not square, and their conditioning."""
    from stages.ladd.backbone import Conditioning

    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(4, 4, 8, 12, generator=generator)
    tokens = torch.randn(4, 5, 24, generator=generator)
    return latents, Conditioning(tokens, torch.randn(4, 24, generator=generator), null_tokens=7)


def map_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """`map_shards` as on a laptop of one core, without Ray."""
    from pipeline.base import mapping

    patch.setattr(mapping, "_demand", lambda pool: (1.0, 0.0))
    patch.setattr(mapping, "_pool_size", lambda cpus, gpus: 1)
