"""What the JSON files of published Stable Diffusion 3 models say of their geometry, for estimates
before a model is on this machine. Imports no torch.
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, dict[str, Any]]
"""The content of a folder's JSON files that matters for its costs, by path."""


def transformer(layers: int, table: int, dual: int = 0, *, qk_norm: bool) -> dict[str, Any]:
    """Return what a `transformer/config.json` says: of this many blocks, as many attention heads,
    `dual` blocks with a second attention, and a table of positions of this side.
    """
    return {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "num_attention_heads": layers,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": table,
        "qk_norm": "rms_norm" if qk_norm else None,
        "dual_attention_layers": list(range(dual)),
    }


TRANSFORMERS = {
    "stabilityai/stable-diffusion-3-medium-diffusers": transformer(24, 192, qk_norm=False),
    "stabilityai/stable-diffusion-3.5-medium": transformer(24, 384, 13, qk_norm=True),
    "stabilityai/stable-diffusion-3.5-large": transformer(38, 192, qk_norm=True),
}

OTHERS: Settings = {
    "vae/config.json": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "mid_block_add_attention": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "text_encoder/config.json": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
    "text_encoder_2/config.json": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
    "text_encoder_3/config.json": {
        "d_model": 4096,
        "d_kv": 64,
        "num_heads": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
    },
    "tokenizer/tokenizer_config.json": {"model_max_length": 77},
}
"""Which all of them have in common."""


def published(model: str) -> Settings | None:
    """Return the settings of a published model, or None for another."""
    found = TRANSFORMERS.get(model)
    return None if found is None else {"transformer/config.json": found, **OTHERS}
