"""Memory of one update of LADD or of preference tuning on SD3's transformer, from shapes alone.
Imports no torch.

Counts the weights, their gradients, moments and average, and what autograd keeps for each layer
(tests/unit/stages/teachers/test_sd3_memory.py finds the same with `saved_tensors_hooks`), but not
text encoders, VAE and the program itself. Legend: N image tokens, L text tokens, D width.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from schemas.config import DiscriminatorConfig, DistillConfig, DpoConfig, PipelineConfig
from stages.ladd.batch_plan import mismatched_slots
from stages.teachers.sd3_layers import (
    adapter_layers,
    adapter_parameters,
    block_width,
    layers_in_blocks,
    linear_layers,
    parameters,
)

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CODING = 40
"""Temporary bytes per value while moments are quantised, where that is not compiled."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of the transformer's input in one update of one worker."""

    rows: int
    """Token rows of the largest bucket: latent height over patch size."""
    columns: int
    text: int
    """Text tokens; SD3's empty T5 rows count as one."""
    share: int
    """Samples per worker; pairs in preference tuning."""
    on_gpu: bool
    has_bfloat16: bool = True
    """Whether the device computes in bfloat16; if not, it computes in float32 instead."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker's device at the peak of an update."""

    weights: int
    """Of student, teacher and heads; with adapters, student and teacher have one copy."""
    average: int
    """Of the trained weights; in preference tuning, the adapters of the best look."""
    moments: int
    working: int
    """Gradients and activations that exist at the same time."""

    @property
    def total(self) -> int:
        return self.weights + self.average + self.moments + self.working


def training_memory(
    config: PipelineConfig, transformer: dict[str, Any], vae_factor: int, text_tokens: int
) -> int:
    """Total bytes of `update_memory` for a configuration, from the content of the teacher's
    `transformer/config.json`, the pixels per latent, and the text tokens of a pass.

    Raises ValueError or KeyError where that is incomplete.
    """
    shapes = _shapes(config, config.distill, transformer["patch_size"] * vae_factor, text_tokens)
    return update_memory(transformer, config.frozen_dtype, config.distill, shapes).total


def tuning_memory(
    config: PipelineConfig, transformer: dict[str, Any], vae_factor: int, text_tokens: int
) -> int:
    """Total bytes of `tuning_update_memory`; else as `training_memory`."""
    shapes = _shapes(config, config.dpo, transformer["patch_size"] * vae_factor, text_tokens)
    return tuning_update_memory(transformer, config.dpo, shapes).total


