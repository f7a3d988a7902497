"""Layers and parameters of SD3's transformer, counted from its `config.json`. Imports no torch.

D is the width of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def block_width(transformer: dict[str, Any]) -> int:
    """D, of the transformer that a `transformer/config.json` describes."""
    return int(transformer["num_attention_heads"] * transformer["attention_head_dim"])


def linear_layers(transformer: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of every linear layer of the transformer that a
    `transformer/config.json` describes.
    """
    width, blocks = block_width(transformer), transformer["num_layers"]
    for name, inputs in (
        ("time_text_embed.timestep_embedder", 256),
        ("time_text_embed.text_embedder", transformer["pooled_projection_dim"]),
    ):
        yield f"{name}.linear_1", inputs, width
        yield f"{name}.linear_2", width, width
    yield "context_embedder", transformer["joint_attention_dim"], width
    for number in range(blocks):
        block, last = f"transformer_blocks.{number}", number == blocks - 1
        dual = number in (transformer.get("dual_attention_layers") or ())
        yield f"{block}.norm1.linear", width, (9 if dual else 6) * width
        yield f"{block}.norm1_context.linear", width, (2 if last else 6) * width
        attention = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
        attention += ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]
        attention += [] if last else ["attn.to_add_out"]
        attention += [f"attn2.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0") if dual]
        for name in attention:
            yield f"{block}.{name}", width, width
        for name in ["ff"] if last else ["ff", "ff_context"]:
            yield f"{block}.{name}.net.0.proj", width, 4 * width
            yield f"{block}.{name}.net.2", 4 * width, width
    yield "norm_out.linear", width, 2 * width
    yield "proj_out", width, transformer["patch_size"] ** 2 * transformer["out_channels"]


def parameters(transformer: dict[str, Any]) -> int:
    """Number of parameters of the transformer that a `transformer/config.json` describes."""
    width, blocks = block_width(transformer), transformer["num_layers"]
    patch = transformer["patch_size"] ** 2 * transformer["in_channels"]
    dual = len(transformer.get("dual_attention_layers") or ())
    norms = 0
    if transformer.get("qk_norm") is not None:
        norms = (4 * blocks + 2 * dual) * transformer["attention_head_dim"]
    linear = sum(inputs * outputs + outputs for _, inputs, outputs in linear_layers(transformer))
    return linear + patch * width + width + norms


def adapter_layers(
    transformer: dict[str, Any], rank: int, targets: list[str]
) -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of both layers of each low-rank adapter: on the layers whose names
    end in one of `targets`.
    """
    for name, inputs, outputs in linear_layers(transformer):
        if any(name == target or name.endswith(f".{target}") for target in targets):
            yield f"{name}.lora_A", inputs, rank
            yield f"{name}.lora_B", rank, outputs


def adapter_parameters(transformer: dict[str, Any], rank: int, targets: list[str]) -> int:
    """Number of parameters of these adapters."""
    layers = adapter_layers(transformer, rank, targets)
    return sum(inputs * outputs for _, inputs, outputs in layers)


def layers_in_blocks(transformer: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Those of `linear_layers` that are in blocks."""
    return (row for row in linear_layers(transformer) if row[0].startswith("transformer_blocks."))
