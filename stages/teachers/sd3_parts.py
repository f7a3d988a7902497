"""Operations, parameters and memory of the parts of a Stable Diffusion 3 pipeline beside its
transformer, from their config.json files. Imports no torch.

A multiply-add counts as two operations; norms, activations and softmax are left out, as in
`torch.utils.flop_counter`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Settings = dict[str, Any]
"""The content of a config.json."""
_DECODING_BYTES = 24
"""Of memory for each pixel and channel of the autoencoder's first block, while it decodes: 3.2 GB
for 1024 x 1024 pixels and 128 channels (docs/gpu-results.md).
"""


def clip_flops(encoder: Settings, tokens: int) -> float:
    """Operations that a CLIP text encoder takes for one prompt, padded to `tokens`."""
    width, layers = encoder["hidden_size"], encoder["num_hidden_layers"]
    per_token = 4 * width**2 + 2 * width * encoder["intermediate_size"]
    attention = 4 * tokens**2 * width
    projection = 2 * width * encoder.get("projection_dim", width)
    return float(layers * (2 * per_token * tokens + attention) + projection)


def clip_parameters(encoder: Settings) -> int:
    """Weights of a CLIP text encoder, without biases and norms."""
    width, layers = encoder["hidden_size"], encoder["num_hidden_layers"]
    per_layer = 4 * width**2 + 2 * width * encoder["intermediate_size"]
    rows = encoder.get("vocab_size", 0) + encoder.get("max_position_embeddings", 0)
    return int(layers * per_layer + width * (rows + encoder.get("projection_dim", width)))


def t5_flops(encoder: Settings, tokens: int) -> float:
    """Operations that T5's encoder takes for one prompt, padded to `tokens`."""
    inner = encoder["num_heads"] * encoder["d_kv"]
    return float(encoder["num_layers"] * (2 * _t5_layer(encoder) * tokens + 4 * tokens**2 * inner))


def t5_parameters(encoder: Settings) -> int:
    """Weights of T5's encoder, without norms."""
    words = encoder["vocab_size"] * encoder["d_model"]
    return int(encoder["num_layers"] * _t5_layer(encoder) + words)


def _t5_layer(encoder: Settings) -> int:
    """Weights of a layer."""
    width, inner = encoder["d_model"], encoder["num_heads"] * encoder["d_kv"]
    is_gated = str(encoder.get("feed_forward_proj", "relu")).startswith("gated")
    return int(width * (4 * inner + (3 if is_gated else 2) * encoder["d_ff"]))


def decoding_flops(vae: Settings, rows: int, columns: int) -> float:
    """Operations that decode latents of rows x columns."""
    widths = list(vae["block_out_channels"])
    work = _convolution(rows * columns, vae["latent_channels"], widths[-1])
    work += _middle(vae, rows * columns)
    if vae.get("use_post_quant_conv"):
        work += _convolution(rows * columns, *2 * (vae["latent_channels"],), side=1)
    places, before = rows * columns, widths[-1]
    for number, width in enumerate(reversed(widths)):
        for layer in range(vae["layers_per_block"] + 1):
            work += _residual(places, before if layer == 0 else width, width)
        if number < len(widths) - 1:
            places *= 4
            work += _convolution(places, width, width)
        before = width
    return float(work + _convolution(places, widths[0], 3))


def encoding_flops(vae: Settings, rows: int, columns: int) -> float:
    """Operations that encode a picture to latents of rows x columns."""
    widths = list(vae["block_out_channels"])
    places = rows * columns * 4 ** (len(widths) - 1)
    work = _convolution(places, 3, widths[0])
    before = widths[0]
    for number, width in enumerate(widths):
        for layer in range(vae["layers_per_block"]):
            work += _residual(places, before if layer == 0 else width, width)
        if number < len(widths) - 1:
            places //= 4
            work += _convolution(places, width, width)
        before = width
    moments = 2 * vae["latent_channels"]
    if vae.get("use_quant_conv"):
        work += _convolution(places, moments, moments, side=1)
    return float(work + _middle(vae, places) + _convolution(places, widths[-1], moments))


def autoencoder_parameters(vae: Settings) -> int:
    """Weights of the autoencoder's convolutions and of the attention in its middle, without biases
    and norms.
    """
    return sum(inputs * outputs * side**2 for inputs, outputs, side in _kernels(vae))


def decoding_bytes(vae: Settings, pixels: int) -> int:
    """Memory that decoding a picture of so many pixels takes, beside the weights."""
    return int(_DECODING_BYTES * vae["block_out_channels"][0] * pixels)


def _convolution(places: int, inputs: int, outputs: int, side: int = 3) -> int:
    """Operations of a convolution with `places` outputs."""
    return 2 * places * inputs * outputs * side**2


def _residual(places: int, inputs: int, outputs: int) -> int:
    """Operations of two convolutions, and of one of 1 x 1 around them where the width changes."""
    work = _convolution(places, inputs, outputs) + _convolution(places, outputs, outputs)
    return work + (_convolution(places, inputs, outputs, side=1) if inputs != outputs else 0)


def _middle(vae: Settings, places: int) -> int:
    """Operations between the way down and the way up: two residuals, and attention around."""
    width = vae["block_out_channels"][-1]
    work = 2 * _residual(places, width, width)
    if vae.get("mid_block_add_attention", True):
        work += 8 * places * width**2 + 4 * places**2 * width
    return work


def _kernels(vae: Settings) -> Iterator[tuple[int, int, int]]:
    """Inputs, outputs and side of each kernel, encoder and decoder."""
    widths, latent = list(vae["block_out_channels"]), vae["latent_channels"]
    for ends in ((3, widths[0], 3), (widths[-1], 2 * latent, 3)):
        yield ends
    for ends in ((latent, widths[-1], 3), (widths[0], 3, 3)):
        yield ends
    ways = ((widths, vae["layers_per_block"]), (widths[::-1], vae["layers_per_block"] + 1))
    for order, layers in ways:
        before = order[0]
        for number, width in enumerate(order):
            for layer in range(layers):
                inputs = before if layer == 0 else width
                yield inputs, width, 3
                yield width, width, 3
                if inputs != width:
                    yield inputs, width, 1
            if number < len(order) - 1:
                yield width, width, 3
            before = width
        middle = widths[-1]
        for _ in range(4):
            yield middle, middle, 3
            if vae.get("mid_block_add_attention", True):
                yield middle, middle, 1