def _shapes(
    config: PipelineConfig, training: DistillConfig | DpoConfig, unit: int, text_tokens: int
) -> Shapes:
    """Shapes of an update on the largest bucket; `unit` is pixels per token."""
    largest = max(config.prompts.bucket_list(), key=lambda bucket: bucket.width * bucket.height)
    on_gpu = _expects_gpu(config, training)
    return Shapes(
        rows=largest.height // unit,
        columns=largest.width // unit,
        text=text_tokens,
        share=-(-training.global_batch // training.workers),
        on_gpu=on_gpu,
        has_bfloat16=on_gpu or _cpu_has_bfloat16(),
    )


def _expects_gpu(config: PipelineConfig, training: DistillConfig | DpoConfig) -> bool:
    """Whether the workers will probably have GPUs, as `costs` says, or judged from this machine."""
    if training.use_gpu is not None:
        return training.use_gpu
    if config.costs.device is not None:
        return config.costs.device != "cpu"
    return config.ray.is_joined or shutil.which("nvidia-smi") is not None


def _cpu_has_bfloat16() -> bool:
    """`stages.ladd.precision.cpu_has_bfloat16` without torch, for Linux on x86; elsewhere True."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    is_x86 = "GenuineIntel" in flags or "AuthenticAMD" in flags
    return not is_x86 or "avx512_bf16" in flags or "amx_bf16" in flags


def head_parameters(transformer: dict[str, Any], discriminator: DiscriminatorConfig) -> int:
    """Number of parameters of the discriminator's heads."""
    width, pooled = block_width(transformer), transformer["pooled_projection_dim"]
    channels = discriminator.channels
    convolutions = 9 * (width + channels) * channels + 3 * channels + 1
    norms = 4 * channels + (0 if discriminator.standardized else 2 * width)
    condition = (pooled + 32 + channels + 2) * channels if discriminator.conditioned else 0
    return _heads(transformer, discriminator) * (convolutions + norms + condition)


def frozen_bytes(transformer: dict[str, Any], dtype: str, distill: DistillConfig) -> int:
    """Bytes of a frozen transformer in `dtype`, with the linear layers of its blocks quantised
    where `frozen_weights` says so.
    """
    number = _BYTES[dtype]
    if distill.frozen_weights == "full":
        return number * parameters(transformer)
    saved = sum(
        (number - 1) * inputs * outputs - 4 * outputs
        for _, inputs, outputs in layers_in_blocks(transformer)
    )
    return number * parameters(transformer) - saved


def update_memory(
    transformer: dict[str, Any], teacher_dtype: str, distill: DistillConfig, shapes: Shapes
) -> Memory:
    """Memory of an update on each worker, after the first update (which makes the moments)."""
    if not shapes.has_bfloat16:
        teacher_dtype = "float32"
    trained, shards = parameters(transformer), distill.shard_over
    table = _table(transformer)
    tables, shares_base = table * (4 + _BYTES[teacher_dtype]), distill.lora is not None
    if distill.lora is not None:
        trained = adapter_parameters(transformer, distill.lora.rank, distill.lora.targets)
        tables = table * _BYTES[teacher_dtype]
    heads = head_parameters(transformer, distill.discriminator)
    frozen = frozen_bytes(transformer, teacher_dtype, distill)
    frozen //= shards if distill.shard_teacher or shares_base else 1
    away = distill.ema_device == "cpu" and shapes.on_gpu
    # In 8 bits, 256 values share a float32 scale.
    moment = 1 + 4 / 256 if distill.optimizer_bits == 8 else 4
    return Memory(
        weights=4 * (trained // shards + heads) + frozen + tables,
        average=0 if away else 4 * trained // shards,
        moments=int(2 * moment * trained) // shards + 8 * heads,
        working=_Working(transformer, teacher_dtype, distill, shapes).most(
            4 * trained // shards, 4 * heads
        ),
    )


def tuning_update_memory(transformer: dict[str, Any], dpo: DpoConfig, shapes: Shapes) -> Memory:
    """Memory of an update of `DpoTrainer` on each worker, after the first."""
    is_low = dpo.precision == "bfloat16" and shapes.has_bfloat16
    number = 2 if is_low else 4
    base = number * (parameters(transformer) + _table(transformer))
    adapters = 4 * adapter_parameters(transformer, dpo.lora.rank, dpo.lora.targets)
    micro_batch = dpo.micro_batch or shapes.share
    activations = _Activations(transformer, shapes, 2 * micro_batch, is_low=is_low)
    blocks = activations.blocks("adapted")
    # 1. The backward pass begins; the adapters' copies in low precision are still there.
    begin = blocks.all + (adapters // 2 if is_low else 0)
    if dpo.checkpoint_blocks:
        begin = activations.checkpoints + blocks.block + blocks.passing
    if micro_batch < shapes.share:
        begin += adapters  # gradients of earlier micro-batches
    # 2. It ends at the first block; nearly all gradients are in memory.
    end = adapters + blocks.block + blocks.passing
    text = 2 * micro_batch * shapes.text * transformer["joint_attention_dim"]
    inputs = 10 * activations.latents + 4 * text
    return Memory(
        weights=base + adapters,
        average=adapters,
        moments=2 * adapters,
        working=max(begin, end) + inputs,
    )


class _Working:
    """Activations, gradients and weight copies at each moment that may be the peak."""

    def __init__(
        self,
        transformer: dict[str, Any],
        teacher_dtype: str,
        distill: DistillConfig,
        shapes: Shapes,
    ) -> None:
        self.transformer, self.distill, self.shapes = transformer, distill, shapes
        self.batch = distill.micro_batch or shapes.share
        self.is_low = distill.precision == "bfloat16" and shapes.has_bfloat16
        self.number = 2 if self.is_low else 4
        """Bytes per element of an activation."""
        self.is_quantized = distill.frozen_weights != "full"
        self.casts_frozen = self.is_low and teacher_dtype == "float32" and not self.is_quantized
        self.is_full = distill.lora is None
        self.stored = 4 if self.is_full else _BYTES[teacher_dtype]
        """Bytes per element of the student's weights but its adapters."""
        self.activations = _Activations(
            transformer,
            shapes,
            self.batch,
            is_low=self.is_low,
            is_quantized=self.is_quantized,
        )
        self.image = self.activations.image

    def most(self, gradients: int, head_gradients: int) -> int:
        distill, taps = self.distill, self.transformer["num_layers"]
        student = self.activations.blocks("trained" if self.is_full else "adapted")
        teacher = self.activations.blocks("frozen")
        copies, teacher_copies = self._copies()
        maps = taps * self.image * self.number
        sent_back = _heads(self.transformer, distill.discriminator) * self.image * self.number
        fake = maps + sent_back
        # FSDP2 gathers the current block and the next one, in float32 where nothing is sharded,
        # and reduces gradients in float32.
        block = _block_weights(self.transformer) if distill.workers > 1 else 0
        number = self.number if distill.shard_over > 1 else self.stored
        gathered = 0 if not self.is_full and self.is_quantized else 2 * block * number
        reduced = block * (number + 6) if self.is_full else 0
        teacher_gathered = gathered if distill.shard_teacher or not self.is_full else 0
        # 1. The heads have judged the fake; then, without what they kept, the backward pass begins
        # at the teacher's last block.
        teacher_block = teacher.block if distill.checkpoint_blocks else 0
        begin = copies + teacher_copies + fake
        begin += max(self._judged(), teacher_block + teacher.passing + teacher_gathered)
        if distill.checkpoint_blocks:
            begin += self.activations.checkpoints + self.activations.inputs
        else:
            begin += student.all + teacher.all
        begin += head_gradients
        if self.batch < self.shapes.share:
            begin += gradients  # of earlier micro-batches
        # 2. It ends at the student's first block; nearly all gradients are in memory.
        gradients += head_gradients
        end = gradients + fake + student.block + student.passing + gathered + reduced
        # 3. The heads judge features of the data, with R1 those of the perturbed data, and those of
        # the data with mismatched prompts.
        objective = distill.objective
        slots = mismatched_slots(distill.global_batch, objective.mismatched_share)
        sides: float = 1 + (objective.r1_weight > 0)
        if slots:
            sides += max(len(slots) / distill.global_batch, 1 / self.batch)
        real = gradients + sides * (maps + self._judged())
        real += teacher.passing + teacher_gathered
        # 4. The optimizers step; in 8 bits, one weight after another, compiled on a GPU.
        step = gradients
        if distill.optimizer_bits == 8 and not self.shapes.on_gpu:
            step += _CODING * max(inputs * outputs for _, inputs, outputs in self._trained())
        return int(max(begin, end, real, step)) + self._inputs()

    def _trained(self) -> Iterator[tuple[str, int, int]]:
        """Name, inputs and outputs of the linear layers that are trained."""
        lora = self.distill.lora
        if lora is None:
            return linear_layers(self.transformer)
        return adapter_layers(self.transformer, lora.rank, lora.targets)

    def _judged(self) -> int:
        """Bytes that autograd keeps of the heads for one set of features."""
        inner = (
            6 * self.image // block_width(self.transformer) * self.distill.discriminator.channels
        )
        kept = (self.image + inner) * self.number
        if self.is_low and self.shapes.on_gpu:  # there group norms run in float32
            kept += 2 * inner
        return _heads(self.transformer, self.distill.discriminator) * kept

    def _copies(self) -> tuple[int, int]:
        """Bytes of low-precision weight copies of student and teacher.

        Autocast casts a float32 matrix, and the copy is kept for the backward pass, but not where
        blocks are recomputed or weights are gathered in low precision.
        """
        if not self.is_low:
            return 0, 0
        # The modulation's matrices act on the noise level: copies are kept only if trained.
        inner = [
            inputs * outputs
            for name, inputs, outputs in linear_layers(self.transformer)
            if not ("norm" in name or name.startswith("time_text_embed"))
        ]
        frozen = 2 * sum(inner) if self.casts_frozen else 0
        if self.distill.checkpoint_blocks:
            frozen = 0  # Autocast's cache still keeps the copies of trained weights.
        is_sharded = self.distill.shard_over > 1
        if self.is_full:
            return 0 if is_sharded else 2 * parameters(self.transformer), frozen
        adapters = 2 * sum(inputs * outputs for _, inputs, outputs in self._trained())
        return (0, 0) if is_sharded else (adapters + frozen, frozen)

    def _inputs(self) -> int:
        """Latents at their various noise levels, and the conditioning of the worker's samples."""
        transformer, shapes = self.transformer, self.shapes
        words = shapes.text * transformer["joint_attention_dim"]
        numbers = 8 * self.activations.latents
        return 4 * (numbers + shapes.share * (words + transformer["pooled_projection_dim"]))


class _Activations:
    """What autograd keeps of the blocks for a batch."""

    def __init__(
        self,
        transformer: dict[str, Any],
        shapes: Shapes,
        batch: int,
        *,
        is_low: bool,
        is_quantized: bool = False,
    ) -> None:
        self.transformer, self.shapes, self.batch = transformer, shapes, batch
        self.is_low, self.is_quantized = is_low, is_quantized
        self.number = 2 if is_low else 4
        """Bytes per element of an activation."""
        self.image = batch * shapes.rows * shapes.columns * block_width(transformer)
        self.text = batch * shapes.text * block_width(transformer)

    @property
    def inputs(self) -> int:
        """Bytes of the inputs of all blocks: what is kept where blocks are recomputed."""
        return int(self.transformer["num_layers"] * (self.image + self.text) * self.number)

    @property
    def checkpoints(self) -> int:
        """Bytes of `inputs`, and of what is kept after the last block."""
        return self.inputs + 3 * self.image * self.number

    @property
    def latents(self) -> int:
        """Numbers in the latents of the batch."""
        places = self.shapes.rows * self.shapes.columns * self.transformer["patch_size"] ** 2
        return int(self.batch * places * self.transformer["in_channels"])

    def blocks(self, kind: Literal["trained", "adapted", "frozen"]) -> _Blocks:
        """Blocks of a student (trained or adapted), or of a frozen net that passes gradients on."""
        transformer, shapes, number = self.transformer, self.shapes, self.number
        image, text, is_low = self.image, self.text, self.is_low
        # Number of token-sized tensors kept: by every block besides its joint attention; by a
        # second attention, of the image only; and by the last block for the text.
        every = {"trained": 17, "adapted": 15 if is_low else 13, "frozen": 6}[kind] * number
        second = {"trained": 6, "adapted": 5, "frozen": 3}[kind] * number
        last = {"trained": 3, "adapted": 2, "frozen": 1}[kind] * number
        norms = 0
        if transformer.get("qk_norm") is not None:  # they run in float32
            norms = {"trained": 4, "adapted": 2, "frozen": 2}[kind] * 4 + (4 if is_low else 0)
        if is_low and shapes.on_gpu:  # there layer norms run in float32 too
            every += 8 if kind == "trained" else 4
        scores = second_scores = 0
        if not shapes.on_gpu:
            every += 4 * number  # the MLP's gate, see `sd3_gelu`
            # And the attention weights, see `sd3_backbone._attend`.
            each = self.batch * transformer["num_attention_heads"] * number
            tokens = shapes.rows * shapes.columns
            scores, second_scores = each * (tokens + shapes.text) ** 2, each * tokens**2
        joint = 3 * (image + text) * number  # queries, keys and values
        block = (every + norms) * (image + text) + joint + scores
        dual = len(transformer.get("dual_attention_layers") or ())
        whole = transformer["num_layers"] * block - (every - last) * text
        whole += dual * ((second + norms) * image + second_scores)
        if kind != "frozen":
            whole += 3 * image * number  # after the last block
        passing = max(scores + joint, 8 * (image + text) * number)
        if kind != "trained" and self.is_quantized:
            largest = max(inputs * outputs for _, inputs, outputs in layers_in_blocks(transformer))
            # One layer's restored weights: codes and product in float32, and a copy in bfloat16.
            passing = max(passing, (10 if is_low else 8) * largest)
        return _Blocks(whole, block, passing)


class _Blocks(NamedTuple):
    """Bytes of a net's blocks that autograd keeps: of all, of one, and temporary ones."""

    all: int
    block: int
    passing: int
    """Temporary while one block runs."""


def _block_weights(transformer: dict[str, Any]) -> int:
    return sum(
        inputs * outputs
        for name, inputs, outputs in linear_layers(transformer)
        if name.startswith("transformer_blocks.0.")
    )


def _table(transformer: dict[str, Any]) -> int:
    """Numbers in the table of positions, a buffer."""
    return int(transformer["pos_embed_max_size"] ** 2 * block_width(transformer))


def _heads(transformer: dict[str, Any], discriminator: DiscriminatorConfig) -> int:
    return 1 if discriminator.taps == "last" else int(transformer["num_layers"])
