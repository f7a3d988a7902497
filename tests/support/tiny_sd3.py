"""The classes of SD3 at tiny width with random weights, and configurations of the whole graph on
them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from schemas.config import PipelineConfig


def tiny_transformer(
    *,
    dual: tuple[int, ...] = (),
    qk_norm: str | None = "rms_norm",
    layers: int = 3,
    width: int = 16,
):
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=width // 2,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=width,
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


ALONE = {"workers": 1}
"""A pool of the stage's own process: actors take longer to start than such small work takes."""


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
        "synthesize": {
            "steps": 2,
            "guidance_scale": 3.0,
            "micro_batch": 4,
            "flat_below": 0.0,
            "pool": ALONE,
        },
        "encode": {"pool": ALONE},
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
        "pairs": {"reward": {"name": "layout"}, "pool": ALONE},
        "dpo": {"chooser": {"name": "attributes"}},
        "eval": {
            "scores": [{"name": "attributes"}],
            "features": {"name": "judge_features"},
            "pool": ALONE,
        },
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values} if isinstance(values, dict) else values
    return PipelineConfig.model_validate(content)


def write_config(folder: Path, model: Path, store: Path, **sections) -> Path:
    """A configuration file in a folder."""
    path = folder / "pipeline.yaml"
    path.write_text(
        yaml.safe_dump(make_tiny_config(model, store, **sections).model_dump(mode="json"))
    )
    return path
