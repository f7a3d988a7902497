"""Makes the tokenizer and trains the two CLIP text towers of the embedded teacher.

Each tower learns to encode what a caption states: its pooled embedding predicts the whole scene,
its penultimate hidden state at each noun predicts that object. SD3 feeds these two outputs to its
transformer.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from stages.shapes_world.captions import (
    BACKGROUNDS,
    COLORS,
    MAX_WORDS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    ObjectSpec,
    SceneSpec,
    phrase,
    sample_spec,
)
from stages.shapes_world.training_loop import run_training, step_rng

TOKENS = MAX_WORDS + 2
VOCABULARY = Path(__file__).with_name("vocabulary.json")
TOWER_WIDTHS = (64, 128)
_OBJECT_FIELDS = {"color": COLORS, "shape": SHAPES, "size": SIZES}


def build_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer with 16 tokens per text: one token for each word of the grammar, bytes
    for all other text.

    Its vocabulary is stored, not rebuilt: `tokenizers` breaks ties between merges at random, and
    trained towers do not work with other ids.
    """
    kept = json.loads(VOCABULARY.read_text())
    merges = [tuple(merge.split(" ")) for merge in kept["merges"]]
    return CLIPTokenizer(vocab=kept["vocab"], merges=merges, model_max_length=TOKENS)


def build_towers(tokenizer: CLIPTokenizer) -> list[CLIPTextModelWithProjection]:
    """Build two untrained text towers; their widths concatenate to SD3's joint width and pooled
    width (192).
    """
    return [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_hidden_layers=layers,
                num_attention_heads=width // 32,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        for width, layers in zip(TOWER_WIDTHS, (2, 3), strict=True)
    ]


class AttributeReader(nn.Module):
    """Linear read-outs that train a tower's embeddings to encode what a caption states; discarded
    after training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [len(values) + 1 for values in _OBJECT_FIELDS.values()]
        self.noun = nn.Linear(width, sum(sizes))
        self.scene = nn.Linear(
            width, 2 * sum(sizes) + sum(len(v) + 1 for v in (BACKGROUNDS, PLACES, RELATIONS)) + 1
        )

    def loss(
        self,
        tower: CLIPTextModelWithProjection,
        ids_BL: Tensor,
        specs: list[SceneSpec],
        noun_ids: Tensor,
    ) -> tuple[Tensor, float]:
        """Return the cross-entropy over all read-outs, and the share of captions with every pooled
        read-out right.
        """
        output = tower(input_ids=ids_BL, output_hidden_states=True)
        rows, columns = torch.isin(ids_BL, noun_ids).nonzero(as_tuple=True)
        nouns = self.noun(output.hidden_states[-2][rows, columns])
        named = torch.tensor([_object_labels(thing) for spec in specs for thing in spec.objects])
        noun_loss, _ = _grouped_loss(nouns, named, [len(v) + 1 for v in _OBJECT_FIELDS.values()])
        logits = self.scene(output.text_embeds)
        sizes = [len(v) + 1 for v in _OBJECT_FIELDS.values()] * 2 + [
            len(v) + 1 for v in (BACKGROUNDS, PLACES, RELATIONS)
        ]
        pair_logit, logits = logits[:, 0], logits[:, 1:]
        scene_loss, right = _grouped_loss(
            logits, torch.tensor([_scene_labels(spec) for spec in specs]), sizes
        )
        is_pair = torch.tensor([float(len(spec.objects) == 2) for spec in specs])
        return noun_loss + scene_loss + F.binary_cross_entropy_with_logits(
            pair_logit, is_pair
        ), right


def _object_labels(thing: ObjectSpec) -> list[int]:
    values = (thing.color, thing.shape, thing.size)
    return [
        0 if v is None else 1 + names.index(v)
        for v, names in zip(values, _OBJECT_FIELDS.values(), strict=True)
    ]


def _scene_labels(spec: SceneSpec) -> list[int]:
    second = _object_labels(spec.objects[1]) if len(spec.objects) == 2 else [0, 0, 0]
    fields = ((spec.background, BACKGROUNDS), (spec.place, PLACES), (spec.relation, RELATIONS))
    return (
        _object_labels(spec.objects[0])
        + second
        + [0 if v is None else 1 + n.index(v) for v, n in fields]
    )


def _grouped_loss(logits: Tensor, labels: Tensor, sizes: list[int]) -> tuple[Tensor, float]:
    parts = logits.split(sizes, dim=1)
    losses = [F.cross_entropy(part, labels[:, i]) for i, part in enumerate(parts)]
    right = torch.stack([part.argmax(1) == labels[:, i] for i, part in enumerate(parts)]).all(0)
    return torch.stack(losses).sum(), right.float().mean().item()


def train_text(
    folder: Path, *, steps: int, batch_size: int = 256, seed: int = 0
) -> tuple[CLIPTokenizer, list[CLIPTextModelWithProjection]]:
    """Train both towers on captions of the grammar, without pictures."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    towers = build_towers(tokenizer)
    readers = [AttributeReader(width) for width in TOWER_WIDTHS]
    nets = nn.ModuleList([*towers, *readers])
    optimizer = torch.optim.AdamW(nets.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-2)
    noun_ids = torch.tensor([tokenizer(n)["input_ids"][1] for n in (*SHAPES, "shape")])

    def update(step: int) -> dict[str, float]:
        rng, _ = step_rng(seed, step)
        specs, texts = captions(batch_size, rng)
        ids_BL = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 30, 0.02 + (1 - step / steps) / 0.6)
        results = [r.loss(t, ids_BL, specs, noun_ids) for r, t in zip(readers, towers, strict=True)]
        loss = sum(loss for loss, _ in results)
        assert isinstance(loss, Tensor)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item(), "right_1": results[0][1], "right_2": results[1][1]}

    run_training("text", folder, {"nets": nets, "optimizer": optimizer}, steps, update)
    return tokenizer, [tower.eval().requires_grad_(False) for tower in towers]


def captions(count: int, rng: random.Random) -> tuple[list[SceneSpec], list[str]]:
    specs = [sample_spec(rng) for _ in range(count)]
    return specs, [phrase(spec, rng) for spec in specs]
