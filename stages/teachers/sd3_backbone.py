"""SD3's transformer as a LADD `Backbone`, with the empty T5 rows folded into one token.

Without T5, SD3 appends 256 rows of zeros to the text, which has no positions: equal rows stay equal
through every block, and m of them act exactly as one with its attention logit raised by log(m).
Exact in float32, for SD3.5 too (dual attention, QK norm); several times cheaper for short
sequences. In bfloat16 log(256) rounds to 5.53125, so that one token weighs as much as 252.5 rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.ladd.backbone import Backbone, Conditioning
from stages.teachers.sd3_gelu import use_fast_gelu
from stages.teachers.sd3_lora import as_in_forward


class SD3Backbone(Backbone):
    """A `Backbone` around an `SD3Transformer2DModel`. Shares its parameters and gives the same
    results.
    """

    def __init__(
        self, transformer: SD3Transformer2DModel, *, checkpoint_blocks: bool = False
    ) -> None:
        super().__init__()
        transformer.set_attn_processor(FoldedJointAttention())
        use_fast_gelu(transformer)
        self.transformer = transformer
        self.checkpoint_blocks = checkpoint_blocks
        self.tap_widths = [transformer.inner_dim] * len(transformer.transformer_blocks)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]  # its name in the checkpoint
        return self.transformer.transformer_blocks

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    def velocity(
        self,
        latents_BCHW: Tensor,
        sigma_B: Tensor,
        conditioning: Conditioning,
        *,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        return self(
            latents_BCHW, sigma_B, conditioning, want_features=False, skip_layers=skip_layers
        )

    def features(
        self, latents_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning
    ) -> list[Tensor]:
        return self(latents_BCHW, sigma_B, conditioning, want_features=True)

    def forward(
        self,
        latents_BCHW: Tensor,
        sigma_B: Tensor,
        conditioning: Conditioning,
        *,
        want_features: bool,
        skip_layers: Collection[int] = (),
    ) -> Tensor | list[Tensor]:
        """One pass through the blocks. `velocity` and `features` both call this, so that wrappers
        (DDP, FSDP) see the call.
        """
        net = self.transformer
        patch = net.config.patch_size
        rows, columns = (side // patch for side in latents_BCHW.shape[-2:])
        image_BND = net.pos_embed(latents_BCHW).contiguous()
        temb_BD = net.time_text_embed(1000 * sigma_B, conditioning.pooled_BP)
        text_BLD, kwargs = self._text(conditioning, image_BND)
        maps = []
        for index, block in enumerate(net.transformer_blocks):
            if index in skip_layers:
                continue
            if self.checkpoint_blocks and torch.is_grad_enabled():
                text_BLD, image_BND = checkpoint(
                    block,
                    image_BND,
                    text_BLD,
                    temb_BD,
                    kwargs,
                    use_reentrant=False,
                    context_fn=partial(as_in_forward, block),
                )
            else:
                text_BLD, image_BND = block(image_BND, text_BLD, temb_BD, kwargs)
            if want_features:
                # Contiguous: a transposed view into GroupNorm crashes torch 2.13's CPU backward.
                maps.append(image_BND.transpose(1, 2).unflatten(2, (rows, columns)).contiguous())
        if want_features:
            return maps
        tokens = net.proj_out(net.norm_out(image_BND, temb_BD))
        tokens = tokens.view(-1, rows, columns, patch, patch, net.out_channels)
        return tokens.permute(0, 5, 1, 3, 2, 4).reshape(
            -1, net.out_channels, rows * patch, columns * patch
        )

    def _text(self, conditioning: Conditioning, image_BND: Tensor) -> tuple[Tensor, dict]:
        tokens = conditioning.tokens_BLD
        if conditioning.null_tokens == 0:
            return self.transformer.context_embedder(tokens), {}
        tokens = F.pad(tokens, (0, 0, 0, 1))
        bias = image_BND.new_zeros(1, 1, 1, image_BND.shape[1] + tokens.shape[1])
        bias[..., -1] = math.log(conditioning.null_tokens)
        return self.transformer.context_embedder(tokens), {"attention_mask": bias}


class FoldedJointAttention:
    """SD3's joint attention (Esser et al. 2024, section 4) with an optional additive bias over its
    keys.

    Equals diffusers' `JointAttnProcessor2_0` when no bias is given.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def split(x_BND: Tensor, norm: nn.Module | None) -> Tensor:
            x_BNHD = x_BND.unflatten(2, (attn.heads, -1))
            if norm is not None:
                x_BNHD = norm(x_BNHD).to(x_BND.dtype)  # under autocast, it may come in float32
            return x_BNHD.transpose(1, 2)

        query = split(attn.to_q(hidden_states), attn.norm_q)
        key = split(attn.to_k(hidden_states), attn.norm_k)
        value = split(attn.to_v(hidden_states), None)
        if encoder_hidden_states is None:
            attention_mask = None  # SD3.5's second attention sees only the image
        else:
            text_query = split(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)
            text_key = split(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)
            text_value = split(attn.add_v_proj(encoder_hidden_states), None)
            query = torch.cat([query, text_query], dim=2)
            key = torch.cat([key, text_key], dim=2)
            value = torch.cat([value, text_value], dim=2)
        mixed = _attend(query, key, value, attention_mask)

        def merge(x_BHND: Tensor) -> Tensor:
            return x_BHND.transpose(1, 2).flatten(2)

        if encoder_hidden_states is None:
            return attn.to_out[0](merge(mixed))
        # On a CPU, the parts are then copied one by one: linear layers are slow on views into both.
        image_BHND, text_BHND = mixed.split(
            [hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=2
        )
        text_BLD = merge(text_BHND)
        return attn.to_out[0](merge(image_BHND)), text_BLD if attn.context_pre_only else (
            attn.to_add_out(text_BLD)
        )


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention over (B, heads, N, D). Written out for the CPU, where the fused kernel's
    backward takes four times as long.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if bias is None else bias.to(query.dtype)
        )
    (batch, heads), scale = query.shape[:2], query.shape[-1] ** -0.5
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    if bias is None:
        scores = (query * scale) @ key.transpose(1, 2)
    else:
        added = bias.view(1, 1, -1).to(value.dtype)
        scores = torch.baddbmm(added, query, key.transpose(1, 2), alpha=scale)
    return (scores.softmax(-1) @ value).unflatten(0, (batch, heads))
