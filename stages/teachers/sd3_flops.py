"""Floating-point operations of a forward pass of SD3's transformer, from shapes only. Imports no
torch. Legend: N image tokens, L text tokens, D width.
"""

from __future__ import annotations

from typing import Any

from stages.teachers.sd3_layers import linear_layers

_OF_TEXT = (".add_", ".to_add_out", ".ff_context.")
_OF_SAMPLE = ("time_text_embed.", ".norm1.", ".norm1_context.", "norm_out.")
"""Layers that run once for each sample: embeddings of noise level and pooled text, modulation."""


def forward_flops(transformer: dict[str, Any], rows: int, columns: int, text: int) -> int:
    """Operations of the velocity of one sample with rows x columns image tokens and `text` text
    tokens, by the transformer that a `transformer/config.json` describes.

    Counts matrix products and convolutions, a multiply-add as two operations; norms, activations
    and softmax are left out, as in `torch.utils.flop_counter`.
    """
    image = rows * columns
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    dual = len(transformer.get("dual_attention_layers") or ())
    patches = image * transformer["patch_size"] ** 2 * transformer["in_channels"] * width
    linear = sum(
        _tokens(name, image, text) * inputs * outputs
        for name, inputs, outputs in linear_layers(transformer)
    )
    # Scores and their product with the values: two products each.
    joint = transformer["num_layers"] * (image + text) ** 2 * width
    of_image = dual * image**2 * width
    return 2 * (patches + linear) + 4 * (joint + of_image)


def _tokens(layer: str, image: int, text: int) -> int:
    """How many tokens of a sample go through a linear layer."""
    if any(part in layer for part in _OF_SAMPLE):
        return 1
    is_of_text = layer == "context_embedder" or any(part in layer for part in _OF_TEXT)
    return text if is_of_text else image
